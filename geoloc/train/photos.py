"""Which photos a training sees, and which it is measured with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geoloc.data.sample import SampleTable
from geoloc.errors import ConfigError
from quadtree import build_quadtree


@dataclass(frozen=True)
class PhotosConfig:
    """Photos with positions.

    Attributes:
        path: a table of samples (.parquet), or the folder of a layout.
        layout: of the folder; see `geoloc.data.layouts`.
        split: of the layout, where it has some.
        validation_share: of the photos that are held out, in whole cells of a coarse quadtree, so that training has
            seen none of their neighbours; 0 holds out none.
        seed: of the choice of those cells.
    """

    path: str
    layout: str | None = None
    split: str = "train"
    validation_share: float = 0.1
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"data.validation_share is {self.validation_share}; it must be in [0, 1)")
        if (self.layout is None) != self.path.endswith(".parquet"):
            raise ConfigError(
                f"data.path is {self.path!r} with data.layout {self.layout!r}: a .parquet table of samples has no "
                "layout, and a folder needs one"
            )

    def open(self) -> tuple[SampleTable, SampleTable | None]:
        """The training photos, and those held out.

        Raises:
            NotFoundError: there is no such file or folder.
            BadTableError: it is no table of samples, or a row of the layout is broken.
        """
        table = self._table()
        if not self.validation_share:
            return table, None
        tree = build_quadtree(table.latlon_deg, max(2, len(table) // 100), max_depth=10)
        cells = tree.assign(table.latlon_deg)
        order = np.random.default_rng(self.seed).permutation(tree.num_cells)
        counts = np.bincount(cells, minlength=tree.num_cells)[order]
        chosen = order[np.cumsum(counts) <= max(self.validation_share * len(table), counts[0])]
        is_held_out = np.isin(cells, chosen)
        if is_held_out.all():
            raise ConfigError(
                f"{len(table)} photos lie in one place, and nothing is left to train on: set data.validation_share=0"
            )
        return table.take(np.flatnonzero(~is_held_out)), table.take(np.flatnonzero(is_held_out))

    def _table(self) -> SampleTable:
        if self.layout is None:
            return SampleTable.read(self.path)
        from geoloc.data.layouts import open_layout

        return open_layout(self.layout, self.path, self.split)
