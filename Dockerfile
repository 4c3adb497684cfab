# The README in a container: docker build -t mnist . && docker run -it mnist
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 pipeline \
    && install --directory --owner=pipeline /mnist
USER pipeline
WORKDIR /mnist
# The environment first: it changes less often than the code.
COPY --chown=pipeline Makefile pyproject.toml requirements.lock ./
RUN make env PYTHON=python && rm -rf ~/.cache
COPY --chown=pipeline . .
CMD ["make", "repro"]
