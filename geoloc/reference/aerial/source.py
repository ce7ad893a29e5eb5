"""Aerial imagery, and square patches of it at any location, heading, ground resolution and size.

    patch = read_patch(open_source("tiles/"), (42.36, -71.06), heading_deg=30, gsd_m_per_px=0.2, size_px=384)
    patch.image     (384, 384, 3) uint8
    patch.valid     (384, 384) bool: where there is imagery

A source is a pyramid of rasters: level 0 is the finest, each further one has half as many pixels a side. The
plane of a patch is the azimuthal equidistant projection around its centre, so that a pixel is as large as it
says at every latitude, in whatever projection the source is.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from geoloc.geo.wgs84 import offset_latlon_deg
from quadtree.sphere import validate_latlon_deg

FloatArray = NDArray[np.float64]
Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Bounds = tuple[float, float, float, float]  # south, west, north, east; west > east crosses the antimeridian

# A patch smaller than this is nearly affine in any projection: its pixels are placed exactly at a few nodes
# and in between by interpolation, which costs a thousandth of a pixel at most.
_LOCAL_M: Final = 5_000.0
_NODES: Final = 17
_MAX_WINDOW_PX: Final = 2**27  # of a source, that one patch may read


class AerialSource(ABC):
    """A pyramid of RGB rasters with a mask of valid pixels.

    Attributes:
        name: provenance of the rows.
        licence: under which the imagery may be used; "" where it is unknown.
        num_levels: levels 0, the finest, to num_levels - 1 can be read.
        pixel_bounds: left, top, right, bottom in level 0, outside of which there is nothing; may be infinite.
        bounds_deg: a box around all imagery; None where it is unknown.
        bad_tiles: names and reasons of unreadable files; they count as missing.
    """

    name: str
    licence: str = ""
    num_levels: int
    pixel_bounds: tuple[float, float, float, float]
    bounds_deg: Bounds | None

    def __init__(self) -> None:
        self.bad_tiles: dict[str, str] = {}

    @abstractmethod
    def pixel_xy(self, latlon_deg: FloatArray) -> FloatArray:
        """Pixel coordinates in level 0, (..., 2) -> (..., 2), x right and y down; edges are whole numbers.

        Points that the projection does not reach are not finite. Longitudes may run on past 180.
        """

    @abstractmethod
    def read(self, level: int, left: int, top: int, right: int, bottom: int) -> tuple[Rgb, Mask]:
        """A window of a level, in its pixels: (h, w, 3) colours, and (h, w) where there is imagery.

        The window may reach over the edge; pixel coordinates of level k are those of level 0 over 2^k.
        """

    @abstractmethod
    def covers(self, latlon_deg: FloatArray) -> Mask:
        """Whether there may be imagery in level 0, (n, 2) -> (n,)."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Plain JSON values that identify the source, without its path on this machine."""


@dataclass(frozen=True)
class Patch:
    """Square of imagery.

    Attributes:
        image: (S, S, 3) uint8, RGB; black where there is no imagery.
        valid: (S, S), where there is imagery.
    """

    image: Rgb
    valid: Mask

    @property
    def coverage(self) -> float:
        """Share of the pixels that are valid."""
        return float(self.valid.mean())

    def filled(self, colour: Sequence[float]) -> Rgb:
        """The image with a colour, three values of 0 to 255, where there is no imagery."""
        return np.where(self.valid[..., None], self.image, np.asarray(colour, np.float64).round()).astype(
            np.uint8
        )


def finest_gsd_m_per_px(source: AerialSource, latlon_deg: ArrayLike) -> float:
    """Ground resolution of level 0 at a location, in metres a pixel; NaN where the projection does not reach.

    Args:
        source: the imagery.
        latlon_deg: (2,).
    """
    ends = offset_latlon_deg(
        validate_latlon_deg(latlon_deg), [-500.0, 500.0, 0.0, 0.0], [0.0, 0.0, -500.0, 500.0]
    )
    xy = source.pixel_xy(ends)
    across, along = (float(np.hypot(*(xy[end + 1] - xy[end]))) for end in (0, 2))
    return 1000.0 / max(across, along) if max(across, along) > 0 else float("nan")


