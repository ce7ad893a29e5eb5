"""A model exported and loaded again: the same answers, and in a fresh process without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_geolocalizer, tiny_image

from geoloc.checkpoint import export as export_module
from geoloc.errors import CheckpointError, ConfigError, IntegrityError
from geoloc.files import verify_manifest, write_manifest
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.config import EmbeddingHeadConfig
from geoloc.posterior.reranker_network import RerankerConfig, RerankerNetwork
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import ReferenceRows

EMBEDDINGS = {"query": EmbeddingHeadConfig(8), "aerial": EmbeddingHeadConfig(8)}
IMAGES = [tiny_image(seed) for seed in range(24)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Geolocalizer:
    """With references of its own and a reranker."""
    folder = tmp_path_factory.mktemp("model")
    tiny_geolocalizer(embeddings=EMBEDDINGS).save_pretrained(folder / "bare")
    model = Geolocalizer.from_pretrained(folder / "bare")
    database = ReferenceDatabase.create(folder / "refs", dim=8, model_fingerprint=model.embedding_fingerprint)
    places = [(p.lat, p.lon) for p in model.localize(IMAGES, places=False)]
    vectors = model.embed_reference(
        model.runner.as_input(np.stack([model.load(i) for i in IMAGES])), "aerial"
    )
    rows = ReferenceRows(places, source="aerial", key=[f"place {i}" for i in range(len(places))])
    database.append(rows, vectors)
    model.reference, model.reranker = database, RerankerNetwork(RerankerConfig(hidden_dim=4)).reranker()
    model.save_pretrained(folder / "whole")
    return Geolocalizer.from_pretrained(folder / "whole")


@pytest.fixture(scope="module")
def folder(model: Geolocalizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "tiny"
    model.export_onnx(folder, IMAGES)
    return folder


def test_the_folder_is_a_checkpoint_with_a_report(model: Geolocalizer, folder: Path) -> None:
    verify_manifest(folder, strict=True)
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "model.onnx",
        "config.json",
        "quadtree.parquet",
        "calibration.json",
        "reference",
        "parity.json",
    }
    assert "model.safetensors" not in names
    report = json.loads((folder / "parity.json").read_text())
    assert report["num_images"] == 24
    assert 0 < max(report["fp32"]["max_abs_difference"].values()) <= 1e-4
    outputs = {"features", "cell_logits", "offsets", "embedding_query", "embedding_aerial"}
    assert set(report["fp32"]["max_abs_difference"]) == outputs
    assert report["fp32"]["same_top_cell"] == 1.0
    assert report["fp32"]["median_km"] < 0.1
    assert "## Exported" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "query", ["central_crop", "five_crops", "nearest_crop", "majority_voting", "four_turns"]
)
def test_the_same_answers(model: Geolocalizer, folder: Path, query: str) -> None:
    exported = Geolocalizer.from_pretrained(folder)
    assert exported.device == "cpu"
    for one, other in zip(
        model.localize(IMAGES[:6], query=query, top_k=8),
        exported.localize(IMAGES[:6], query=query, top_k=8),
        strict=True,
    ):
        assert (one.lat, one.lon) == pytest.approx((other.lat, other.lon), abs=1e-3)
        assert one.cell_path == other.cell_path
        assert one.place is not None
        assert one.place == pytest.approx(other.place) or one.place.name == other.place.name
        assert {c.source for c in other.candidates} >= {c.source for c in one.candidates}
        assert other.radius_km == pytest.approx(one.radius_km, rel=1e-2)


def test_references_are_those_of_the_model(model: Geolocalizer, folder: Path, tmp_path: Path) -> None:
    exported = Geolocalizer.from_pretrained(folder)
    assert exported.embedding_fingerprint == model.embedding_fingerprint
    assert exported.identity != model.identity
    pictures = np.stack([exported.load(image) for image in IMAGES[:3]])
    expected = model.embed_reference(model.runner.as_input(pictures), "aerial")
    np.testing.assert_allclose(exported.embed_reference(pictures, "aerial"), expected, atol=1e-5)
    exported.save_pretrained(tmp_path / "again")
    again = Geolocalizer.from_pretrained(tmp_path / "again")
    assert again.embedding_fingerprint == model.embedding_fingerprint
    assert again.localize(IMAGES[0], places=False) == exported.localize(IMAGES[0], places=False)


WITHOUT_TORCH = """
import sys
from geoloc import Geolocalizer
model = Geolocalizer.from_pretrained(sys.argv[1])
print(*[p.lat for p in model.localize(sys.argv[2:], query="five_crops")])
assert not {"torch", "timm", "open_clip", "lightning"} & set(sys.modules), "torch was imported"
"""


def test_without_torch_in_a_fresh_process(model: Geolocalizer, folder: Path, tmp_path: Path) -> None:
    paths = []
    for seed in range(2):
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(tiny_image(seed, 300, 200)).save(paths[-1])
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, folder, *paths], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    expected = [p.lat for p in model.localize(paths, query="five_crops")]
    assert [float(lat) for lat in ran.stdout.split()] == pytest.approx(expected, abs=1e-3)


def test_8_bits(model: Geolocalizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [tiny_image(seed) for seed in range(64)]
    report = model.export_onnx(
        tmp_path / "small",
        photos,
        int8=True,
        least_agreement=0.8,  # random weights are no easy case
    )
    assert report.int8 is not None
    assert report.int8.same_top_cell is not None
    assert report.int8.same_top_cell >= 0.8
    assert 0 < report.num_quantised <= report.num_operators == 9  # a patch convolution, 2 x 4 linear layers
    assert report.fp32.worst <= 1e-4 < report.int8.worst
    assert {path.name for path in (tmp_path / "small").glob("*.onnx")} == {"model.int8.onnx"}
    exported = Geolocalizer.from_pretrained(tmp_path / "small")
    same = [
        a.cell_path == b.cell_path
        for a, b in zip(
            model.localize(IMAGES, places=False), exported.localize(IMAGES, places=False), strict=True
        )
    ]
    assert np.mean(same) >= 0.7
    monkeypatch.setattr("geoloc.models.onnx.quantise.agreement", lambda *_: 0.5)
    with pytest.raises(
        CheckpointError, match=r"no operator of the backbone can be quantised.*Export in fp32, or lower"
    ):
        model.export_onnx(tmp_path / "none", IMAGES[:4], int8=True)
    with pytest.raises(ConfigError, match=r"a share in \(0, 1\]; found 1.5"):
        model.export_onnx(tmp_path / "none", IMAGES[:4], int8=True, least_agreement=1.5)
    assert not (tmp_path / "none").exists()


def test_a_graph_that_says_something_else_is_not_exported(
    model: Geolocalizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "TOLERANCE", 1e-12)
    with pytest.raises(CheckpointError, match=r"differ by \S+ in '\w+', more than the 1e-12"):
        model.export_onnx(tmp_path / "out", IMAGES[:2])
    assert not (tmp_path / "out").exists()


def test_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="save_pretrained first"):
        tiny_geolocalizer().export_onnx(tmp_path / "out", IMAGES)
    model = tiny_geolocalizer()
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="real images: give some"):
        model.export_onnx(tmp_path / "out", [])


def test_an_exported_model_cannot_be_taken_apart_or_moved(folder: Path) -> None:
    exported = Geolocalizer.from_pretrained(folder)
    with pytest.raises(ConfigError, match=r"exported model.*load the checkpoint"):
        _ = exported.network
    with pytest.raises(ConfigError, match="runs on the CPU, not on 'cuda'"):
        Geolocalizer.from_pretrained(folder, device="cuda")


def test_damage(folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    data = bytearray((broken / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "model.onnx").write_bytes(data)
    with pytest.raises(IntegrityError):
        Geolocalizer.from_pretrained(broken)
    (broken / "model.onnx").write_bytes(b"nothing")
    write_manifest(broken)
    with pytest.raises(CheckpointError, match="is not a readable ONNX file"):
        Geolocalizer.from_pretrained(broken)
    shutil.copy(folder / "model.onnx", broken / "model.onnx")
    shutil.copy(broken / "model.onnx", broken / "reranker.safetensors")
    write_manifest(broken)
    with pytest.raises(CheckpointError, match=r"reranker.safetensors is not a readable safetensors file"):
        Geolocalizer.from_pretrained(broken)
