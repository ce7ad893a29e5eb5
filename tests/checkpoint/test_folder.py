"""What is saved is what is loaded; what was changed, cut, swapped or half written is refused or never seen."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import CALIBRATION, VIT, tiny_checkpoint, tiny_geolocalizer, tiny_image, tiny_quadtree
from torch import nn

from geoloc.errors import (
    CheckpointError,
    ConfigError,
    FingerprintMismatchError,
    IntegrityError,
    NotFoundError,
    OutputMismatchError,
)
from geoloc.files import write_manifest
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.backbone import Backbone
from geoloc.models.config import (
    AggregationConfig,
    BackboneConfig,
    CellHeadConfig,
    EmbeddingHeadConfig,
    OffsetHeadConfig,
    RegressionHeadConfig,
)
from geoloc.models.fine_tune import FineTune

IMAGES = [tiny_image(seed) for seed in range(6)]
FILES = [
    "README.md",
    "calibration.json",
    "config.json",
    "manifest.json",
    "model.safetensors",
    "quadtree.parquet",
]
CNN = {
    "embed_dim": 8,
    "vision_cfg": {
        "timm_model_name": "test_efficientnet",
        "timm_pool": "avg",
        "timm_proj": "",
        "image_size": 32,
    },
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def answers(model: Geolocalizer) -> np.ndarray[Any, Any]:
    """Point, probability and radii of every image."""
    found = model.localize(IMAGES, places=False)
    return np.array([(p.lat, p.lon, p.probability, *p.radius_km.values()) for p in found])


# --- Round trips ---


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"offsets": None},
        {"offsets": OffsetHeadConfig(hidden_dims=(), origin="box", shared=True), "seed": 3},
        {"cells": None, "offsets": None, "regression": RegressionHeadConfig(hidden_dims=(8,))},
        {"cells": CellHeadConfig((8,)), "embeddings": {"query": EmbeddingHeadConfig(dim=8)}},
        {"backbone": BackboneConfig(custom=CNN), "calibration": None},
        {
            "embeddings": {"aerial": EmbeddingHeadConfig(8, aggregation=AggregationConfig(heads=2))},
            "aerial_backbone": BackboneConfig(custom=VIT, features="map"),
        },
    ],
    ids=[
        "cells and offsets",
        "cells",
        "shared offsets",
        "regression",
        "embedding",
        "a trunk with batch norm",
        "an aerial tower",
    ],
)
def test_a_loaded_model_gives_the_same_answers(parts: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_geolocalizer(**parts)
    model.save_pretrained(tmp_path / "model")
    loaded = Geolocalizer.from_pretrained(tmp_path / "model")
    assert answers(loaded) == pytest.approx(answers(model), rel=1e-4, abs=1e-4)
    for attribute in ("name", "preprocess", "quadtree", "calibration", "card"):
        assert getattr(loaded, attribute) == getattr(model, attribute)
    assert loaded.network.config.cells == model.network.config.cells
    if "embeddings" in parts:
        (role,), pictures = parts["embeddings"], torch.randn(2, 3, 32, 32)
        assert np.array_equal(loaded.embed_reference(pictures, role), model.embed_reference(pictures, role))

    # And saved again it is the same checkpoint, byte for byte; with batch norms from the second time on, for the
    # first loading folds them.
    if "backbone" in parts:
        loaded.save_pretrained(tmp_path / "model")
        model, loaded = loaded, Geolocalizer.from_pretrained(tmp_path / "model")
    loaded.save_pretrained(tmp_path / "again")
    assert loaded.identity == model.identity
    for name in os.listdir(tmp_path / "model"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_the_folder_holds_what_it_should(original: Path, tmp_path: Path) -> None:
    assert sorted(os.listdir(original)) == FILES
    manifest = json.loads((original / "manifest.json").read_text())
    assert sorted([*manifest["files"], "manifest.json"]) == FILES
    config = json.loads((original / "config.json").read_text())
    assert config["schema_version"] == 1
    assert config["quadtree_fingerprint"] == tiny_quadtree().fingerprint
    assert config["network"]["backbone"]["pretrained"] is None
    assert len({path.stat().st_mode for path in original.iterdir()}) == 1  # safetensors' own would be 0600
    plain = tiny_checkpoint(tmp_path / "plain", cells=None, offsets=None, regression=RegressionHeadConfig())
    assert sorted(os.listdir(plain)) == [name for name in FILES if name != "quadtree.parquet"]


ANOTHER_PROCESS = """
import sys
from tiny import VIT, tiny_image
from geoloc.localize.geolocalizer import Geolocalizer
model = Geolocalizer.from_pretrained(sys.argv[1])
for p in model.localize([tiny_image(seed) for seed in range(6)], places=False):
    print(repr((p.lat, p.lon, p.probability, *p.radius_km.values())))