def read_patch(
    source: AerialSource | Sequence[AerialSource],
    latlon_deg: ArrayLike,
    *,
    heading_deg: float = 0.0,
    gsd_m_per_px: float,
    size_px: int,
) -> Patch:
    """Read a square patch; of several sources, each fills the gaps of those before it.

    Args:
        source: one, or several by priority.
        latlon_deg: (2,) of the centre.
        heading_deg: direction that is up in the patch, clockwise from true north.
        gsd_m_per_px: metres on the ground that a pixel spans.
        size_px: S.

    Raises:
        ConfigError: an impossible number, or a source that is far too fine for this resolution and has no
            coarser level.
        InvalidCoordinateError: the centre is not on Earth.
    """
    if not (gsd_m_per_px > 0 and np.isfinite(gsd_m_per_px)) or size_px < 1 or not np.isfinite(heading_deg):
        raise ConfigError(
            "a patch needs a positive gsd_m_per_px, a size_px of at least 1 and a finite heading_deg; "
            f"found {gsd_m_per_px}, {size_px} and {heading_deg}"
        )
    center = validate_latlon_deg(latlon_deg)
    sources = [source] if isinstance(source, AerialSource) else list(source)
    image = np.zeros((size_px, size_px, 3), np.uint8)
    valid = np.zeros((size_px, size_px), np.bool_)
    for one in sources:
        if valid.all():
            break
        found = _read_one(one, center, heading_deg, gsd_m_per_px, size_px)
        if found is not None:
            new = found.valid & ~valid
            image[new] = found.image[new]
            valid |= found.valid
    return Patch(image, valid)


