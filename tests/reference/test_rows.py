import numpy as np
import pytest

from geoloc.errors import ConfigError
from geoloc.reference.rows import SCHEMA, ReferenceRows
from quadtree.errors import InvalidCoordinateError
from quadtree.morton import encode

PARIS, FIJI = [48.8566, 2.3522], [-17.7, 181.0]


def test_what_goes_in_comes_out_in_the_columns_of_the_schema() -> None:
    rows = ReferenceRows(
        [PARIS, FIJI, [90.0, 180.0]],
        source=["aerial", "street", "location"],
        key=["tile/1", "ü.jpg", ""],
        gsd_m_per_px=[0.2, np.nan, np.nan],
        heading_deg=[np.nan, -90.0, np.nan],
        provenance="survey of 2021",
        licence=["CC0-1.0", "CC-BY-4.0", ""],
    )
    assert len(rows) == 3
    table = rows.to_table(1, 3, first_row_id=70)
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [
        {
            "row_id": 70,
            "latitude": -17.7,
            "longitude": -179.0,
            "morton": int(encode([-17.7, -179.0])),
            "source": "street",
            "key": "ü.jpg",
            "gsd_m_per_px": None,
            "heading_deg": 270.0,
            "provenance": "survey of 2021",
            "licence": "CC-BY-4.0",
        },
        {
            "row_id": 71,
            "latitude": 90.0,
            "longitude": -180.0,
            "morton": int(encode([90.0, -180.0])),
            "source": "location",
            "key": "",
            "gsd_m_per_px": None,
            "heading_deg": None,
            "provenance": "survey of 2021",
            "licence": "",
        },
    ]
    assert rows.to_table(0, 1, first_row_id=0)["gsd_m_per_px"].to_pylist() == [0.2]


def test_no_rows_are_rows() -> None:
    rows = ReferenceRows(np.zeros((0, 2)), source="aerial", key=[])
    assert len(rows) == 0
    assert rows.to_table(0, 0, first_row_id=5).num_rows == 0


@pytest.mark.parametrize("heading_deg", [-1e-300, 360.0, -360.0, 719.9])
def test_headings_are_turned_into_one_circle(heading_deg: float) -> None:
    rows = ReferenceRows([PARIS], source="street", key=["a"], heading_deg=heading_deg)
    (found,) = rows.to_table(0, 1, first_row_id=0)["heading_deg"].to_pylist()
    assert 0.0 <= found < 360.0
    assert np.isclose(np.cos(np.radians(found)), np.cos(np.radians(heading_deg)))


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"source": "drone"}, "source is 'drone'; it must be one of aerial, street, location"),
        ({"source": ["aerial"]}, "source has 1 values, and latlon_deg 2 rows"),
        ({"key": "ab"}, "key is the single string 'ab'; give a list"),
        ({"key": ["a"]}, "key has 1 values, and latlon_deg 2 rows"),
        ({"key": ["a", 7]}, "key must be strings; found 7"),
        ({"licence": ["a", "b", "c"]}, "licence has 3 values"),
        ({"gsd_m_per_px": [0.2, 0.0]}, "gsd_m_per_px must be positive, or NaN where unknown; found 0.0"),
        ({"gsd_m_per_px": [0.2]}, r"gsd_m_per_px has shape \(1,\), and latlon_deg 2 rows"),
        ({"heading_deg": np.inf}, "heading_deg must be finite, or NaN where unknown"),
        ({"latlon_deg": PARIS}, r"latlon_deg of rows must have shape \(n, 2\); found \(2,\)"),
    ],
)
def test_impossible_columns_are_refused(columns: dict, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ReferenceRows(**{"latlon_deg": [PARIS, FIJI], "source": "aerial", "key": ["a", "b"], **columns})


def test_places_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidCoordinateError, match=r"latitude of point 1 is not valid"):
        ReferenceRows([PARIS, PARIS[::-1], [91.0, 0.0]][::2], source="aerial", key=["a", "b"])
