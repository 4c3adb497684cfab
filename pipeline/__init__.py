"""A CNN on MNIST, reproduced, tracked, swept and compared: DVC stages over Hydra, logged to MLflow."""
