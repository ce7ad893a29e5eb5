"""GeoTIFF and cloud-optimised GeoTIFF in any projection. The only module that imports rasterio."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError, MissingDependencyError, NotFoundError
from geoloc.geo.wgs84 import project, unproject
from geoloc.reference.aerial.source import AerialSource, FloatArray, Mask, Rgb
from geoloc.reference.aerial.tiled import box_around

_BYTES: Final = (0.0, 255.0)
_OVERVIEW_PX: Final = 1024  # pixels a side, for percentiles


class GeoTiff(AerialSource):
    """A raster with red, green and blue bands (and alpha), or one grey band.

    Missing pixels come from an alpha band, an internal mask or a nodata value; values that are not finite are missing,
    too. Coarser levels are the file's overviews where it has them.

    8-bit values are taken as colours. Others are stretched linearly, with one range for all bands so that colours keep
    their balance: from the 2nd to the 98th percentile of the file, as GIS programs do. The range is the same for every
    patch of the file, but not for all files of a mosaic: give `value_range` for those.

    Args:
        path: of the file, or its http(s) address.
        bands: numbers of the red, green and blue band, from 1; None takes the first three.
        value_range: values that become 0 and 255, such as (0, 3000) for Sentinel-2's reflectances; None as above.
        name: provenance of the rows; None takes the file's name.
        licence: of the imagery.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it is not a GeoTIFF, has no projection, or bands or a range that cannot be colours.
        MissingDependencyError: rasterio is missing.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        bands: tuple[int, int, int] | None = None,
        value_range: Sequence[float] | None = None,
        name: str | None = None,
        licence: str = "",
    ) -> None:
        super().__init__()
        rasterio = _rasterio()
        where = str(path)
        if "://" not in where and not Path(where).is_file():
            raise NotFoundError(f"there is no GeoTIFF {path}: check the path")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._file = rasterio.open(where, driver="GTiff")
        except rasterio.errors.RasterioError as error:
            raise ConfigError(f"{path} is not a readable GeoTIFF ({error})") from None
        if self._file.crs is None:
            raise ConfigError(f"{path} has no projection: give it one, with `gdal_edit.py -a_srs EPSG:…`")
        if self._file.transform.is_degenerate:
            raise ConfigError(f"{path} has no position: its pixels have no size")
        self._bands = _bands(bands, self._file.count, str(path))
        kinds = sorted({self._file.dtypes[band - 1] for band in self._bands})
        if len(kinds) != 1 or np.dtype(kinds[0]).kind not in "uif":
            raise ConfigError(
                f"{path} has bands of {', '.join(kinds)}, and real numbers of one type are needed: convert it with "
                "`gdal_translate -ot Float32`"
            )
        self.value_range = (
            _checked_range(value_range)
            if value_range is not None
            else _BYTES
            if kinds == ["uint8"]
            else self._percentiles()
        )
        self.name, self.licence = name or Path(where).name, licence
        self._crs: str = self._file.crs.to_wkt()
        self._is_geographic: bool = self._file.crs.is_geographic
        self._to_pixel = ~self._file.transform
        self.num_levels = max(1, int(np.log2(max(1, min(self._file.shape)))) + 1)
        self.pixel_bounds = (0.0, 0.0, float(self._file.width), float(self._file.height))
        share = np.linspace(0, 1, 33)
        zero, one = np.zeros_like(share), np.ones_like(share)
        edge = np.concatenate(
            [np.stack(xy, -1) for xy in ((share, zero), (share, one), (zero, share), (one, share))]
        )
        edge_xy = _apply(self._file.transform, edge * (self._file.width, self._file.height))
        self.bounds_deg = box_around(unproject(self._crs, edge_xy))
        self._middle_x = float(edge_xy[:, 0].min() + edge_xy[:, 0].max()) / 2

    def pixel_xy(self, latlon_deg: FloatArray) -> FloatArray:  # noqa: D102  as in the base class
        lon = latlon_deg[..., 1]
        return self._pixel_xy(latlon_deg, lon.ravel()[lon.size // 2])

    def covers(self, latlon_deg: FloatArray) -> Mask:  # noqa: D102
        xy = self._pixel_xy(latlon_deg, latlon_deg[..., 1])
        return np.asarray(((xy >= 0) & (xy < (self._file.width, self._file.height))).all(-1))

    def _pixel_xy(self, latlon_deg: FloatArray, near_lon_deg: ArrayLike) -> FloatArray:
        """Pixel coordinates of points; those of one patch stay beside each other across the antimeridian."""
        xy = project(self._crs, latlon_deg)
        if self._is_geographic:  # then x is a longitude, which pyproj wraps
            same_turn = 360.0 * np.round((latlon_deg[..., 1] - xy[..., 0]) / 360.0)
            xy[..., 0] += same_turn + 360.0 * np.round((self._middle_x - np.asarray(near_lon_deg)) / 360.0)
        return _apply(self._to_pixel, xy)

    def read(self, level: int, left: int, top: int, right: int, bottom: int) -> tuple[Rgb, Mask]:  # noqa: D102
        scale = 2**level
        rgb = np.zeros((bottom - top, right - left, 3), np.uint8)
        valid = np.zeros(rgb.shape[:2], np.bool_)
        # A coarse pixel that reaches over the edge counts as missing.
        x0, x1 = max(0, left), min(right, self._file.width // scale)
        y0, y1 = max(0, top), min(bottom, self._file.height // scale)
        if x0 >= x1 or y0 >= y1:
            return rgb, valid
        rasterio, shape = _rasterio(), (y1 - y0, x1 - x0)
        options = {
            "window": rasterio.windows.Window(x0 * scale, y0 * scale, shape[1] * scale, shape[0] * scale),
            "resampling": rasterio.enums.Resampling.average,
        }
        values = self._file.read(self._bands, out_shape=(3, *shape), **options)
        opaque = self._file.dataset_mask(out_shape=shape, **options) > 127
        ours = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        rgb[ours] = _stretched(values, self.value_range).transpose(1, 2, 0)
        valid[ours] = opaque & np.isfinite(values).all(0)
        return rgb, valid

    def _percentiles(self) -> tuple[float, float]:
        """The 2nd and 98th percentile of the valid values of the bands, from an overview of at most 1024 x 1024."""
        height, width = (min(_OVERVIEW_PX, side) for side in self._file.shape)
        values = self._file.read(self._bands, out_shape=(3, height, width))
        known = (self._file.dataset_mask(out_shape=(height, width)) > 127) & np.isfinite(values).all(0)
        if not known.any():
            return _BYTES
        low, high = np.percentile(values[:, known].astype(np.float64), (2, 98)).tolist()
        return low, max(high, float(np.nextafter(low, np.inf)))  # a single value is black

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {
            "name": self.name,
            "crs": self._crs,
            "transform": list(self._file.transform)[:6],
            "shape": list(self._file.shape),
            "bands": list(self._bands),
            "value_range": list(self.value_range),
        }


def _checked_range(value_range: Sequence[float]) -> tuple[float, float]:
    low, high = map(float, value_range)
    if not -np.inf < low < high < np.inf:
        raise ConfigError(
            f"value_range is {(low, high)}; it must be two numbers, of what becomes black and of what becomes white, "
            "the smaller one first"
        )
    return low, high


def _stretched(values: NDArray[Any], value_range: tuple[float, float]) -> Rgb:
    """Values as colours: the ends of the range are 0 and 255, and values beyond it are clipped."""
    if values.dtype == np.uint8 and value_range == _BYTES:
        return values
    low, high = value_range
    share = (np.nan_to_num(values.astype(np.float64), nan=low) - low) / (high - low)
    return np.rint(255.0 * np.clip(share, 0.0, 1.0)).astype(np.uint8)


def _bands(asked: tuple[int, int, int] | None, num_bands: int, path: str) -> list[int]:
    bands = list(asked) if asked else [1, 2, 3] if num_bands >= 3 else [1, 1, 1]
    if not all(1 <= band <= num_bands for band in bands) or len(bands) != 3:
        raise ConfigError(f"{path} has the bands 1 to {num_bands}, and {bands} were asked for")
    return bands


def _apply(affine: Any, xy: FloatArray) -> FloatArray:
    x, y = xy[..., 0], xy[..., 1]
    return np.stack([affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f], -1)


def _rasterio() -> Any:
    try:
        import rasterio
        import rasterio.enums
        import rasterio.errors
        import rasterio.windows
    except ImportError as error:
        raise MissingDependencyError(
            "reading GeoTIFF needs rasterio: pip install 'geoloc-vision[aerial]'"
        ) from error
    return rasterio
