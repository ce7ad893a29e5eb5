"""Networks: image tower, heads, aggregations, losses, and their ONNX export."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
