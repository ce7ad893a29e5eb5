"""Reference databases: rows with embeddings on disk, and how they are filled from imagery, photos and coordinates."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
