"""Input images: files, folders, links, tars, tables and URLs, in a fixed order, with their positions where known."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
