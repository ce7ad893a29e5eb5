import csv
import json
import tracemalloc
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoloc.errors import ConfigError
from geoloc.geo.places import Place
from geoloc.localize.table import COLUMNS, TRUTH_COLUMNS, make_row, read_rows, with_truth, write_rows
from geoloc.posterior.prediction import Atom, Candidate, Prediction

SUFFIXES = ["csv", "geojson", "parquet"]

PREDICTION = Prediction(
    lat=55.70584321,
    lon=13.19321,
    cell_path="0312",
    probability=0.8125,
    candidates=(
        Candidate(55.7, 13.2, 0.8125, "cell", None, "0312"),
        Candidate(-33.9, 151.2, 0.1, "aerial", 0.75, "tile-7"),
    ),
    radius_km={50: 12.34567, 90: 80.0},
    place=Place("Lund", "Skane", "Lund", "SE", (55.70584, 13.19321), 0.4),
)
GOOD = make_row("a/photo.jpg", PREDICTION)
BAD = make_row("b.jpg", None, "truncated JPEG")


def test_a_row_of_a_prediction():
    assert GOOD == {
        "id": "a/photo.jpg",
        "latitude": 55.705843,
        "longitude": 13.19321,
        "place": "Lund, Skane, SE",
        "country_code": "SE",
        "cell_path": "0312",
        "probability": 0.8125,
        "radius_50_km": 12.346,
        "radius_90_km": 80.0,
        "abstained": False,
        "error": None,
        "candidates": [
            {
                "lat": 55.7,
                "lon": 13.2,
                "probability": 0.8125,
                "source": "cell",
                "similarity": None,
                "key": "0312",
                "database": "",
            },
            {
                "lat": -33.9,
                "lon": 151.2,
                "probability": 0.1,
                "source": "aerial",
                "similarity": 0.75,
                "key": "tile-7",
                "database": "",
            },
        ],
    }
    assert tuple(GOOD) == tuple(BAD) == COLUMNS


def test_a_row_of_an_error_holds_nothing_else():
    assert {name: value for name, value in BAD.items() if value is not None} == {
        "id": "b.jpg",
        "error": "truncated JPEG",
        "candidates": [],
    }


def test_a_prediction_without_calibration_and_place():
    row = make_row("x", Prediction(1.0, 2.0, "", 1.0))
    assert [row[name] for name in ("place", "country_code", "radius_50_km", "radius_90_km")] == [None] * 4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_picture_of_the_posterior_is_in_the_row_and_in_no_table(tmp_path, suffix):
    picture = (Atom(55.7, 13.2, 0.75, 12.5), Atom(-33.9, 151.2, 0.25, 0.0))
    row = make_row("a/photo.jpg", replace(PREDICTION, posterior=picture))
    assert row == GOOD | {"posterior": [[55.7, 13.2, 0.75, 12.5], [-33.9, 151.2, 0.25, 0.0]]}
    with_picture, without = tmp_path / f"with.{suffix}", tmp_path / f"without.{suffix}"
    write_rows(with_picture, [row, BAD])
    write_rows(without, [GOOD, BAD])
    assert with_picture.read_bytes() == without.read_bytes()
    assert list(read_rows(with_picture)) == [GOOD, BAD]


def test_the_truth_and_the_distance_to_it():
    # A degree of a meridian is pi / 180 * 6371.0088 km = 111.195 km.
    row = with_truth(make_row("x", Prediction(1.0, 2.0, "", 1.0)), (2.0, 2.0))
    assert [row[name] for name in TRUTH_COLUMNS] == [2.0, 2.0, 111.195]
    assert [with_truth(BAD, (2.0, 2.0))[name] for name in TRUTH_COLUMNS] == [2.0, 2.0, None]
    assert [with_truth(GOOD, None)[name] for name in TRUTH_COLUMNS] == [None, None, None]


def test_csv_as_others_read_it(tmp_path):
    write_rows(tmp_path / "out.csv", [GOOD, BAD])
    with open(tmp_path / "out.csv", newline="") as file:
        header, good, bad = csv.reader(file)
    assert header == list(COLUMNS)
    assert header[:3] == ["id", "latitude", "longitude"]
    assert good[:11] == [
        *("a/photo.jpg", "55.705843", "13.19321", "Lund, Skane, SE", "SE", "0312", "0.8125"),
        *("12.346", "80.0", "false", ""),
    ]
    assert json.loads(good[11]) == GOOD["candidates"]
    assert bad == ["b.jpg", *[""] * 9, "truncated JPEG", "[]"]


