"""Every row that does not fit is counted and named; the sums are those of the two tables."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoloc.errors import BadTableError
from geoloc.evaluate.matching import match
from geoloc.files.tables import PointTable

NAN = float("nan")


def table(rows, name="t.csv"):
    ids = np.array([row[0] for row in rows], np.object_)
    return PointTable(Path(name), ids, np.array([row[1:] for row in rows], np.float64).reshape(-1, 2))


def test_every_problem_by_hand():
    truth = table(
        [
            ("a", 1, 1),
            ("b", 2, 181),
            ("c", NAN, 1),
            ("d", 91, 1),
            ("a", 5, 5),
            ("e", 3, 3),
            ("f", 4, 4),
            ("g", 5, 5),
            ("h", 6, np.inf),
        ]
    )
    predictions = table(
        [("g", 0, 541), ("zz", 0, 0), ("b", NAN, 0), ("e", -90.5, 0), ("a", 7, 7), ("a", 8, 8), ("c", 0, 0)]
    )
    found = match(truth, predictions)
    assert found.ids.tolist() == ["a", "b", "e", "f", "g"]
    np.testing.assert_array_equal(found.truth_latlon_deg, [[1, 1], [2, -179], [3, 3], [4, 4], [5, 5]])
    np.testing.assert_array_equal(
        found.predicted_latlon_deg, [[7, 7], [NAN, NAN], [NAN, NAN], [NAN, NAN], [0, -179]]
    )
    assert {name: (p["count"], p["examples"]) for name, p in found.problems.to_dict().items()} == {
        "truth_without_position": (1, ["c"]),
        "truth_out_of_range": (2, ["d", "h"]),
        "truth_duplicated": (1, ["a"]),
        "missing": (1, ["f"]),
        "nan": (1, ["b"]),
        "out_of_range": (1, ["e"]),
        "duplicated": (1, ["a"]),
        "extra": (1, ["zz"]),
    }
    assert "first row counts" in found.problems.to_dict()["duplicated"]["meaning"]


def test_a_subset():
    truth = table([("a", 1, 1), ("b", 2, 2), ("c", 3, 3)])
    found = match(truth, truth, ["c", "a"])
    assert found.ids.tolist() == ["a", "c"]
    assert found.problems.to_dict()["outside_subset"]["examples"] == ["b"]
    with pytest.raises(BadTableError, match=r"1 ids of the subset are not in t.csv, 'x' among them"):
        match(truth, truth, ["a", "x"])


def test_nothing_to_evaluate():
    with pytest.raises(BadTableError, match=r"t.csv has no image that can be evaluated among 1 rows"):
        match(table([("a", NAN, 1)]), table([("a", 1, 1)]))


def test_only_ten_examples_are_kept():
    found = match(table([(str(i), 1, 1) for i in range(30)]), table([("x", 1, 1), ("9", 1, 1)]))
    assert found.problems.counts["missing"] == 29
    assert found.problems.examples["missing"] == [*map(str, range(9)), "10"]
    assert len(found.part(slice(3, 9))) == 6


ROWS = st.lists(
    st.tuples(
        st.sampled_from("abcdef"), st.sampled_from([1.0, 95.0, NAN]), st.sampled_from([2.0, 200.0, np.inf])
    ),
    max_size=12,
)


@given(ROWS, ROWS)
def test_no_row_is_lost(true_rows, predicted_rows):
    truth, predictions = (table([("ok", 1, 1), *rows]) for rows in (true_rows, predicted_rows))
    found = match(truth, predictions)
    counts = found.problems.counts
    dropped = sum(
        counts.get(f"truth_{name}", 0) for name in ("without_position", "out_of_range", "duplicated")
    )
    assert len(found) + dropped == len(truth)
    answered = np.isfinite(found.predicted_latlon_deg).all(axis=1).sum()
    assert answered + sum(counts.get(name, 0) for name in ("missing", "nan", "out_of_range")) == len(found)
    true_ids, first = set(truth.ids), dict.fromkeys(predictions.ids)
    assert counts.get("extra", 0) == sum(name not in true_ids for name in first)
    assert counts.get("duplicated", 0) == len(predictions) - len(first)


def test_predictions_for_other_images_are_no_score_of_zero():
    truth = table([("a.jpg", 1, 1), ("b.jpg", 2, 2)])
    strangers = table([("photos/a.jpg", 1, 1), ("photos/b.jpg", 2, 2)], "p.csv")
    with pytest.raises(
        BadTableError, match=r"no id of p\.csv is in t\.csv: ids are like 'photos/a\.jpg' there and 'a"
    ):
        match(truth, strangers)
    assert match(truth, table([])).problems.counts == {"missing": 2}
    assert match(truth, table([("b.jpg", 2, 2)]), ["a.jpg"]).problems.counts["missing"] == 1
