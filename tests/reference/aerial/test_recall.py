"""Statewide's recall@k<r over metric cells, on a case worked by hand.

Four cells of 30 m stand in a row from west to east, their centres at 15, 45, 75 and 105 m. Four photos, with three
answers each:

photo at    its cell   answers (centres)   distances        its cell comes
      20        15     45, 15, 75          25, 5, 55        second
      58        45     75, 45, 105         17, 13, 47       second: a neighbour came first
      75        75     15, 105, 45         60, 30, 30       never
     100       105     105, 75, 15         5, 25, 85        first
"""

import numpy as np
import pytest

from geoloc.metrics.cells import statewide_recall
from geoloc.reference.aerial import CellGrid

PHOTOS_M = np.array([20.5, 58.0, 75.0, 100.0])  # so that 45 is 24.5 m away, and no distance is an edge case
ANSWERS_M = np.array([[45, 15, 75], [75, 45, 105], [15, 105, 45], [105, 75, 15]], float)

BY_HAND = {
    "0": {"1": 1 / 4, "2": 3 / 4, "3": 3 / 4},
    "25": {"1": 3 / 4, "2": 3 / 4, "3": 3 / 4},
    "50": {"1": 3 / 4, "2": 1.0, "3": 1.0},
    "100": {"1": 1.0, "2": 1.0, "3": 1.0},
}


@pytest.mark.parametrize("latlon_deg", [(60.0, 25.0), (-33.9, 151.2), (0.0001, -0.0001), (85.0, 179.0)])
def test_by_hand(latlon_deg: tuple[float, float]) -> None:
    grid = CellGrid(30)
    row, column = grid.cell_of([latlon_deg])[0]
    west, east = grid.points_latlon_deg(np.array([[row, column], [row, column + 1]]), 0.5, 0.0)

    def on_ground(metres: np.ndarray) -> np.ndarray:
        return west + metres[..., None] / 30 * (east - west)

    truth, answers = on_ground(PHOTOS_M), on_ground(ANSWERS_M)
    cells = grid.cell_of(answers.reshape(-1, 2)).reshape(4, 3, 2)
    np.testing.assert_allclose(
        grid.center_latlon_deg(cells.reshape(-1, 2)).reshape(4, 3, 2), answers, atol=1e-9
    )
    contains = (cells == grid.cell_of(truth)[:, None]).all(-1)
    found = statewide_recall(
        truth, answers, contains, cell_size_m=30, at=(1, 2, 3), within_m=(0, 25, 50, 100)
    )
    assert found == BY_HAND
