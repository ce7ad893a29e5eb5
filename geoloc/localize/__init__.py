"""From photos to coordinates: the model, the inference session, and the job over many photos with its table."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
