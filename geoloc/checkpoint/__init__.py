"""Checkpoints: read and write a model as a folder, adapt published models, export, publish."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
