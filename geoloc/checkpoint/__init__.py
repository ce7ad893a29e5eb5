"""Checkpoints: read and write a model as a folder, adapt published models, export, publish."""
