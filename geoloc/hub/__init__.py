"""Hugging Face Hub: a name becomes a verified folder, and a folder is pushed. Independent of models."""
