"""What all regions have in common, and points spread evenly over any of them."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from geoloc.geo.regions.boxes import WORLD, Bounds, box_area_km2, halves_of, points_in_boxes

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]

MAX_BOXES: Final = 64  # of a region's `boxes`: code that tests each of them stays fast

_MAX_HALVINGS: Final = 48  # of a side of the Earth: less than a micrometre
_COVER_BOXES: Final = 1024  # fewer boxes are divided further
_MAX_COVER_BOXES: Final = 1 << 15
_GOOD_SHARE: Final = 0.25  # of a cover's area that lies in the region
_PROBES: Final = 1 << 14  # points that measure that share
_MAX_PROBES: Final = 1 << 22  # for one sample


class Region(ABC):
    """A set of points on the Earth.

    Attributes:
        name: as the user gave it, for messages.
    """

    name: str

    @abstractmethod
    def contains(self, latlon_deg: ArrayLike) -> Mask:
        """Whether points lie in it, (n, 2) -> (n,).

        Raises:
            InvalidCoordinateError: a latitude is outside [-90, 90], or a value is not finite.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Plain JSON values that identify it."""

    @cached_property
    def boxes(self) -> tuple[Bounds, ...]:
        """South, west, north, east of boxes with west <= east that hold all of it; they may overlap."""
        return tuple((s, w, n, e) for s, w, n, e in self.cover(MAX_BOXES // 4, MAX_BOXES).tolist())

    @cached_property
    def area_km2(self) -> float:
        """Area on the mean sphere in km²; estimated from points where a class does not say that it is exact."""
        return float(box_area_km2(self._cover).sum()) * self._share

    def sample(self, n: int) -> FloatArray:
        """About n points that are spread evenly over its area, (m, 2) degrees; always the same ones.

        Every point lies in the region. A region that is not empty has at least one.

        Args:
            n: at least 1.

        Raises:
            ConfigError: n is below 1.
        """
        if n < 1:
            raise ConfigError(f"n is {n}; a sample has at least 1 point")
        points = np.zeros((0, 2))
        if self._share > 0:
            num_probes = min(int(np.ceil(n / self._share)), max(n, _MAX_PROBES))
            points = self._inside(points_in_boxes(self._cover, num_probes))
        if not len(points):  # all of it is smaller than the distance of the points
            points = self._inside(self._anchors())
        if len(points) > n:  # the points are in the order of the cover, so that an even choice stays even
            points = points[(np.arange(n) * 2 + 1) * len(points) // (2 * n)]
        return points

    def cover(self, num_boxes: int, limit: int) -> FloatArray:
        """Disjoint boxes that hold all of it, (m, 4) south, west, north, east, in Z-order.

        Boxes that may touch the region are halved in both directions until there are `num_boxes` of them and a quarter
        of their centres lies in the region, or until a further step would make more than `limit`.
        """
        boxes = np.array([WORLD])
        for _ in range(_MAX_HALVINGS):
            finer = halves_of(boxes)
            finer = finer[self._may_touch(finer)]
            if len(finer) > limit or not len(finer):
                break
            boxes = finer
            if len(boxes) >= num_boxes:
                inside = self.contains(points_in_boxes(boxes, 4 * len(boxes)))
                if inside.mean() >= _GOOD_SHARE:
                    break
        return boxes

    def _may_touch(self, boxes: FloatArray) -> Mask:
        """Whether boxes (m, 4) may have a point of the region; True where it is not known."""
        touches = np.zeros(len(boxes), np.bool_)
        for south, west, north, east in self.boxes:
            touches |= (
                (boxes[:, 0] <= north)
                & (south <= boxes[:, 2])
                & (boxes[:, 1] <= east)
                & (west <= boxes[:, 3])
            )
        return touches

    def _anchors(self) -> FloatArray:
        """Points (m, 2) of which one lies in the region, if any float64 point does."""
        corners = np.array(self.boxes).reshape(-1, 4)
        return np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, :2]])

    @cached_property
    def _cover(self) -> FloatArray:
        return self.cover(_COVER_BOXES, _MAX_COVER_BOXES)

    @cached_property
    def _share(self) -> float:
        """Share of the cover's area that lies in the region."""
        return float(self.contains(points_in_boxes(self._cover, _PROBES)).mean())

    def _inside(self, latlon_deg: FloatArray) -> FloatArray:
        return latlon_deg[self.contains(latlon_deg)]
