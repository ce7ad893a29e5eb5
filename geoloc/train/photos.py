"""Training and validation photos of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from geoloc.data.layouts import open_layout
from geoloc.data.sample import SampleTable
from geoloc.data.splits import Split, split_by_cells, split_by_sequence, split_osv5m
from geoloc.errors import ConfigError
from quadtree import build_quadtree

_MAX_DEPTH = 20  # a cell of 20 m by 40 m


@dataclass(frozen=True)
class PhotoSet:
    """All photos of a table or of a split of a layout.

    Attributes:
        path: a table of samples (.parquet), or the folder of a layout.
        layout: layout of the folder; see `geoloc.data.layouts`.
        split: split of the layout; null takes its first.
    """

    path: str
    layout: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        _check_layout(self.path, self.layout)

    def open(self) -> SampleTable:
        """The photos.

        Raises:
            NotFoundError: there is no such file or folder.
            BadTableError: it is no table of samples, or a row of the layout is broken.
        """
        if self.layout is None:
            return SampleTable.read(self.path)
        return open_layout(self.layout, self.path, self.split)


@dataclass(frozen=True)
class PhotosConfig:
    """Photos with locations, and how some are held out for validation.

    Attributes:
        path: a table of samples (.parquet), or the folder of a layout.
        layout: layout of the folder; see `geoloc.data.layouts`.
        split: split of the layout; null takes its first, the training photos.
        validation_share: share of the photos that is held out; 0 holds out none.
        held_out_by: "cells" holds out whole cells of a quadtree, so that no held-out photo has a neighbour in training;
            "sequence" holds out whole drives; "osv5m" is the published split, whose photos have neighbours in training.
        buffer_km: with "cells", photos within this distance of a held-out one are left out of both sets.
        seed: seed of the split.
        utm_epsg: EPSG code of the UTM zone of a "vg" layout whose file names lack the zone.
    """

    path: str
    layout: str | None = None
    split: str | None = None
    validation_share: float = 0.1
    held_out_by: Literal["cells", "sequence", "osv5m"] = "cells"
    buffer_km: float = 1.0
    seed: int = 42
    utm_epsg: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"data.validation_share is {self.validation_share}; it must be in [0, 1)")
        _check_layout(self.path, self.layout)

    def open(self) -> tuple[SampleTable, SampleTable | None]:
        """The training photos and the held-out photos.

        Raises:
            NotFoundError: there is no such file or folder.
            BadTableError: it is no table of samples, or a row of the layout is broken.
            ConfigError: no training photos would be left, or there is no column of sequences.
        """
        table = (
            SampleTable.read(self.path)
            if self.layout is None
            else open_layout(self.layout, self.path, self.split, utm_epsg=self.utm_epsg)
        )
        if not self.validation_share:
            return table, None
        split = self._split(table)
        if not len(split.train):
            raise ConfigError(
                f"all {len(table)} photos are held out, or within data.buffer_km={self.buffer_km} of one that is: "
                "lower it, or set data.validation_share=0"
            )
        return table.take(split.train), table.take(split.held_out)

    def _split(self, table: SampleTable) -> Split:
        share, seed = self.validation_share, self.seed
        if self.held_out_by == "osv5m":
            return split_osv5m(table.latlon_deg, share, seed)
        if self.held_out_by == "sequence":
            return split_by_sequence(table.codes("sequence")[0], share, seed)
        # Coarse cells, so that their interior is far from training photos, and enough of them to choose from.
        tree = build_quadtree(table.latlon_deg, max(2, len(table) // 200), _MAX_DEPTH)
        cells = tree.assign(table.latlon_deg)
        return split_by_cells(
            np.asarray(table.latlon_deg), cells, share=share, buffer_km=self.buffer_km, seed=seed
        )


def _check_layout(path: str, layout: str | None) -> None:
    if (layout is None) != path.endswith(".parquet"):
        raise ConfigError(
            f"data.path is {path!r} with data.layout {layout!r}: a .parquet table of samples has no layout, and a "
            "folder needs one"
        )