"""


def test_another_process_gives_the_same_answers(original: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS, original],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [eval(line, {}) for line in done.stdout.splitlines()]
    assert np.array(found) == pytest.approx(answers(Geolocalizer.from_pretrained(original)), rel=1e-9)


def test_half_precision_is_half_the_size_and_nearly_the_same(original: Path, tmp_path: Path) -> None:
    tiny_geolocalizer().save_pretrained(tmp_path / "half", half=True)
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "half", original)]
    assert sizes[0] < 0.56 * sizes[1]
    loaded = Geolocalizer.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.network.parameters()} == {torch.float32}
    assert answers(loaded)[:, 2] == pytest.approx(answers(tiny_geolocalizer())[:, 2], abs=0.02)


def test_half_precision_refuses_what_does_not_fit(tmp_path: Path) -> None:
    model = tiny_geolocalizer()
    with torch.no_grad():
        model.network.cells[0].weight[3] = 1e5  # type: ignore[index,operator]
    with pytest.raises(
        CheckpointError, match=r"the tensor 'cells\.0\.weight' is too large for float16; save without"
    ):
        model.save_pretrained(tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()


def test_lora_is_merged(tmp_path: Path) -> None:
    model = tiny_geolocalizer()
    backbone = model.network.backbone
    assert isinstance(backbone, Backbone)
    before = answers(model)
    backbone.fine_tune(FineTune("lora", lora_rank=2, lora_alpha=4))
    for name, parameter in backbone.named_parameters():
        if "lora_up" in name:
            nn.init.normal_(parameter, std=0.1)
    model.network.eval()
    adapted = answers(model)
    assert not np.allclose(adapted, before, atol=1e-3)
    model.save_pretrained(tmp_path / "model")
    assert not any(
        "lora" in key for key in safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    )
    assert answers(Geolocalizer.from_pretrained(tmp_path / "model")) == pytest.approx(
        adapted, rel=1e-3, abs=1e-3
    )


def test_nothing_is_downloaded_and_no_pretrained_weights_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "trunk.safetensors"
    torch.manual_seed(1)
    donor = Backbone(BackboneConfig(custom=CNN))
    safetensors.torch.save_file(donor.state_dict(), weights)
    model = tiny_geolocalizer(backbone=BackboneConfig(custom=CNN, pretrained=str(weights)))
    expected = answers(model)
    model.save_pretrained(tmp_path / "model")
    weights.unlink()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("loading a checkpoint asked for something from elsewhere")

    import huggingface_hub
    import open_clip

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(open_clip, "create_model", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    assert answers(Geolocalizer.from_pretrained(tmp_path / "model")) == pytest.approx(
        expected, rel=1e-4, abs=1e-4
    )


# --- Changed files, as the manifest sees them ---


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_refused(folder: Path, name: str) -> None:
    """In every byte of the small files, and at the ends, the header and many more places of the large ones."""
    path = folder / name
    intact = path.read_bytes()
    size, rng = len(intact), np.random.default_rng(0)
    positions = range(size)
    if size > 2000:
        positions = sorted({0, 7, 8, 9, 200, size // 2, size - 1, *rng.integers(0, size, 60).tolist()})  # type: ignore[assignment]
    for position in positions:
        flip(path, position, int(rng.integers(8)))
        with pytest.raises(IntegrityError, match=rf"{name} .*fetch or save the folder again"):
            Geolocalizer.from_pretrained(folder)
        path.write_bytes(intact)
    Geolocalizer.from_pretrained(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_shortened_file_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match=rf"{name} .*fetch or save the folder again"):
        Geolocalizer.from_pretrained(folder)
    (folder / name).unlink()
    with pytest.raises(IntegrityError, match=rf"{name} is missing.*fetch or save the folder again"):
        Geolocalizer.from_pretrained(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no model folder .*nowhere; check the path"):
        Geolocalizer.from_pretrained(tmp_path / "nowhere")


# --- Changed files under a manifest that agrees with them ---


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file and write the manifest anew: a tamperer, or another program."""
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    write_manifest(folder)


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    change(state)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    write_manifest(folder)


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("cells.1.bias"), r"1 tensors are missing \(cells\.1\.bias\), 0 are extra \(none\)"),
        (lambda s: s.update(more=torch.zeros(1)), r"0 tensors are missing \(none\), 1 are extra \(more\)"),
        (
            lambda s: s.update({"cells.1.bias": torch.zeros(12)}),
            r"'cells\.1\.bias' is \(12,\) floating-point numbers, not \(13,\) floating-point numbers",
        ),
        (
            lambda s: s.update({"cells.1.bias": torch.zeros(13, dtype=torch.int64)}),
            r"'cells\.1\.bias' is \(13,\) whole numbers, not \(13,\) floating-point numbers",
        ),
    ],
    ids=["missing", "extra", "wrong shape", "wrong kind"],
)
def test_tensors_that_do_not_fit(folder: Path, change: Any, message: str) -> None:
    edit_tensors(folder, change)
    with pytest.raises(
        CheckpointError,
        match=rf"model\.safetensors does not fit the network of config\.json: {message}; "
        r"take config\.json and model\.safetensors from the same checkpoint",
    ):
        Geolocalizer.from_pretrained(folder)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("kind", ["pickle", "torch.save", "rubbish", "empty"])
