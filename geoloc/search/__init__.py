"""Search of reference embeddings: the rows of each cell, and the best of them by exact scan or FAISS."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
