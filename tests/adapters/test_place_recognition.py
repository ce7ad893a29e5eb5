"""Each peer's own code ran once outside the repository; the fixture has what it answered, see fixtures/HOW.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named_numbers import digest, pictures, state_of
from precision import FACTOR, rounding_sensitivity
from torch import Tensor

from geoloc import Geolocalizer, ReferenceDatabase
from geoloc.adapters.options import Options
from geoloc.adapters.place_recognition import adapt_place_recognition
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError
from geoloc.reference.embedder import embed_images
from geoloc.reference.rows import ReferenceRows

MADE: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "place_recognition.json").read_text())


def state(name: str) -> dict[str, Tensor]:
    return state_of(MADE[name]["tensors"], MADE[name]["gain"])


def options_of(name: str) -> Options:
    """What the file leaves open; a transformer has its size."""
    kind = next((part for part in name.split() if part in ("spoc", "mac", "rmac", "cls", "seqpool")), None)
    size = MADE[name]["image_size_px"]
    is_fixed = any(part in name.split() for part in ("cct", "vit", "swin"))
    l2 = next((part.removeprefix("l2=") for part in name.split() if part.startswith("l2=")), None)
    return Options(aggregation=kind, image_size_px=None if is_fixed else size, l2=l2)


@pytest.mark.parametrize("name", MADE)
def test_the_same_vectors_as_the_peer(name: str) -> None:
    theirs, made = state(name), MADE[name]
    assert digest(theirs) == made["sha256"]
    options = options_of(name)
    network = adapt_place_recognition(ForeignTensors(theirs, name), options).network
    images = pictures(made["image_size_px"])
    with torch.inference_mode():
        single = network.embed_images(images, "query")
        assert torch.equal(single, network.embed_images(images, "street"))
        ours = network.double().embed_images(images.double(), "query")
    expected = torch.tensor(made["output"], dtype=torch.float64)
    expected /= torch.tensor(made["norms"], dtype=torch.float64)[:, None]
    torch.testing.assert_close(ours[:, : expected.shape[1]], expected, rtol=0, atol=1e-9)
    assert float((ours[0] - ours[1]).norm()) > 5e-3  # the pictures differ in it
    sensitivity = rounding_sensitivity(network, lambda n: n.embed_images(images.double(), "query"))
    torch.testing.assert_close(single.double(), ours, rtol=0, atol=FACTOR * sensitivity)


@pytest.mark.parametrize(
    ("name", "size_px", "resize", "timm", "crop"),
    [
        ("cosplace ResNet18 32", 512, "native", "resnet18", None),
        ("cosplace VGG16 16", 512, "native", "vgg16", "features.28"),
        ("mixvpr resnet18", 64, "squash", "resnet18", "layer3"),
        ("gsv convap resnet18", 320, "squash", "resnet18", None),
        ("vg resnet18conv4 netvlad", (480, 640), "squash", "resnet18", "layer3"),
        ("vg alexnet gem", (480, 640), "squash", "alexnet", "features.10"),
        ("vg cct netvlad", 64, "squash", "cct_14_7x2", None),
        ("vg vit cls", 48, "squash", "vit_base_patch16_224", None),
        ("gsv swin convap", 256, "squash", "swinv2_tiny_window8_256", None),
    ],
)
def test_what_a_file_was_published_for(
    name: str, size_px: int | tuple[int, int], resize: str, timm: str, crop: str | None
) -> None:
    adapted = adapt_place_recognition(ForeignTensors(state(name), name), Options())
    tower = adapted.network.config.backbone
    assert (adapted.preprocess.image_size_px, adapted.preprocess.resize) == (size_px, resize)
    assert (tower.timm, tower.crop_after) == (timm, crop)
    assert adapted.preprocess.mean == (0.485, 0.456, 0.406)


NAME = "vg resnet18conv4 gem"


def test_batches_need_not_be_counted() -> None:
    old = {n: t for n, t in state(NAME).items() if not n.endswith("num_batches_tracked")}
    adapt_place_recognition(ForeignTensors(old, NAME), Options(image_size_px=64))


def test_what_does_not_fit_is_named() -> None:
    for change, message in (
        ({"aggregation.9.weight": torch.zeros(1)}, r"aggregation\.9\.weight"),
        ({"backbone.6.7.conv1.weight": torch.zeros(1)}, "an unknown trunk"),
        ({"backbone.4.0.strange": torch.zeros(1)}, r"layer1\.0\.strange"),
        ({"backbone.4.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, r"layer1\.0\.conv1\.weight"),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=message):
            adapt_place_recognition(ForeignTensors(state(NAME) | change, NAME), Options(image_size_px=64))
    lacking = {n: t for n, t in state(NAME).items() if n != "backbone.4.0.conv1.weight"}
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight"):
        adapt_place_recognition(ForeignTensors(lacking, NAME), Options(image_size_px=64))


def test_what_a_file_leaves_open_must_be_said() -> None:
    for name, wrong in (("vg resnet18conv4 spoc", "cls"), ("vg cct cls", "spoc")):
        with pytest.raises(ConfigError, match="name the one of its training"):
            adapt_place_recognition(ForeignTensors(state(name), "file"), Options(aggregation=wrong))
    after = {
        n.replace("aggregation.0.1.p", "aggregation.0.0.p"): t
        for n, t in state("vg resnet18conv4 gem fc").items()
    }
    with pytest.raises(ConfigError, match="--l2, l2= 'after_pool' or 'none'"):
        adapt_place_recognition(ForeignTensors(after, "file"), Options())
    with pytest.raises(ConfigError, match="l2 is 'never'"):
        adapt_place_recognition(
            ForeignTensors(state("vg resnet18conv4 spoc"), "file"), Options(aggregation="spoc", l2="never")
        )


def test_a_transformer_has_one_size() -> None:
    for name, size in (("vg cct netvlad", 64), ("vg vit cls", 48)):
        with pytest.raises(ConfigError, match=f"transformer for images of {size} px"):
            adapt_place_recognition(ForeignTensors(state(name), name), Options(image_size_px=96))


def test_transformers_of_another_kind_are_refused() -> None:
    wide = {
        n: torch.zeros(*t.shape[:-1], 256) if n.endswith("_emb") else t
        for n, t in state("vg cct cls").items()
    }
    with pytest.raises(ConfigError, match="known is CCT-14/7x2"):
        adapt_place_recognition(ForeignTensors(wide, "file"), Options(aggregation="cls"))
    name = "gsv swin convap"
    without_mask = {n: t for n, t in state(name).items() if not n.endswith("attn_mask")}
    with pytest.raises(ConfigError, match="windows of 16"):
        adapt_place_recognition(
            ForeignTensors(
                without_mask | {"backbone.model.patch_embed.proj.weight": torch.zeros(5, 3, 4, 4)}, name
            ),
            Options(),
        )


def test_what_only_training_used_is_left_out() -> None:
    more = state(NAME) | {"discriminator.1.weight": torch.zeros(50, 256)}
    adapt_place_recognition(ForeignTensors(more, NAME), Options(image_size_px=64))


def test_a_trained_sum_is_no_crn_of_the_benchmark() -> None:
    name = "vg resnet18conv4 crn"
    changed = state(name) | {"aggregation.crn.acc_w.bias": torch.ones(1)}
    with pytest.raises(CheckpointError, match="acc_w"):
        adapt_place_recognition(ForeignTensors(changed, name), Options())


@pytest.mark.parametrize("form", ["bare", "trainer", "parallel"])
def test_files_localize_by_their_references(form: str, tmp_path: Path) -> None:
    tensors: Any = state(NAME)
    if form == "parallel":
        tensors = {f"module.{n}": t for n, t in tensors.items()}
    if form == "trainer":  # as the benchmark's trainer writes it, its metrics as NumPy keeps them
        tensors = {
            "epoch_num": 3,
            "model_state_dict": tensors,
            "recalls": np.ones(5),
            "best_r5": np.float64(9.0),
        }
    torch.save(tensors, tmp_path / "best_model.pth")
    model = Geolocalizer.from_pretrained(tmp_path / "best_model.pth", image_size_px=64)
    database = ReferenceDatabase.create(tmp_path / "refs", model=model)
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (80, 100, 3), np.uint8) for _ in range(3)]
    places = np.array([[55.7, 13.2], [0.0, -180.0], [-33.9, 151.2]])
    vectors = model.embed_reference(torch.stack([model.load(photo) for photo in photos]), "street")
    database.append(ReferenceRows(places, source="street", key=["a", "b", "c"]), vectors)
    for photo, key in zip(photos, "abc", strict=True):
        best = max(
            model.localize(photo, reference=database, places=False).candidates,
            key=lambda c: c.similarity or 0,
        )
        assert best.key == key
        assert best.similarity == pytest.approx(1, abs=1e-4)
    model.save_pretrained(tmp_path / "ours")
    again = Geolocalizer.from_pretrained(tmp_path / "ours")
    np.testing.assert_allclose(
        again.embed_reference(model.load(photos[0])[None], "street"), vectors[:1], atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "asked", "size_px", "resize"),
    [
        ("cosplace ResNet18 32", 320, 320, "shortest"),
        ("cosplace ResNet18 32", (480, 640), (480, 640), "squash"),
        (NAME, 224, 224, "shortest"),
        (NAME, (240, 320), (240, 320), "squash"),
        ("gsv convap resnet18", 224, 224, "squash"),
        ("vg cct netvlad", 64, 64, "squash"),
    ],
)
def test_another_size(name: str, asked: Any, size_px: int | tuple[int, int], resize: str) -> None:
    adapted = adapt_place_recognition(ForeignTensors(state(name), name), Options(image_size_px=asked))
    assert (adapted.preprocess.image_size_px, adapted.preprocess.resize) == (size_px, resize)


def test_a_mixer_takes_no_rectangle() -> None:
    with pytest.raises(ConfigError, match="image_size_px is 64 x 96, but this model takes squares"):
        adapt_place_recognition(
            ForeignTensors(state("mixvpr resnet18"), "file"), Options(image_size_px=(64, 96))
        )


def test_pictures_that_keep_their_shapes(tmp_path: Path) -> None:
    """CosPlace's files: each photo as it is, and references of several shapes in one batch."""
    torch.save(state("cosplace ResNet18 32"), tmp_path / "ResNet18_32_cosplace.pth")
    model = Geolocalizer.from_pretrained(tmp_path / "ResNet18_32_cosplace.pth")
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in ((64, 96), (80, 80), (64, 96))]
    inputs = [model.load(photo) for photo in photos]
    assert [tuple(x.shape) for x in inputs] == [(3, 64, 96), (3, 80, 80), (3, 64, 96)]
    vectors = embed_images(model, inputs, "street")
    for x, vector in zip(inputs, vectors, strict=True):
        np.testing.assert_allclose(model.embed_reference(x[None], "street")[0], vector, atol=1e-6)
    database = ReferenceDatabase.create(tmp_path / "refs", model=model)
    places = np.array([[55.7, 13.2], [0.0, -180.0], [-33.9, 151.2]])
    database.append(ReferenceRows(places, source="street", key=["a", "b", "c"]), vectors)
    for photo, found in zip(photos, model.localize(photos, reference=database, places=False), strict=True):
        alone = model.localize(photo, reference=database, places=False)
        assert max(c.similarity or 0 for c in found.candidates) == pytest.approx(1, abs=1e-4)
        assert alone.lat == pytest.approx(found.lat, abs=1e-3)
    model.save_pretrained(tmp_path / "ours")
    again = Geolocalizer.from_pretrained(tmp_path / "ours")
    assert again.preprocess == model.preprocess
    assert again.embedding_fingerprint == model.embedding_fingerprint
    with pytest.raises(ConfigError, match="takes images in their own size"):
        again.export_onnx(tmp_path / "onnx", photos)
