"""Databases of references as datasets on a Hub on loopback: whole, by region, resumed, refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer, Repository, with_manifest

from geoloc.errors import ConfigError, FingerprintMismatchError, IntegrityError, NotFoundError
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import ReferenceRows

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

BOX = (40.0, -10.0, 60.0, 20.0)


@pytest.fixture
def database(tmp_path: Path) -> ReferenceDatabase:
    """4,000 rows all over the Earth in segments of some 500, a few of them deleted."""
    rng = np.random.default_rng(0)
    database = ReferenceDatabase.create(tmp_path / "refs", dim=64, model_fingerprint="m" * 64)
    latlon_deg = np.stack([rng.uniform(-80, 80, 4000), rng.uniform(-180, 180, 4000)], axis=1)
    rows = ReferenceRows(
        latlon_deg, source="street", key=[f"photo {i}" for i in range(4000)], licence="cc-by-4.0"
    )
    database.append(rows, rng.normal(size=(4000, 64)))
    database.compact(segment_rows=500)
    database.delete(row_ids=range(0, 4000, 100))
    return database


def keys(database: ReferenceDatabase) -> dict[int, tuple[str, bytes]]:
    """Row id -> key and vector of what is there."""
    found = {}
    for segment in database.segments:
        live = np.flatnonzero(~segment.deleted)
        names = segment.rows(live, ["key"])["key"].to_pylist()
        vectors = segment.embeddings(live)
        for place, name, vector in zip(live, names, vectors, strict=True):
            found[int(segment.row_id[place])] = (name, vector.tobytes())
    return found


def test_the_whole(hub: HubServer, database: ReferenceDatabase, tmp_path: Path) -> None:
    pushed = database.push_to_hub("me/refs", private=True, licence="cc-by-4.0")
    there = ReferenceDatabase.from_hub("me/refs", tmp_path / "pulled", revision=pushed.commit)
    assert there.identity == database.identity
    assert keys(there) == keys(database)
    card = hub.repositories["dataset", "me/refs"].files()["README.md"].decode()
    assert "3,960 references | me/refs | cc-by-4.0" in card.replace("| 3,960", "3,960")
    assert "3,960 (3,960 street) in" in card


@pytest.mark.parametrize("region", [{"bounds_deg": BOX}, {"paths": ["31", "123"]}])
def test_a_region(
    hub: HubServer, database: ReferenceDatabase, tmp_path: Path, region: dict[str, list[str]]
) -> None:
    database.push_to_hub("me/refs")
    part = ReferenceDatabase.from_hub("me/refs", tmp_path / "part", **region)  # type: ignore[arg-type]
    expected = database.slice(tmp_path / "expected", **region)  # type: ignore[arg-type]
    assert keys(part) == keys(expected)
    assert 0 < len(part) < len(database)
    num_segments = len(database.segments)
    assert len(hub.received("rows.parquet")) == num_segments
    assert len(hub.received("embeddings.safetensors")) < num_segments
    assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == ["part"]
    again = ReferenceDatabase.from_hub("me/refs", tmp_path / "part", **region)  # type: ignore[arg-type]
    assert keys(again) == keys(part)
    part.delete(row_ids=[next(iter(keys(part)))])


def test_a_region_with_nothing_in_it(hub: HubServer, database: ReferenceDatabase, tmp_path: Path) -> None:
    database.push_to_hub("me/refs")
    assert len(ReferenceDatabase.from_hub("me/refs", tmp_path / "part", bounds_deg=(-90, 0, -89, 1))) == 0
    assert hub.received("embeddings.safetensors") == []


def test_a_region_that_was_cut_goes_on(hub: HubServer, database: ReferenceDatabase, tmp_path: Path) -> None:
    database.push_to_hub("me/refs")
    hub.cut["embeddings.safetensors"] = [10_000] * 7
    with pytest.raises(
        NotFoundError, match=r"could not get 'segments/.*/embeddings.safetensors' of the dataset me/r"
    ):
        ReferenceDatabase.from_hub("me/refs", tmp_path / "part", bounds_deg=BOX)
    assert not (tmp_path / "part").exists()
    hub.cut.clear()
    hub.requests.clear()
    part = ReferenceDatabase.from_hub("me/refs", tmp_path / "part", bounds_deg=BOX)
    assert keys(part) == keys(database.slice(tmp_path / "expected", bounds_deg=BOX))
    assert hub.received("rows.parquet") == []
    assert hub.received("embeddings.safetensors")[0] == "bytes=10000-"


def test_an_update_brings_only_what_is_new(
    hub: HubServer, database: ReferenceDatabase, tmp_path: Path
) -> None:
    database.push_to_hub("me/refs")
    ReferenceDatabase.from_hub("me/refs", tmp_path / "pulled")
    database.append(ReferenceRows(np.array([[1.0, 2.0]]), source="aerial", key=["new"]), np.ones((1, 64)))
    num = hub.uploaded()
    database.push_to_hub("me/refs")
    assert hub.uploaded() == num + 2
    hub.requests.clear()
    there = ReferenceDatabase.from_hub("me/refs", tmp_path / "pulled")
    assert keys(there) == keys(database)
    assert len(hub.received("embeddings.safetensors")) == 1


def test_what_is_no_database(hub: HubServer, database: ReferenceDatabase, tmp_path: Path) -> None:
    hub.repositories["dataset", "me/other"] = Repository()
    hub.repositories["dataset", "me/other"].commit(with_manifest({"a.parquet": b"x"}), "push")
    with pytest.raises(
        IntegrityError, match=r"the dataset me/other at .* is not a reference database: its manifest is"
    ):
        ReferenceDatabase.from_hub("me/other", tmp_path / "pulled")
    assert hub.received("a.parquet") == []
    database.push_to_hub("me/refs")
    hub.requests.clear()
    with pytest.raises(ConfigError, match="bounds are south, west, north, east"):
        ReferenceDatabase.from_hub("me/refs", tmp_path / "pulled", bounds_deg=(9, 0, 1, 1))
    assert hub.received("rows.parquet") == []
    assert not (tmp_path / "pulled").exists()


def test_a_database_that_lies_consistently(
    hub: HubServer, database: ReferenceDatabase, tmp_path: Path
) -> None:
    """Its checksums are right, and its vectors are not finite: only reading them shows it."""
    database.compact()
    (path,) = (tmp_path / "refs" / "segments").glob("*/embeddings.safetensors")
    data = bytearray(path.read_bytes())
    data[-4 * 64 * 100 : -4 * 64 * 90] = np.full(640, np.nan, np.float32).tobytes()
    files = {
        file.relative_to(tmp_path / "refs").as_posix(): file.read_bytes()
        for file in (tmp_path / "refs" / "segments").rglob("*.*")
    }
    files[path.relative_to(tmp_path / "refs").as_posix()] = bytes(data)
    manifest = json.loads((tmp_path / "refs" / "manifest.json").read_bytes())
    facts = {key: manifest[key] for key in manifest.keys() - {"files", "digest"}}
    hub.repositories["dataset", "me/evil"] = Repository()
    hub.repositories["dataset", "me/evil"].commit(with_manifest(files, **facts), "push")
    for region in ({}, {"bounds_deg": (-90.0, -180.0, 90.0, 180.0)}):
        with pytest.raises(
            IntegrityError, match=r"has a vector that is not finite, though its checksum is right"
        ):
            ReferenceDatabase.from_hub("me/evil", tmp_path / "pulled", **region)  # type: ignore[arg-type]
        assert not (tmp_path / "pulled").exists()


def test_another_models_database(hub: HubServer, database: ReferenceDatabase, tmp_path: Path) -> None:
    class Other:
        embedding_fingerprint = "o" * 64

    database.push_to_hub("me/refs")
    with pytest.raises(FingerprintMismatchError, match="was made with the model"):
        ReferenceDatabase.from_hub("me/refs", tmp_path / "pulled", model=Other())  # type: ignore[arg-type]
    assert hub.received("rows.parquet") == []
