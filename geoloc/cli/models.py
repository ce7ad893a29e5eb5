"""How the commands get their model."""

from typing import TYPE_CHECKING

from geoloc.errors import ConfigError

if TYPE_CHECKING:
    from geoloc.localize.geolocalizer import Geolocalizer


def load_model(name: str, device: str, num_threads: int | None) -> "Geolocalizer":
    """A model by its name, on a device that works.

    Raises:
        ConfigError: the device cannot be used.
        GeolocError: as `Geolocalizer.from_pretrained`.
    """
    import torch

    from geoloc import Geolocalizer

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # no such device, or torch was built without its kind
        reason = str(error).split(". ")[0]
        raise ConfigError(
            f"the device {device!r} cannot be used: {reason}; --device cpu always can"
        ) from error
    return Geolocalizer.from_pretrained(name, device=device)
