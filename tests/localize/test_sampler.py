"""Places drawn, and what is read off them. That the draws are PLONK's own, tests/adapters shows."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import VIT, tiny_image
from tiny_plonk import plonk_files, plonk_state, street_files

from geoloc import Geolocalizer, cli
from geoloc.adapters.plonk import PlonkField
from geoloc.adapters.plonk_models import SamplingModel
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import BadImageError, CheckpointError, ConfigError
from geoloc.images.preprocess import Preprocess
from geoloc.localize.sampler import (
    SINGLE_SAMPLE_KM,
    LocationSampler,
    SamplingOptions,
    candidates_of_samples,
    posterior_of_samples,
)
from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig
from quadtree.sphere import destination_latlon_deg, haversine_km, latlon_to_unit

FEW = SamplingOptions(num_samples=12, num_steps=8)


def sampler(kind: str = "sphere", drawing: SamplingOptions = FEW) -> LocationSampler:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(custom=VIT, features="cls_before_norm")).eval()
    defaults = backbone.preprocess_defaults
    preprocess = Preprocess(image_size_px=defaults.size_px, mean=defaults.mean, std=defaults.std)
    field = PlonkField(ForeignTensors(plonk_state(), "tiny"))
    return LocationSampler("tiny", SamplingModel(field, kind, backbone, preprocess), drawing)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sphere", "space", "diffusion"])
def test_draws_follow_seed_and_photo(kind: str) -> None:
    model = sampler(kind)
    first = model.sample([tiny_image(0), tiny_image(1)])
    assert first.shape == (2, 12, 2)
    assert (np.abs(first[..., 0]) <= 90).all()
    assert ((first[..., 1] >= -180) & (first[..., 1] < 180)).all()
    np.testing.assert_array_equal(first, model.sample([tiny_image(0), tiny_image(1)]))
    # A photo's draws do not depend on what is drawn beside it.
    np.testing.assert_allclose(model.sample(tiny_image(1))[0], first[1], rtol=0, atol=1e-3)
    assert model.sample(tiny_image(1), num_samples=5).shape == (1, 5, 2)
    for change in ({"seed": 1}, {"guidance": 2.0}, {"num_steps": 20}):
        assert np.abs(model.sample(tiny_image(0), **change) - first[0]).max() > 1e-3
    assert np.abs(first[0] - first[1]).max() > 1e-3


def test_a_prediction_is_read_off_the_draws() -> None:
    model = sampler()
    (prediction,) = model.predict(tiny_image(0), top_k=3)
    draws = model.sample(tiny_image(0))[0]
    assert prediction.radius_km == {}  # nobody has promised anything
    assert prediction.cell_path == ""
    assert prediction.place is not None
    assert len(prediction.candidates) == 3
    for candidate in prediction.candidates:
        assert candidate.source == "sample"
        assert haversine_km(draws, [[candidate.lat, candidate.lon]]).min() < 1e-3
    (near,) = model.predict(tiny_image(0), utility="within:25km")
    share = (haversine_km(draws, np.array([[near.lat, near.lon]])) <= 25).mean()
    assert 0 < near.probability < 1
    assert near.probability == pytest.approx(share, abs=0.2)  # the bells are wider than nothing
    assert len(prediction.posterior) == 12
    (coarse,) = model.predict(tiny_image(0), max_precision_km=500)
    assert (coarse.lat, coarse.lon) != (prediction.lat, prediction.lon)
    assert len(model.predict([tiny_image(i) for i in range(18)], places=False)) == 18


def around(latlon_deg: tuple[float, float], number: int, km: float) -> NDArray[np.float64]:
    return np.array(
        [
            destination_latlon_deg([latlon_deg], 360 * i / number, km * (i + 1) / number)[0]
            for i in range(number)
        ]
    )


def test_bells_are_as_wide_as_neighbours_are_far() -> None:
    dense, far = around((48.0, 2.0), 8, 10.0), np.array([[-33.9, 151.2]])
    posterior = posterior_of_samples(latlon_to_unit(np.concatenate([dense, far])))
    # Of nine draws the third nearest other one, by brute force.
    all_km = haversine_km(np.concatenate([dense, far])[:, None], np.concatenate([dense, far])[None])
    np.testing.assert_allclose(posterior.scale_km, np.maximum(np.sort(all_km, 1)[:, 3], 1.0), rtol=1e-3)
    np.testing.assert_allclose(posterior.weight, 1 / 9)
    assert posterior_of_samples(latlon_to_unit(far)).scale_km.tolist() == [SINGLE_SAMPLE_KM]


def test_candidates_are_where_draws_agree() -> None:
    many, few = around((48.0, 2.0), 6, 15.0), around((-33.9, 151.2), 3, 5.0)
    alone = np.array([[10.0, 10.0]])
    found = candidates_of_samples(latlon_to_unit(np.concatenate([alone, few, many])), 5)
    assert [round(c.probability * 10) for c in found] == [6, 3, 1]
    assert haversine_km([[found[0].lat, found[0].lon]], [[48.0, 2.0]])[0] < 15.1
    assert len(candidates_of_samples(latlon_to_unit(np.concatenate([few, many])), 1)) == 1


def test_calibrated_circles_hold_what_they_say() -> None:
    """On photos whose truth is one more draw of the model, about as often as promised."""
    photos = [tiny_image(i) for i in range(60)]
    truth = np.stack(
        [sampler().sample(photo, seed=100 + i, num_samples=1)[0, 0] for i, photo in enumerate(photos)]
    )
    model = sampler()
    before = model.identity
    model.calibrate(photos[:40], truth[:40], "made up")
    assert model.identity != before
    found = model.predict(photos[40:], abstain_above_km=1e-6)
    assert all(p.abstained for p in found)
    inside = [
        haversine_km([[p.lat, p.lon]], [where])[0] <= p.radius_km[90]
        for p, where in zip(found, truth[40:], strict=True)
    ]
    assert np.mean(inside) >= 0.7  # of 20, where 18 are expected
    with pytest.raises(ConfigError, match="0 images and 0 locations"):
        model.calibrate([], np.zeros((0, 2)), "nothing")


def test_a_field_of_nothing_makes_every_place_as_likely() -> None:
    model = sampler()
    with torch.no_grad():
        model._field.final_linear.weight.zero_()
        model._field.final_linear.bias.zero_()
    found = model.log_density(tiny_image(0), [[48.0, 2.0], [-80.0, 170.0]])
    np.testing.assert_allclose(found, -np.log(4 * np.pi), atol=1e-6)
    with pytest.raises(ConfigError, match="without _flow and _diffusion"):
        sampler("space").log_density(tiny_image(0), [[0.0, 0.0]])


def test_what_is_impossible_is_said(tmp_path: Path) -> None:
    model = sampler()
    for change in ({"num_samples": 0}, {"guidance": -1.0}, {"num_steps": 0}, {"guidance": float("nan")}):
        with pytest.raises(ConfigError, match="at least one sample"):
            model.sample(tiny_image(0), **change)
    with pytest.raises(ConfigError, match="'tiny' has no calibrated 90 % radius"):
        model.predict(tiny_image(0), abstain_above_km=10)
    with pytest.raises(ConfigError, match="top_k is 0"):
        model.predict(tiny_image(0), top_k=0)
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    with pytest.raises(BadImageError):
        model.predict(tmp_path / "no.jpg")
    with torch.no_grad():
        model._field.final_linear.bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        model.sample(tiny_image(0))


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Path]:
    """A model and its tower, as they are published."""
    folder, tower = tmp_path / "PLONK_OSV_5M", tmp_path / "street"
    for path, files in ((folder, plonk_files()), (tower, street_files())):
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
    return folder, tower


def test_from_a_folder(published: tuple[Path, Path]) -> None:
    folder, tower = published
    model = LocationSampler.from_pretrained(folder, tower=tower, sampling=FEW)
    assert model.kind == "sphere"
    other = LocationSampler.from_pretrained(
        folder, tower=tower, sampling=FEW, published_as="PLONK_OSV_5M_flow"
    )
    assert other.kind == "space"
    assert other.identity != model.identity
    assert np.abs(other.sample(tiny_image(0)) - model.sample(tiny_image(0))).max() > 1e-3
    for name in (folder, "nicolas-dufour/PLONK_YFCC"):  # the second without asking the Hub
        with pytest.raises(ConfigError, match="LocationSampler"):
            Geolocalizer.from_pretrained(name)


def test_the_command_localises_with_it(
    published: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    from PIL import Image

    folder, tower = published
    Image.fromarray(tiny_image(0)).save(tmp_path / "photo.png")
    output, page = tmp_path / "out.csv", tmp_path / "map.html"

    def run(*more: str) -> tuple[int, str]:
        command = [
            "geoloc",
            "localize",
            str(tmp_path / "photo.png"),
            "--model",
            str(folder),
            "--quiet",
            *more,
        ]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as exited:
            cli.main()
        out, err = capsys.readouterr()
        return int(exited.value.code or 0), out + err

    with_tower = ("--model-option", f"tower={tower}")
    code, said = run("--output", str(output), "--map", str(page), *with_tower)
    assert code == 0, said
    assert "sample" in output.read_text()
    assert page.is_file()
    for more, why in (
        (("--query", "five_crops"), "samples locations from one image"),
        (("--model-option", "lora_alpha=2"), "has no option 'lora_alpha'"),
    ):
        code, said = run(*more)
        assert code == 2
        assert why in said


def test_an_evaluation_and_a_batch_of_a_model_that_draws(
    published: tuple[Path, Path], tmp_path: Path
) -> None:
    from PIL import Image
    from typer.testing import CliRunner

    from geoloc.localize.rows import LocalizeWork
    from geoloc.localize.session import SessionOptions

    folder, tower = published
    (tmp_path / "photos").mkdir()
    lines = ["id,latitude,longitude"]
    for seed in range(3):
        Image.fromarray(tiny_image(seed)).save(tmp_path / "photos" / f"{seed}.png")
        lines.append(f"{seed},{10 * seed},{20 * seed}")
    (tmp_path / "photos" / "truth.csv").write_text("\n".join(lines))
    command = [
        "evaluate",
        "benchmark",
        "--model",
        str(folder),
        "--model-option",
        f"tower={tower}",
        "--benchmark",
        "csv",
    ]
    result = CliRunner().invoke(
        cli.app,
        [*command, "--data", str(tmp_path / "photos"), "-o", str(tmp_path / "report")],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    metrics = (tmp_path / "report" / "metrics.json").read_text()
    assert '"references": "none"' in metrics
    assert "PLONK_OSV_5M" in metrics
    work = LocalizeWork(
        str(folder), SessionOptions(reference=(str(tmp_path / "refs"),)), model_options={"tower": str(tower)}
    )
    with pytest.raises(ConfigError, match="searches no references: leave --query and --reference out"):
        work.identity()
