"""Adapters of published checkpoints: one small file per system, which renames tensors and runs none of its code."""
