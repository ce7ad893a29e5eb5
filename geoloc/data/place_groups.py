"""CosPlace's classes (squares of ground by heading) and groups of non-adjacent classes (Berton et al., CVPR 2022).

    groups = place_groups(table.latlon_deg, table.numbers("heading_deg"), GroupsConfig())
    groups.names                     # ("north 0 of 5, east 0 of 5, heading 0 of 2", …)
    groups.class_ids(group=0)        # (n,) class of each photo inside the first group, -1 for those of other groups

A class is (zone, ⌊E / M⌋, ⌊N / M⌋, ⌊heading / α⌋), with E and N in metres of the UTM zone. Its group is the last three
modulo N, N and L, so that two classes of a group are at least N - 1 squares or L - 1 heading steps apart. At the
border of two UTM zones, classes of a group can be nearer to each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from geoloc.geo.utm import to_utm

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class GroupsConfig:
    """Definition of classes and groups; defaults are CosPlace's.

    Attributes:
        cell_size_m: M, side of a square.
        heading_step_deg: α; null ignores headings.
        cells_between: N; 1 puts all squares into one group.
        headings_between: L; 1 puts all headings into one group.
        min_images_per_class: classes with fewer are left out.
    """

    cell_size_m: float = 10.0
    heading_step_deg: float | None = 30.0
    cells_between: int = 5
    headings_between: int = 2
    min_images_per_class: int = 10

    def __post_init__(self) -> None:
        if not self.cell_size_m > 0:
            raise ConfigError(f"groups.cell_size_m is {self.cell_size_m}; it must be positive")
        for name in ("cells_between", "headings_between", "min_images_per_class"):
            if getattr(self, name) < 1:
                raise ConfigError(f"groups.{name} is {getattr(self, name)}; it must be at least 1")
        if (step := self.heading_step_deg) is None:
            return
        around = step * self.headings_between
        if not 0 < step <= 360 or abs(360 / around - round(360 / around)) > 1e-9:
            raise ConfigError(
                f"groups.heading_step_deg is {step:g} with headings_between {self.headings_between}: a circle must be "
                f"a whole number of {around:g} degrees, or the first and the last heading of a group are adjacent"
            )


@dataclass(frozen=True)
class PlaceGroups:
    """Classes and their groups.

    Attributes:
        config: config of the classes.
        class_keys: (C, 5) ascending: zone (negative in the south), ⌊E / M⌋, ⌊N / M⌋, ⌊heading / α⌋, number of photos.
        class_of_photo: (n,) row of `class_keys`, -1 for photos of classes with too few photos.
        group_of_class: (C,) group of each class.
        group_keys: (G, 3) ascending: remainders of E, N and heading.
    """

    config: GroupsConfig
    class_keys: IntArray
    class_of_photo: IntArray
    group_of_class: IntArray
    group_keys: IntArray

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each group."""
        n, headings = self.config.cells_between, self.config.headings_between
        parts = [f"east {e} of {n}, north {north} of {n}" for e, north, _ in self.group_keys.tolist()]
        if self.config.heading_step_deg is None:
            return tuple(parts)
        return tuple(
            f"{part}, heading {key[2]} of {headings}"
            for part, key in zip(parts, self.group_keys.tolist(), strict=True)
        )

    @property
    def num_classes(self) -> IntArray:
        """(G,) number of classes of each group."""
        return np.bincount(self.group_of_class, minlength=len(self.group_keys))

    def class_ids(self, group: int) -> IntArray:
        """(n,) class of each photo inside a group, counted from 0; -1 for photos of other groups."""
        inside = self.group_of_class == group
        number = np.append(np.where(inside, np.cumsum(inside) - 1, -1), -1)
        return np.asarray(number[self.class_of_photo])

    def trainable(self, num_groups: int) -> list[int]:
        """The first groups with at least two classes.

        Raises:
            ConfigError: there is none.
        """
        found = np.flatnonzero(self.num_classes >= 2)[:num_groups].tolist()
        if not found:
            one = "there is one class only" if len(self.class_keys) == 1 else "no group has two classes"
            c = self.config
            raise ConfigError(
                f"{one}: {len(self.class_keys)} classes of {c.cell_size_m:g} m with at least {c.min_images_per_class} "
                f"photos each in {len(self.group_keys)} groups, and a classifier needs two classes: lower "
                "groups.cells_between, headings_between or min_images_per_class, or add photos of more places"
            )
        return [int(group) for group in found]


def place_groups(
    latlon_deg: ArrayLike, heading_deg: ArrayLike | None = None, config: GroupsConfig | None = None
) -> PlaceGroups:
    """Classes and groups of photos.

    Args:
        latlon_deg: (n, 2).
        heading_deg: (n,) clockwise from north, any real number; needed if the config uses headings.
        config: CosPlace's by default.

    Raises:
        ConfigError: a heading is missing, every class has too few photos, or a point is beyond 84 N or 80 S.
        InvalidCoordinateError: a coordinate is invalid.
    """
    config = config or GroupsConfig()
    utm = to_utm(latlon_deg)
    size = config.cell_size_m
    east, north = (np.floor(metres / size).astype(np.int64) for metres in (utm.east_m, utm.north_m))
    heading = _heading_steps(len(east), heading_deg, config)
    zone = np.where(utm.is_north, utm.zone, -utm.zone)
    keys, class_of_photo, counts = np.unique(
        np.stack([zone, east, north, heading], -1), axis=0, return_inverse=True, return_counts=True
    )
    kept = counts >= config.min_images_per_class
    if not kept.any():
        raise ConfigError(_too_few(counts, config))
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    class_keys = np.concatenate([keys, counts[:, None]], -1)[kept]
    left = np.array([config.cells_between, config.cells_between, config.headings_between])
    group_keys, group_of_class = np.unique(class_keys[:, 1:4] % left, axis=0, return_inverse=True)
    return PlaceGroups(
        config,
        class_keys,
        number[class_of_photo.ravel()],
        group_of_class.ravel().astype(np.int64),
        group_keys,
    )


def _heading_steps(num: int, heading_deg: ArrayLike | None, config: GroupsConfig) -> IntArray:
    if config.heading_step_deg is None:
        return np.zeros(num, np.int64)
    headings = np.full(num, np.nan) if heading_deg is None else np.asarray(heading_deg, np.float64)
    if missing := int((~np.isfinite(headings)).sum()):
        raise ConfigError(
            f"{missing:,} of {num:,} photos have no heading, "
            f"which groups.heading_step_deg={config.heading_step_deg:g} needs: add headings, "
            "leave those photos out, or set groups.heading_step_deg=null to ignore headings"
        )
    return np.floor(headings % 360 % 360 / config.heading_step_deg).astype(np.int64)  # -1e-20 % 360 is 360


def _too_few(counts: IntArray, config: GroupsConfig) -> str:
    return (
        f"no class has groups.min_images_per_class={config.min_images_per_class} photos: {counts.sum():,} photos fall "
        f"into {len(counts):,} classes, and the largest has {counts.max(initial=0)}; lower min_images_per_class, or "
        f"widen the classes (cell_size_m={config.cell_size_m:g}, heading_step_deg={config.heading_step_deg})"
    )
