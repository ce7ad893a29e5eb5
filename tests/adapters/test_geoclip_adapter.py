"""GeoCLIP's own code answered for the picture and the places in fixtures/geoclip.json; see HOW.md there."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from named_numbers import digest, state_of

from geoloc import Geolocalizer
from geoloc.adapters.formats import adapt
from geoloc.adapters.geoclip import equal_earth
from geoloc.adapters.options import Options
from geoloc.checkpoint import gallery
from geoloc.errors import CheckpointError, ConfigError, NotFoundError

FIXTURES = Path(__file__).parent / "fixtures"
MADE: dict[str, Any] = json.loads((FIXTURES / "geoclip.json").read_text())
PICTURE = FIXTURES / "geoclip_picture.png"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    """The image tower as transformers saves it."""
    folder = tmp_path / "clip"
    folder.mkdir()
    tensors = state_of(MADE["clip"], 1.2)
    assert digest(tensors) == MADE["clip_sha256"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(MADE["clip_config"]))
    return folder


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The form of the Hub."""
    folder = tmp_path / "release"
    folder.mkdir()
    tensors = state_of(MADE["tensors"], 1.2)
    assert digest(tensors) == MADE["sha256"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(MADE["config"]))
    _write_gallery(folder / "gallery.csv")
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The form of the Python package."""
    tensors = state_of(MADE["tensors"], 1.2)
    folder = tmp_path / "site" / "geoclip"
    (folder / "model" / "weights").mkdir(parents=True)
    (folder / "model" / "gps_gallery").mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('nobody imports it')")
    for part, prefix in (
        ("image_encoder_mlp", "image_encoder.mlp."),
        ("location_encoder", "location_encoder."),
    ):
        found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        torch.save(found, folder / "model" / "weights" / f"{part}_weights.pth")
    torch.save(tensors["logit_scale"], folder / "model" / "weights" / "logit_scale_weights.pth")
    _write_gallery(folder / "model" / "gps_gallery" / "coordinates_100K.csv")
    return folder


def _write_gallery(path: Path) -> None:
    path.write_text("LAT,LON\n" + "".join(f"{lat},{lon}\n" for lat, lon in MADE["gallery"]))


def test_the_same_top_places_as_predict(release: Path, tower: Path) -> None:
    model = Geolocalizer.from_pretrained(release, tower=tower)
    top_k = len(MADE["top_gps"])
    found = model.localize(PICTURE, top_k=top_k, places=False).candidates
    ours = np.array([(c.lat, c.lon) for c in found])
    np.testing.assert_allclose(ours, MADE["top_gps"], rtol=0, atol=1e-5)
    np.testing.assert_allclose([c.probability for c in found], MADE["top_probability"], rtol=0, atol=1e-5)
    assert {c.source for c in found} == {"location"}


def test_the_same_vectors_as_the_peer(release: Path, tower: Path) -> None:
    adapted = adapt(release, Options(tower=tower))
    model = Geolocalizer("x", adapted.network, adapted.preprocess, None)
    picture = model.load(PICTURE)
    np.testing.assert_allclose(picture[:, :2, :2].flatten(), MADE["pixels"], rtol=0, atol=1e-6)
    with torch.inference_mode():
        vector = adapted.network.double().embed_images(picture[None].double(), "query")[0, :64]
    expected = np.array(MADE["image_features"]) / MADE["image_norm"]
    np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-6)
    assert adapted.gallery is not None
    places = adapted.gallery.encode(adapted.gallery.latlon_deg)
    np.testing.assert_allclose(places[:, :16], MADE["location_features"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(places.norm(dim=1), MADE["location_norms"], rtol=1e-5)


def test_the_package_gives_the_same(
    package: Path, release: Path, tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match="geoclip is not installed"):
        Geolocalizer.from_pretrained("geoclip")
    monkeypatch.syspath_prepend(str(package.parent))
    model = Geolocalizer.from_pretrained("geoclip", tower=tower)
    assert "geoclip" not in sys.modules
    theirs = Geolocalizer.from_pretrained(release, tower=tower)
    assert model.localize(PICTURE).to_dict() == theirs.localize(PICTURE).to_dict()
    assert model.embedding_fingerprint == theirs.embedding_fingerprint


def test_places_are_encoded_once(
    release: Path, tower: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = Geolocalizer.from_pretrained(release, tower=tower)

    def never(*_: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(gallery, "_build", never)
    second = Geolocalizer.from_pretrained(release, tower=tower)
    assert first.localize(PICTURE).to_dict() == second.localize(PICTURE).to_dict()
    # Saved as ours, places and all, it needs neither the release nor the tower.
    second.save_pretrained(tmp_path / "ours")
    third = Geolocalizer.from_pretrained(tmp_path / "ours")
    assert [c.lat for c in third.localize(PICTURE).candidates] == [
        c.lat for c in first.localize(PICTURE).candidates
    ]


def test_what_does_not_fit_is_refused(release: Path, tower: Path) -> None:
    tensors = safetensors.torch.load_file(release / "model.safetensors")
    for change, message in (
        ({"location_encoder.LocEnc1.head.0.bias": None}, r"LocEnc1\.head\.0\.bias"),
        ({"strange": torch.zeros(1)}, "strange"),
    ):
        changed = {n: t for n, t in (tensors | change).items() if t is not None}
        safetensors.torch.save_file(changed, release / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            adapt(release, Options(tower=tower))
    for entry in ({"format_version": 2}, {"gallery_file": "../gallery.csv"}, {"backbone": None}):
        (release / "config.json").write_text(json.dumps(MADE["config"] | entry))
        with pytest.raises(ConfigError, match="no GeoCLIP release"):
            adapt(release, Options(tower=tower))


def test_equal_earth_by_hand() -> None:
    """The equator's end is x = 2 sqrt(3) pi / (3 A1), the pole's y the polynomial at theta = pi / 3."""
    scale = 66.50336 / 180
    east, pole, middle = equal_earth(
        torch.tensor([[0.0, 180.0], [90.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(east, torch.tensor([2.7066299837 * scale, 0.0], dtype=torch.float64))
    torch.testing.assert_close(pole, torch.tensor([0.0, 1.3173627592 * scale], dtype=torch.float64))
    torch.testing.assert_close(middle, torch.zeros(2, dtype=torch.float64))
