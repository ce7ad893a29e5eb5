"""OSV-5M's own code wrote the checkpoints and outputs in fixtures/osv5m_tiny; see HOW.md there."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from geoloc.adapters.adapted import Adapted
from geoloc.adapters.osv5m import adapt_hub, adapt_training_checkpoint
from geoloc.adapters.osv5m_heads import Classes
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError, FingerprintMismatchError
from quadtree import Quadtree, build_quadtree

TINY = Path(__file__).parent / "fixtures" / "osv5m_tiny"
PEER = safetensors.torch.load_file(TINY / "outputs.safetensors")


def tree() -> Quadtree:
    return Quadtree.read_osv5m_csv(TINY / "quadtree.csv")


GELU, QUICK = TINY / "baseline" / "tower_gelu", TINY / "tower_quick"
TOWERS = (
    dict.fromkeys(("regression", "angle", "multi"), GELU)
    | dict.fromkeys(("box", "shared", "lora"), QUICK)
    | {"streetclip": TINY / "street"}
)


def adapted(name: str) -> Adapted:
    if name == "baseline":
        return adapt_hub(TINY / name, tree())
    file = ForeignTensors.read(TINY / f"{name}.ckpt")
    classes = Classes(tree()) if name in ("box", "shared") else None
    return adapt_training_checkpoint(file, TOWERS[name], classes, lora_alpha=32.0)


@pytest.mark.parametrize(
    "name", ["baseline", "box", "shared", "regression", "angle", "multi", "lora", "streetclip"]
)
def test_the_same_numbers_as_the_peer(name: str) -> None:
    network = adapted(name).network.double()  # as the peer ran, or rounding alone were 1e-5 degrees
    with torch.inference_mode():
        output = network(PEER["images"].double())
    torch.testing.assert_close(output.features, PEER[f"{name}.features"], rtol=0, atol=1e-4)
    gps_deg = np.degrees(PEER[f"{name}.gps"].numpy())
    if output.latlon_rad is not None:
        ours = np.degrees(output.latlon_rad.double().numpy())
    else:
        torch.testing.assert_close(output.cell_logits, PEER[f"{name}.logits"], rtol=0, atol=1e-4)
        best = output.cell_logits.argmax(-1)
        offset = network.offsets.of_cells(output.offsets, best[:, None])[:, 0]
        if f"{name}.reg" in PEER:
            torch.testing.assert_close(offset, PEER[f"{name}.reg"], rtol=0, atol=1e-4)
        ours = network.offsets.to_latlon_deg(offset, best).numpy()
    np.testing.assert_allclose(ours, gps_deg, rtol=0, atol=1e-5)


def test_preprocessing_is_read_from_the_config() -> None:
    preprocess = adapted("baseline").preprocess
    assert (preprocess.image_size_px, preprocess.resize, preprocess.interpolation) == (
        28,
        "shortest",
        "bicubic",
    )
    assert preprocess.mean == (0.48145466, 0.4578275, 0.40821073)
    # StreetCLIP is shown pictures by its own processor, all others by torchvision.
    assert adapted("streetclip").preprocess.floors_centre
    assert not adapted("regression").preprocess.floors_centre


def test_the_activation_matters() -> None:
    """The trap that this pins: the same tensors with the other GELU give other numbers."""
    wrong = adapt_training_checkpoint(
        ForeignTensors.read(TINY / "box.ckpt"), TINY / "baseline" / "tower_gelu", Classes(tree())
    )
    with torch.inference_mode():
        features = wrong.network.double()(PEER["images"].double()).features
    assert (features - PEER["box.features"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"), [("extra", "strange.weight"), ("missing", "mid.reg.1.weight")]
)
def test_a_tensor_too_many_or_too_few_is_named(tmp_path: Path, change: str, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY / "baseline", folder)
    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    if change == "extra":
        state["strange.weight"] = torch.zeros(1)
    else:
        del state["mid.reg.1.weight"]
    safetensors.torch.save_file(state, path)
    with pytest.raises(CheckpointError, match=message):
        adapt_hub(folder, tree())


def test_lora_needs_its_alpha() -> None:
    """Without being told, the only experiment's is taken, which here is another one."""
    assumed = adapt_training_checkpoint(ForeignTensors.read(TINY / "lora.ckpt"), QUICK)
    with torch.inference_mode():
        features = assumed.network.double()(PEER["images"].double()).features
    assert (features - PEER["lora.features"]).abs().max() > 1e-3


def test_another_quadtree_is_refused() -> None:
    points = np.random.default_rng(0).uniform(-80, 80, (400, 2))
    other = build_quadtree(points, max_points_per_cell=20, max_depth=4, root="data")
    with pytest.raises(FingerprintMismatchError, match="cells of the given quadtree"):
        adapt_hub(TINY / "baseline", other)
    with pytest.raises(ConfigError, match="give quadtree="):
        adapt_training_checkpoint(ForeignTensors.read(TINY / "box.ckpt"), TINY / "tower_quick")


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "canary",))  # type: ignore[return-value]

    torch.save({"state_dict": {}, "hyper_parameters": Canary()}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="save its state_dict with safetensors"):
        ForeignTensors.read(tmp_path / "last.ckpt")
    assert not (tmp_path / "canary").exists()