def _read_one(
    source: AerialSource, center: FloatArray, heading_deg: float, gsd_m_per_px: float, size_px: int
) -> Patch | None:
    """The part of a patch that one source has; None where it has none."""
    nodes = _node_pixels(source, center, heading_deg, gsd_m_per_px, size_px)
    if not np.isfinite(nodes).any():
        return None
    # Pixels of level 0 along a side of a pixel of the patch, as a mean over the patch.
    step = _pixels_per_pixel(nodes, size_px)
    level = int(np.clip(np.floor(np.log2(max(step, 1.0))), 0, source.num_levels - 1))
    step /= 2.0**level
    # A finer raster is averaged: halved as often as it goes, then sampled twice a side.
    num_halvings = int(np.floor(np.log2(max(step, 1.0))))
    samples = 1 if step / 2.0**num_halvings <= 1.0 else 2
    xy = _between(nodes, size_px, samples) / 2.0**level

    margin = 2 * 2**num_halvings
    finite = np.isfinite(xy).all(-1)
    if not finite.any():
        return None
    outline = np.reshape(source.pixel_bounds, (2, 2)) / 2.0**level
    low = np.floor(np.maximum(xy[finite].min(0), outline[0])).astype(np.int64) - margin
    high = np.ceil(np.minimum(xy[finite].max(0), outline[1])).astype(np.int64) + margin
    if (high - low <= 2 * margin).any():
        return None
    low -= low % 2**num_halvings
    high += -high % 2**num_halvings
    if (area := int(np.prod(high - low))) > _MAX_WINDOW_PX:
        raise ConfigError(
            f"{source.name} is {step:,.0f} times as fine as the asked {gsd_m_per_px:g} m per pixel, and one patch "
            f"would read {area:,} pixels of it: give coarser levels (gdaladdo, lower zooms), or ask for finer ones"
        )
    rgb, valid = source.read(level, int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    if not valid.any():
        return None
    return _resampled(rgb, valid, (xy - low) / 2.0**num_halvings, num_halvings, samples)


def _resampled(rgb: Rgb, valid: Mask, xy: FloatArray, num_halvings: int, samples: int) -> Patch:
    """Halve a raster a number of times, sample it, and average the samples of each pixel.

    Colours are means over valid pixels, and a pixel is valid if at least half of its area is.

    Args:
        rgb: (h, w, 3).
        valid: (h, w).
        xy: (S samples, S samples, 2) pixel coordinates in the halved raster.
        num_halvings: h and w can be divided by 2 so often.
        samples: on a side of a pixel, 1 or 2.
    """
    import torch
    from torch.nn.functional import avg_pool2d, grid_sample

    opaque = torch.from_numpy(valid).float()[None]
    raster = torch.cat([torch.from_numpy(rgb).permute(2, 0, 1).float() * opaque, opaque])[None]
    for _ in range(num_halvings):
        raster = avg_pool2d(raster, 2)
    # Its coordinates go from -1 to 1 between the outer edges; what is not finite lies far outside.
    height, width = raster.shape[2:]
    grid = np.nan_to_num(2.0 * xy / (width, height) - 1.0, nan=9.0, posinf=9.0, neginf=9.0)
    seen = grid_sample(raster, torch.from_numpy(grid.astype(np.float32))[None], align_corners=False)
    if samples > 1:
        seen = avg_pool2d(seen, samples)
    weight = seen[0, 3]
    known = weight >= 0.5
    colour = torch.where(known, seen[0, :3] / weight.clamp(min=0.5), 0.0)
    return Patch(colour.round().byte().permute(1, 2, 0).contiguous().numpy(), known.numpy())


def _node_pixels(
    source: AerialSource, center: FloatArray, heading_deg: float, gsd_m_per_px: float, size_px: int
) -> FloatArray:
    """Pixel coordinates in level 0 of nodes that span the patch from edge to edge, (n, n, 2)."""
    side_m = gsd_m_per_px * size_px
    # Beyond the local, every sample is a node: twice as many as pixels, at their centres and edges.
    num_nodes = _NODES if side_m <= _LOCAL_M and abs(center[0]) < 85.0 else 2 * size_px + 1
    along = np.linspace(-0.5, 0.5, num_nodes) * side_m
    right, down = np.meshgrid(along, along)
    turn = np.radians(heading_deg)
    east = right * np.cos(turn) - down * np.sin(turn)
    north = -right * np.sin(turn) - down * np.cos(turn)
    latlon = offset_latlon_deg(center, east, north)
    latlon[..., 1] = center[1] + (latlon[..., 1] - center[1] + 180.0) % 360.0 - 180.0  # no jump at 180
    return source.pixel_xy(latlon)


def _pixels_per_pixel(nodes: FloatArray, size_px: int) -> float:
    with np.errstate(invalid="ignore"):  # points beyond a projection are infinite
        across, down = np.diff(nodes, axis=1)[:-1], np.diff(nodes, axis=0)[:, :-1]
        areas = np.abs(across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0])
    nodes_per_px = (len(nodes) - 1) / size_px
    finite = areas[np.isfinite(areas)]
    return float(np.sqrt(np.median(finite)) * nodes_per_px) if len(finite) else 0.0


def _between(nodes: FloatArray, size_px: int, samples: int) -> FloatArray:
    """Coordinates of the samples of the patch's pixels, by bilinear interpolation: (S samples, S samples, 2)."""
    at = (np.arange(size_px * samples) + 0.5) / (size_px * samples) * (len(nodes) - 1)
    before = np.minimum(at.astype(np.int64), len(nodes) - 2)
    share = (at - before)[:, None, None]
    with np.errstate(invalid="ignore"):  # points beyond a projection are infinite
        for _ in range(2):  # down, then across
            nodes = (nodes[before] * (1.0 - share) + nodes[before + 1] * share).swapaxes(0, 1)
    return nodes
