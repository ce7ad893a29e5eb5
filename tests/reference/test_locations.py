from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from embedders import contents, rows_of

from geoloc.errors import ConfigError
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.locations import read_locations
from quadtree import InvalidCoordinateError

LATLON = np.array([[10.0, 20.0], [-30.5, 179.0], [80.0, -170.25]])


def encoder(latlon_deg: Any) -> Any:
    """A little like GeoCLIP's: random Fourier features of the coordinates, not of unit length."""
    frequencies = np.random.default_rng(0).normal(size=(2, 8))
    phase = np.radians(latlon_deg) @ frequencies
    return 3.0 * np.concatenate([np.sin(phase), np.cos(phase)], -1)


def create(folder: Path) -> ReferenceDatabase:
    return ReferenceDatabase.create(folder, dim=16, model_fingerprint="encoder")


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_a_gallery_by_an_encoder_of_arrays_or_tensors_or_ready_vectors(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "arrays": encoder,
        "tensors": lambda latlon: torch.from_numpy(encoder(latlon)).requires_grad_(),
        "ready": encoder(LATLON),
    }
    for name, vectors in given.items():
        database = create(tmp_path / name)
        report = database.add_locations(LATLON, vectors, provenance="gallery", licence="MIT")
        assert report.num_rows == 3
        for number, (row, vector) in sorted((int(key), found) for key, found in rows_of(database).items()):
            assert (row["latitude"], row["longitude"]) == tuple(LATLON[number])
            assert (row["source"], row["provenance"], row["licence"]) == ("location", "gallery", "MIT")
            np.testing.assert_allclose(vector, unit(encoder(LATLON[number])), atol=1e-6)


def test_many_locations_in_shards_are_the_same_as_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    latlon = np.stack([rng.uniform(-90, 90, 1000), rng.uniform(-180, 180, 1000)], -1)
    create(tmp_path / "a").add_locations(latlon, encoder)
    monkeypatch.setattr("geoloc.reference.locations.LOCATIONS_PER_SHARD", 64)
    create(tmp_path / "b").add_locations(latlon, encoder)
    a, b = (rows_of(ReferenceDatabase.open(tmp_path / name)) for name in "ab")
    assert a.keys() == b.keys()
    for key, (row, vector) in a.items():
        assert b[key][0] == row
        np.testing.assert_allclose(b[key][1], vector, atol=1e-6)


def test_another_database_of_the_same_is_the_same(tmp_path: Path) -> None:
    for name in "ab":
        create(tmp_path / name).add_locations(LATLON, encoder, keys=["x", "y", "z"])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_tables_of_coordinates_and_embeddings(tmp_path: Path) -> None:
    columns = {"latitude": LATLON[:, 0], "longitude": LATLON[:, 1], "id": ["x", "y", "z"]}
    pq.write_table(
        pa.table({**columns, "embedding": encoder(LATLON).astype(np.float32).tolist()}),
        tmp_path / "a.parquet",
    )
    latlon, vectors, keys = read_locations(tmp_path / "a.parquet")
    np.testing.assert_array_equal(latlon, LATLON)
    np.testing.assert_allclose(vectors, encoder(LATLON), atol=1e-6)
    assert keys == ["x", "y", "z"]
    (tmp_path / "b.csv").write_text("latitude,longitude\n1,2\n3,4\n")
    latlon, vectors, keys = read_locations(tmp_path / "b.csv")
    assert (latlon.tolist(), vectors, keys) == ([[1, 2], [3, 4]], None, None)
    pq.write_table(pa.table({**columns, "embedding": [[1.0], [1.0, 2.0], None]}), tmp_path / "c.parquet")
    with pytest.raises(
        ConfigError, match=r"c\.parquet has embeddings of different lengths, or none in some rows"
    ):
        read_locations(tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("latitude,longitude\nx,2\n")
    with pytest.raises(ConfigError, match=r"d\.csv has coordinates that are not numbers"):
        read_locations(tmp_path / "d.csv")


@pytest.mark.parametrize(
    ("latlon", "vectors", "keys", "text"),
    [
        (LATLON, np.ones((2, 16)), None, "there are 3 locations and 2 vectors: give one for each"),
        (LATLON, encoder, ["a"], "there are 3 locations and 1 keys: give one for each"),
        (LATLON[:0], encoder, None, r"locations are \(n, 2\) coordinates, at least one; found \(0, 2\)"),
        (LATLON, np.zeros((3, 16)), None, r"need vectors \(3, dim\), none of them zero; found \(3, 16\)"),
        (LATLON, lambda latlon: np.ones(16), None, r"need vectors \(3, dim\)"),
        (
            LATLON,
            np.ones((3, 5)),
            None,
            r"vectors have shape \(3, 5\), and 3 rows of this database need \(3, 16\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, latlon: Any, vectors: Any, keys: Any, text: str
) -> None:
    database = create(tmp_path / "refs")
    with pytest.raises(ConfigError, match=text):
        database.add_locations(latlon, vectors, keys=keys)
    assert len(database) == 0


def test_a_coordinate_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidCoordinateError):
        create(tmp_path / "refs").add_locations([[91.0, 0.0]], encoder)
