"""A composed model over the stand-in Hub: the same answers, and no changed part is accepted."""

from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from tiny import tiny_geolocalizer, tiny_image

from geoloc import Geolocalizer, ReferenceDatabase
from geoloc.errors import IntegrityError
from geoloc.models.config import EmbeddingHeadConfig
from geoloc.reference.rows import ReferenceRows

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def composed(folder: Path) -> Geolocalizer:
    """A classifier with a database of another model."""
    tiny_geolocalizer().save_pretrained(folder / "classifier")
    head = {role: EmbeddingHeadConfig(6) for role in ("query", "aerial")}
    tiny_geolocalizer(None, seed=1, embeddings=head).save_pretrained(folder / "embedder")
    database = ReferenceDatabase.create(
        folder / "aerial", model=Geolocalizer.from_pretrained(folder / "embedder")
    )
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 6))
    latlon_deg = np.stack([rng.uniform(-80, 80, 200), rng.uniform(-180, 180, 200)], 1)
    rows = ReferenceRows(latlon_deg, source="aerial", key=[str(n) for n in range(200)])
    database.append(rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return Geolocalizer.compose(folder / "classifier", [folder / "aerial"], name="composed")


def test_a_composed_model_is_pushed_and_answers_the_same(hub: HubServer, tmp_path: Path) -> None:
    model = composed(tmp_path)
    images = [tiny_image(seed) for seed in range(3)]
    expected = [p.to_dict() for p in model.localize(images)]
    model.push_to_hub("me/composed")
    files = hub.repositories["model", "me/composed"].files()
    assert {"embedders/0/model.safetensors", "references/aerial/manifest.json"} <= files.keys()
    pulled = Geolocalizer.from_pretrained("me/composed")
    assert [p.to_dict() for p in pulled.localize(images)] == expected
    assert {c["database"] for p in expected for c in p["candidates"]} == {"", "aerial"}


@pytest.mark.parametrize("name", ["embedders/0/model.safetensors", "references/aerial/manifest.json"])
def test_a_part_that_was_changed_on_the_hub_is_refused(hub: HubServer, name: str, tmp_path: Path) -> None:
    composed(tmp_path).push_to_hub("me/composed")
    repository = hub.repositories["model", "me/composed"]
    files = repository.files()
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    repository.commit(files, "changed")
    with pytest.raises(IntegrityError):
        Geolocalizer.from_pretrained("me/composed")