def test_nothing_is_unpickled(
    folder: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder / "model.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "torch.save":
        torch.save({"weights": Bomb()}, path)
    else:
        path.write_bytes(b"" if kind == "empty" else b"\xff" * 1000)
    write_manifest(folder)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is not a readable safetensors file: .*fetch or save"
    ):
        Geolocalizer.from_pretrained(folder)
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("extra", value=1),
            r"config\.json has the unknown key 'extra'; known keys are exported, name, network, ",
        ),
        (
            put("network", "cells", "dropout", value=0.1),
            r"config\.json\.network\.cells has the unknown key 'dropout'; .*A checkpoint from a newer geoloc needs",
        ),
        (lambda c: c.pop("network"), r"config\.json lacks the key 'network'"),
        (put("name", value=3), r"config\.json\.name is 3; expected a text"),
        (
            put("schema_version", value=2),
            r"config\.json has schema_version 2, and this geoloc reads 1: upgrade geoloc-vision, or save the model",
        ),
        (lambda c: c.pop("schema_version"), r"config\.json has schema_version None"),
        (put("schema_version", value=True), r"config\.json\.schema_version is True; expected a whole number"),
        (put("preprocess", "size", value=1), r"config\.json: preprocess\.size is unknown; the keys are"),
        (put("preprocess", "std", value=[1, 1, 0]), r"config\.json: preprocess\.std must be positive"),
        (
            put("network", "backbone", "custom", "vision_cfg", "timm_model_name", value="os.system"),
            r"config\.json: timm has no model 'os\.system'",
        ),
        (
            put("network", "backbone", "custom", "vision_cfg", "widht", value=3),
            r"config\.json: backbone\.custom\.vision_cfg has the unknown key 'widht'",
        ),
        (
            put("network", "backbone", value={"architecture": "hf-hub:org/name"}),
            r"config\.json names the backbone 'hf-hub:org/name', whose description is elsewhere; save the model again",
        ),
        (
            put("network", "cells", value=None),
            r"config\.json\.network: 'offsets' needs 'cells'",
        ),
        (
            put("quadtree_fingerprint", value=None),
            r"config\.json has cells: it must have both cells and a quadtree, or none; fetch or save the checkpoint",
        ),
        (
            put("network", value={"backbone": {"architecture": "ViT-B-32"}}),
            r"config\.json has a quadtree_fingerprint: it must have both",
        ),
    ],
)
def test_a_config_that_is_not_ours(folder: Path, change: Any, message: str) -> None:
    edit(folder, "config.json", change)
    with pytest.raises(ConfigError, match=message):
        Geolocalizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("bias", value=0), r"calibration\.json has the unknown key 'bias'"),
        (
            put("temperature", value=-1),
            r"calibration\.json: calibration\.temperature is -1\.0; it must be positive",
        ),
        (
            put("temperature", value=float("nan")),
            r"calibration\.json\.temperature is nan; expected a finite number",
        ),
        (
            put("mass_levels", "median", "90", value=2),
            r"calibration\.json: .*mass_levels\.median has '90': 2\.0",
        ),
    ],
)
def test_a_calibration_that_is_not_ours(folder: Path, change: Any, message: str) -> None:
    edit(folder, "calibration.json", change)
    with pytest.raises(ConfigError, match=message):
        Geolocalizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "calibration.json"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", r"is not a readable JSON file: .*fetch or save the checkpoint again"),
        (b"\xff\xfe", r"is not a readable JSON file"),
        (b"[" * 100_000, r"is not a readable JSON file"),
        (b"[1]", r"does not hold a JSON object; fetch or save the checkpoint again"),
    ],
    ids=["cut", "not UTF-8", "deep", "a list"],
)
def test_json_that_is_none(folder: Path, name: str, data: bytes, message: str) -> None:
    (folder / name).write_bytes(data)
    write_manifest(folder)
    with pytest.raises(ConfigError, match=rf"{name} {message}"):
        Geolocalizer.from_pretrained(folder)


