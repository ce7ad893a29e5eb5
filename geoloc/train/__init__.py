"""Training: recipes that turn data into checkpoints."""
