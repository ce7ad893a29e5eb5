"""What the table of earthview says of abstaining, on distances worked by hand."""

import numpy as np
import pytest

from projects.earthview.table import Row, answered, answered_to_markdown


def test_the_surest_are_answered_first_and_the_limit_is_the_widest_of_them():
    distance_km = np.array([900.0, 10.0, 100.0, 3000.0])
    radius_km = np.array([400.0, 50.0, 200.0, 2000.0])
    by_share = {row["share"]: row for row in answered(distance_km, radius_km)}
    assert {share: row["max_radius_km"] for share, row in by_share.items()} == {
        1.0: 2000.0,
        0.75: 400.0,
        0.5: 200.0,
        0.25: 50.0,
    }
    assert by_share[0.75]["median_km"] == 100.0
    assert by_share[0.5]["median_km"] == 55.0
    assert by_share[0.5]["geoscore"] == pytest.approx(
        np.mean([5000 * np.exp(-10 / 1492.7), 5000 * np.exp(-100 / 1492.7)])
    )
    assert by_share[0.25]["accuracy_within_km"]["25"] == 1.0
    table = answered_to_markdown([Row("E", "+ reranker", {"answered": list(by_share.values())}, 1.0)])
    assert table.splitlines()[3].startswith("| E | 75% | 400 km | ")
    assert len(table.splitlines()) == 2 + 4
