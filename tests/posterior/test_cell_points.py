"""Offsets decoded in NumPy against the head that trains them."""

import numpy as np
import pytest
import torch
from tiny import tiny_quadtree

from geoloc.models.config import OffsetHeadConfig
from geoloc.models.heads import OffsetHead
from geoloc.posterior.cells import points_in_cells

TREE = tiny_quadtree()


@pytest.mark.parametrize("origin", ["representative", "box"])
@pytest.mark.parametrize("shared", [False, True])
def test_points_are_those_of_the_head(origin, shared):
    config = OffsetHeadConfig(hidden_dims=(), origin=origin, shared=shared)
    head = OffsetHead(8, config, TREE.bounds_deg, TREE.center_latlon_deg)
    rng = np.random.default_rng(0)
    offsets = rng.uniform(-1.2, 1.2, (3, 1 if shared else TREE.num_cells, 2)).astype(np.float32)
    chosen = [rng.permutation(TREE.num_cells)[:k] for k in (1, 5, TREE.num_cells)]
    found = points_in_cells(TREE, chosen, config, offsets)
    for row, cells, points in zip(offsets, chosen, found, strict=True):
        ids = torch.from_numpy(cells)[None]
        expected = head.to_latlon_deg(head.of_cells(torch.from_numpy(row)[None], ids), ids)[0].numpy()
        assert points.shape == (len(cells), 2)
        assert np.array_equal(points, expected)


def test_without_offsets_a_cell_is_its_representative_point():
    (points,) = points_in_cells(TREE, [np.array([3, 0])], None, None)
    assert np.array_equal(points, TREE.center_latlon_deg[[3, 0]])
