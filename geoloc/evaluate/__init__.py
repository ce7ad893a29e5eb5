"""Evaluation: models and predictions against the truth."""
