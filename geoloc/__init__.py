"""Image geolocation: a photo goes in, coordinates with a calibrated uncertainty come out.

    from geoloc import Geolocalizer

    model = Geolocalizer.from_pretrained("earthview")
    prediction = model.localize("photo.jpg")

Importing this package is fast: a name, and torch if it needs it, is loaded on first access.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoloc.localize.geolocalizer import Geolocalizer
    from geoloc.posterior.prediction import Prediction
    from geoloc.reference.database import ReferenceDatabase

__all__ = ["Geolocalizer", "Prediction", "ReferenceDatabase", "__version__"]

__version__ = "0.1.0"

_HOME = {
    "Geolocalizer": "geoloc.localize.geolocalizer",
    "Prediction": "geoloc.posterior.prediction",
    "ReferenceDatabase": "geoloc.reference.database",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'geoloc' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # later accesses do not call __getattr__
    return value


def __dir__() -> list[str]:
    return __all__
