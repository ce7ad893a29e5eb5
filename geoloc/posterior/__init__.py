"""From head outputs to predictions: retrieval, evidence, reranker, mixture, point, regions and their calibration."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
