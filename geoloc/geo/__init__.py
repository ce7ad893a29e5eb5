"""Where things are on the Earth, apart from cells: names of places, tiles, UTM."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