def test_another_quadtree(folder: Path) -> None:
    other = tiny_quadtree(num_points=61)
    other.write(folder / "quadtree.parquet")
    write_manifest(folder)
    with pytest.raises(
        FingerprintMismatchError,
        match=rf"config\.json was written for the quadtree {tiny_quadtree().fingerprint[:12]}…, but "
        rf".*quadtree\.parquet is {other.fingerprint[:12]}… \({other.num_cells} cells\); use the quadtree saved",
    ):
        Geolocalizer.from_pretrained(folder)


def test_a_quadtree_file_that_is_none(folder: Path) -> None:
    (folder / "quadtree.parquet").write_bytes(b"PAR1 no more")
    write_manifest(folder)
    with pytest.raises(
        CheckpointError, match=r"quadtree\.parquet cannot be read as Parquet: .*fetch or save"
    ):
        Geolocalizer.from_pretrained(folder)


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_file_that_the_manifest_does_not_list_is_not_trusted(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    write_manifest(folder)
    (folder / name).write_bytes(data)
    with pytest.raises(
        IntegrityError,
        match=rf"manifest\.json does not list '{name}', so that file cannot be verified; fetch or",
    ):
        Geolocalizer.from_pretrained(folder)


# --- Saving over what is there ---


def test_saving_replaces_a_checkpoint_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    model = tiny_geolocalizer(cells=None, offsets=None, regression=RegressionHeadConfig())
    model.save_pretrained(folder)
    assert not (folder / "quadtree.parquet").exists()
    assert Geolocalizer.from_pretrained(folder).identity == model.identity
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputMismatchError, match=r"holds 'notes\.txt', which no manifest there lists"):
        model.save_pretrained(folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_save_that_fails_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = Geolocalizer.from_pretrained(folder).identity

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    model = tiny_geolocalizer(seed=1)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder)
    monkeypatch.undo()
    assert Geolocalizer.from_pretrained(folder).identity == identity
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


KILLED = """
import os, shutil, sys
from pathlib import Path

import safetensors.torch
import torch
from tiny import VIT, tiny_geolocalizer

from geoloc.files import folders
from geoloc.localize.geolocalizer import Geolocalizer

torch.set_num_threads(1)
folder, swap = Path(sys.argv[1]), sys.argv[2]
calls = 0


def arm(module, name, fatal):
    original = getattr(module, name)

    def step():
        global calls
        calls += 1
        if calls == fatal:
            os._exit(9)

    def wrapped(*args, **kwargs):
        step()
        result = original(*args, **kwargs)
        step()
        return result

    setattr(module, name, wrapped)


if swap == "two renames":
    folders._exchange = lambda a, b: False
old, new = tiny_geolocalizer(seed=0), tiny_geolocalizer(seed=1)
old.save_pretrained(folder.with_name("kept"))
new.save_pretrained(folder)  # learns its own identity
names = {old.identity: "old", new.identity: "new"}
assert len(names) == 2
seen, k = {"old": 0, "new": 0}, 0
while True:
    k += 1
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folder.with_name("kept"), folder)
    child = os.fork()
    if child == 0:
        for module, name in [
            (os, "fsync"), (os, "replace"), (os, "rename"), (folders, "_exchange"), (safetensors.torch, "save_file"),
        ]:
            arm(module, name, k)
        new.save_pretrained(folder)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), status
    found = names[Geolocalizer.from_pretrained(folder).identity]
    seen[found] += 1
    if status == 0:
        assert found == "new"
        break
new.save_pretrained(folder)
left = {path.name for path in folder.parent.iterdir()} - {folder.name, "kept"}
assert not left, left
print(seen["old"], seen["new"])
"""


@pytest.mark.parametrize("swap", ["in one step", "two renames"])
def test_killed_at_any_write_leaves_the_old_or_the_new(tmp_path: Path, swap: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "model", swap],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    old, new = map(int, done.stdout.split())
    # The number of kill points is no promise, but so few would mean that the failpoints have come loose.
    assert old >= 20
    assert new >= 3


def test_the_calibration_of_the_tiny_model_is_what_is_saved(original: Path) -> None:
    assert Geolocalizer.from_pretrained(original).calibration == CALIBRATION
