"""Measurements of the pipeline beside its peers: `make benchmark`, `make benchmark-full`, `make benchmark-compare`."""