def test_geojson_as_others_read_it(tmp_path):
    write_rows(tmp_path / "out.geojson", [GOOD, BAD])
    collection = json.loads((tmp_path / "out.geojson").read_text())
    assert collection.keys() == {"type", "features"}
    assert collection["type"] == "FeatureCollection"
    good, bad = collection["features"]
    assert good == {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [13.19321, 55.705843]},
        "properties": GOOD,
    }
    assert bad == {"type": "Feature", "geometry": None, "properties": BAD}


def test_parquet_as_others_read_it(tmp_path):
    write_rows(tmp_path / "out.parquet", [GOOD, with_truth(BAD, None)], truth=False)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == list(COLUMNS)
    types = {name: table.schema.field(name).type for name in COLUMNS}
    assert types.pop("abstained") == pa.bool_()
    floats = ["latitude", "longitude", "probability", "radius_50_km", "radius_90_km"]
    assert {name for name, kind in types.items() if kind == pa.float64()} == set(floats)
    assert {kind for name, kind in types.items() if name not in floats} == {pa.string()}
    assert table["latitude"].to_pylist() == [55.705843, None]
    assert table["abstained"].to_pylist() == [False, None]
    assert json.loads(table["candidates"][0].as_py()) == GOOD["candidates"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_columns_of_the_truth_are_there_when_asked_for(tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    rows = [with_truth(GOOD, (50.0, 8.0)), with_truth(BAD, None)]
    write_rows(path, rows, truth=True)
    assert list(read_rows(path)) == rows
    write_rows(path, rows)
    assert list(read_rows(path)) == [GOOD, BAD]


@pytest.mark.parametrize("suffix", [*SUFFIXES, "CSV"])
def test_a_table_without_rows(tmp_path, suffix):
    write_rows(tmp_path / f"out.{suffix}", [])
    assert list(read_rows(tmp_path / f"out.{suffix}")) == []


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
shares = st.floats(0, 1)


@st.composite
def predictions(draw):
    latitude, longitude = st.floats(-90, 90), st.floats(-180, 180, exclude_max=True)
    candidate = st.builds(Candidate, latitude, longitude, shares, names, st.none() | shares, names)
    place = st.builds(Place, names, names, names, names, st.just((0.0, 0.0)), st.floats(0, 20000))
    return Prediction(
        lat=draw(latitude),
        lon=draw(longitude),
        cell_path=draw(st.text("0123", max_size=5)),
        probability=draw(shares),
        candidates=tuple(draw(st.lists(candidate, max_size=2))),
        radius_km=draw(st.dictionaries(st.sampled_from([50, 90]), st.floats(0, 2e4))),
        place=draw(st.none() | place),
        abstained=draw(st.booleans()),
    )


rows_of_any_kind = st.lists(
    st.builds(make_row, names, predictions()) | st.builds(make_row, names, st.none(), names), max_size=4
)


@given(rows_of_any_kind)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_row_comes_back_exactly(tmp_path_factory, suffix, rows):
    path = tmp_path_factory.mktemp("any") / f"out.{suffix}"
    write_rows(path, rows)
    assert list(read_rows(path)) == rows
    first = path.read_bytes()
    write_rows(path, read_rows(path))
    assert path.read_bytes() == first


def test_an_error_text_with_undecodable_bytes_can_be_written(tmp_path):
    write_rows(tmp_path / "out.csv", [make_row("x", None, "no file caf\udce9.jpg")])
    assert next(iter(read_rows(tmp_path / "out.csv")))["error"] == "no file caf\\udce9.jpg"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    write_rows(path, [GOOD])
    before = path.read_bytes()

    def failing():
        yield BAD
        raise RuntimeError("the journal is gone")

    with pytest.raises(RuntimeError, match="the journal is gone"):
        write_rows(path, failing())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow_with_the_table(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("geoloc.localize.table._ROWS_PER_GROUP", 50)
    path = tmp_path / f"out.{suffix}"
    write_rows(path, [GOOD])  # loads what it needs
    tracemalloc.start()
    try:
        write_rows(path, (dict(GOOD, id=f"{n:05000}") for n in range(1000)))
        assert sum(1 for _ in read_rows(path)) == 1000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1e6  # all ids together are 5 MB


@pytest.mark.parametrize("name", ["out", "out.json", "out.csv.gz", ".csv"])
def test_an_unknown_suffix(tmp_path, name):
    with pytest.raises(
        ConfigError, match=r"names no format of tables; known are \.csv, \.geojson, \.parquet"
    ):
        write_rows(tmp_path / name, [])
    assert list(tmp_path.iterdir()) == []
