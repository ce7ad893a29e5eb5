"""Adapters of published checkpoints: one small file per system, which renames tensors and runs none of its code."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
