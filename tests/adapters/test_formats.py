"""From a name or a path to a model: by the registry, and by what is in the files."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import tiny_checkpoint, tiny_image

from geoloc import Geolocalizer, cli
from geoloc.adapters import formats
from geoloc.adapters.registry import MODELS, OSV5M_CELLS_SHA256, find_published
from geoloc.errors import CheckpointError, ConfigError, IntegrityError, NotFoundError

sys.path.append(str(Path(__file__).parents[1] / "hub"))
from hub_server import HubServer, Repository

TINY = Path(__file__).parent / "fixtures" / "osv5m_tiny"
BASELINE = TINY / "baseline"
CELLS = TINY / "quadtree.csv"


def publish(hub: HubServer, name: str) -> None:
    files = {p.relative_to(BASELINE).as_posix(): p.read_bytes() for p in BASELINE.rglob("*") if p.is_file()}
    hub.repositories["model", name] = Repository()
    hub.repositories["model", name].commit(files | {"pytorch_model.bin": b"never asked for"}, "published")


def known_tower(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture's tower under a name, since the published config names one that everybody knows."""
    from geoloc.adapters import clip_vision

    monkeypatch.setitem(clip_vision.KNOWN, "tower_gelu", clip_vision.ClipVision(4, False))


@pytest.mark.parametrize("name", ["osv5m/baseline", "someone/their-copy"])
def test_a_name_on_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    publish(hub, name)
    known_tower(hub, monkeypatch)
    model = Geolocalizer.from_pretrained(name, quadtree=CELLS)
    here = Geolocalizer.from_pretrained(BASELINE, quadtree=CELLS)
    assert model.localize(tiny_image(1)).to_dict() == here.localize(tiny_image(1)).to_dict()
    assert model.embedding_fingerprint == here.embedding_fingerprint
    assert not hub.received("pytorch_model.bin")
    assert name in model.card
    assert ("GeoScore 3361" in model.card) == (name == "osv5m/baseline")


def test_a_published_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = Geolocalizer.from_pretrained(BASELINE, quadtree=CELLS)
    model.save_pretrained(tmp_path / "ours")
    again = Geolocalizer.from_pretrained(tmp_path / "ours")
    assert again.localize(tiny_image(2)).to_dict() == model.localize(tiny_image(2)).to_dict()


def test_the_published_cells_are_taken_where_none_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pinned(url: str, sha256: str) -> Path:
        asked.append((url, sha256))
        return CELLS

    monkeypatch.setattr(formats, "pinned", pinned)
    Geolocalizer.from_pretrained(BASELINE)
    ((url, sha256),) = asked
    assert sha256 == OSV5M_CELLS_SHA256
    assert url.startswith(
        "https://raw.githubusercontent.com/gastruc/osv5m/4e6075387ecde4255410785ffb83830c9aa099f6/"
    )


def test_a_training_checkpoint_by_its_path() -> None:
    with pytest.raises(ConfigError, match="give tower= one of"):
        Geolocalizer.from_pretrained(TINY / "box.ckpt", quadtree=CELLS)
    with pytest.raises(ConfigError, match="give quadtree="):
        Geolocalizer.from_pretrained(TINY / "box.ckpt", tower=TINY / "tower_quick")
    with pytest.raises(NotFoundError, match="no table of cells"):
        Geolocalizer.from_pretrained(TINY / "box.ckpt", tower=TINY / "tower_quick", quadtree="nowhere.csv")
    model = Geolocalizer.from_pretrained(TINY / "box.ckpt", tower=TINY / "tower_quick", quadtree=CELLS)
    assert -90 <= model.localize(tiny_image(0)).lat <= 90


def test_options_that_nobody_needs_are_refused(tmp_path: Path) -> None:
    ours = tiny_checkpoint(tmp_path / "ours")
    with pytest.raises(ConfigError, match="leaves nothing open"):
        Geolocalizer.from_pretrained(ours, quadtree=CELLS)
    with pytest.raises(ConfigError, match="no option 'quadtre'"):
        Geolocalizer.from_pretrained(BASELINE, quadtre=CELLS)
    with pytest.raises(ConfigError, match="neither revisions nor folders"):
        Geolocalizer.from_pretrained(TINY / "box.ckpt", revision="main")


def test_our_own_without_its_manifest_is_broken_and_not_foreign(tmp_path: Path) -> None:
    ours = tiny_checkpoint(tmp_path / "ours")
    os.remove(ours / "manifest.json")
    with pytest.raises((IntegrityError, NotFoundError), match="manifest"):
        Geolocalizer.from_pretrained(ours)


def test_what_has_no_known_format_says_so(tmp_path: Path) -> None:
    safetensors.torch.save_file({"strange.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no format that geoloc reads.*strange\.weight.*geoloc models"):
        Geolocalizer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(NotFoundError, match="holds 2 files of tensors"):
        Geolocalizer.from_pretrained(tmp_path)


def test_a_file_that_is_no_tensors_runs_nothing(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "canary"),))

    torch.save({"state_dict": {"backbone.0.weight": Canary()}}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="if you trust the file"):
        Geolocalizer.from_pretrained(tmp_path / "model.pth")
    (tmp_path / "cut.safetensors").write_bytes((BASELINE / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError):
        Geolocalizer.from_pretrained(tmp_path / "cut.safetensors")
    assert not (tmp_path / "canary").exists()


def test_names_given_by_path_say_where_they_are() -> None:
    with pytest.raises(ConfigError, match=r"release v1\.0"):
        Geolocalizer.from_pretrained("cosplace")


def test_the_registry_is_whole() -> None:
    names = [model.name for model in MODELS]
    assert len(set(names)) == len(names)
    for model in MODELS:
        assert (Path(formats.__file__).parent / f"{model.adapter}.py").is_file(), model.name
        assert (model.gives == "location samples") == ("LocationSampler" in model.how)
        for words in (
            model.weights,
            model.code_licence,
            model.weights_licence,
            model.pictures,
            model.numbers,
        ):
            assert words
        assert model.how
        assert model.revision is None or len(model.revision) == 40
        if model.is_fetched and model.revision is None:
            assert "not pinned" in model.weights
    assert find_published("OSV5M/Baseline") is not None


def test_the_command_lists_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["geoloc", "models", *arguments])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        out, err = capsys.readouterr()
        return out if not exited.value.code else err

    lines = run().splitlines()
    names = ["earthview", *(model.name for model in MODELS)]
    assert [line.split()[0] for line in lines] == ["NAME", *names]
    assert "checkpoints/earthview/README.md" in run("earthview")
    assert "GeoScore 3361" in run("osv5m/baseline")
    assert [entry["name"] for entry in json.loads(run("--json"))] == names
    assert "'nobody' is not in the list of models" in run("nobody")


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no file .*CosPlace.pth; `geoloc models` lists"):
        Geolocalizer.from_pretrained(tmp_path / "CosPlace.pth")
    (tmp_path / "model.onnx").write_bytes(b"a graph")
    with pytest.raises(
        ConfigError, match="graph of an exported model, which has more files: give its folder"
    ):
        Geolocalizer.from_pretrained(tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match=r"cosplace is not fetched by its name: give the file's path"):
        Geolocalizer.from_pretrained("cosplace")
