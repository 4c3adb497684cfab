"""A CNN on MNIST, reproduced, tracked, swept and compared.

Each module here is a command, which the code calls a verb. The rooms, in reading order:

base         the configuration's schema, Hydra, the project's folders, files, errors
data         examples: downloaded, read, split
model        the CNN, its files, inference
training     the loop, the optimizer, augmentation, checkpoints, accelerations
metrics      what is computed from predictions; tests and intervals
reports      plots, tables, sentences
tracking     fingerprint, record, MLflow
experiments  one tracked training, sweeps, comparisons of runs
apps         predicting, serving, exporting, stress tests
"""
