"""Hugging Face Hub: a name becomes a verified folder, and a folder is pushed. Independent of models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
