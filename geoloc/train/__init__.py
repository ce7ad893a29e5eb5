"""Training: a recipe turns an experiment (config and data) into a checkpoint."""
