"""A model with its references is saved and loaded any number of times, and its answers stay."""

from pathlib import Path

import numpy as np
import pytest

from geoloc import Geolocalizer

PHOTO = "demo/images/12_wald_blue-marble.jpg"


def answers(model: Geolocalizer, photo: Path) -> np.ndarray:
    """Point, probability and radii with the model's own references."""
    found = model.localize(photo, places=False)
    return np.array([found.lat, found.lon, found.probability, *found.radius_km.values()])


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_the_bundled_model_is_saved_twice(request: pytest.FixtureRequest, tmp_path: Path, half: bool) -> None:
    photo = request.config.rootpath / PHOTO
    bundled = Geolocalizer.from_pretrained("earthview")
    bundled.save_pretrained(tmp_path / "first", half=half)
    first = Geolocalizer.from_pretrained(tmp_path / "first")
    first.save_pretrained(tmp_path / "second", half=half)
    second = Geolocalizer.from_pretrained(tmp_path / "second")
    for loaded in (first, second):
        assert loaded.reference is not None
        assert bundled.reference is not None
        assert len(loaded.reference) == len(bundled.reference)
        assert loaded.embedding_fingerprint == bundled.embedding_fingerprint
    expected = answers(bundled, photo)
    assert answers(first, photo) == pytest.approx(expected, rel=0.02 if half else 1e-4, abs=0.02)
    assert answers(second, photo) == pytest.approx(answers(first, photo), rel=1e-4, abs=1e-4)


def test_an_exported_model_keeps_its_references(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    photo = request.config.rootpath / PHOTO
    bundled = Geolocalizer.from_pretrained("earthview")
    bundled.export_onnx(tmp_path / "exported", [photo])
    exported = Geolocalizer.from_pretrained(tmp_path / "exported")
    assert exported.embedding_fingerprint == bundled.embedding_fingerprint
    assert answers(exported, photo) == pytest.approx(answers(bundled, photo), rel=1e-3, abs=1e-3)
