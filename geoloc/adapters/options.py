"""Options for loading published files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from geoloc.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Facts that a published file does not contain.

    Attributes:
        quadtree: OSV-5M's table of cells, a .csv; None takes the published one if the number of cells fits.
        places: OSV-5M's table of the countries, regions, areas or cities that a model classifies:
            `index_to_gps_unique_….pt` or `…_center.csv`.
        tower: the image tower, if the file does not define it: its name on the Hub, or a folder with transformers'
            files of it.
        image_size_px: side of the images, or height and width; None is the published size.
        pooled_size: rows and columns of the output of Conv-AP.
        lora_alpha: alpha of OSV-5M's training checkpoints with LoRA.
        aggregation: for files whose aggregation has no tensors: "spoc", "mac" or "rmac"; for a CCT, "cls" or "seqpool".
        l2: the VG benchmark's `--l2`: "before_pool", "after_pool" or "none", if the file does not define it.
    """

    quadtree: str | Path | None = None
    places: str | Path | None = None
    tower: str | Path | None = None
    image_size_px: int | tuple[int, int] | None = None
    pooled_size: tuple[int, int] | None = None
    lora_alpha: float | None = None
    aggregation: str | None = None
    l2: str | None = None

    @property
    def square_px(self) -> int | None:
        """`image_size_px` for a model with square images.

        Raises:
            ConfigError: it is a rectangle.
        """
        size = self.image_size_px
        if size is not None and not isinstance(size, int):
            height, width = size
            if height != width:
                raise ConfigError(
                    f"image_size_px is {height} x {width}, but this model takes squares: give one side"
                )
            return height
        return size
