"""A tiny real model end to end: predictions, options, calibration. Checkpoints are in test_checkpoint.py."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import VIT, tiny_geolocalizer, tiny_image, tiny_quadtree

from geoloc.errors import BadImageError, CheckpointError, ConfigError
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.config import EmbeddingHeadConfig, OffsetHeadConfig, RegressionHeadConfig
from geoloc.posterior.cells import cell_radius_km
from geoloc.posterior.prediction import Prediction
from geoloc.posterior.utility import Utility
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, haversine_km


@pytest.fixture(scope="module")
def model() -> Geolocalizer:
    return tiny_geolocalizer()


def places_of(predictions: list[Prediction]) -> NDArray[np.float64]:
    return np.array([(p.lat, p.lon) for p in predictions])


def regression(**config: Any) -> Geolocalizer:
    return tiny_geolocalizer(
        cells=None, offsets=None, regression=RegressionHeadConfig(hidden_dims=(), **config), calibration=None
    )


# --- What may be given ---


def test_any_form_of_one_image_gives_the_same(model: Geolocalizer, tmp_path: Path) -> None:
    array = tiny_image(3)
    path = tmp_path / "image.png"
    Image.fromarray(array).save(path)
    forms: list[Any] = [array, path, str(path), path.read_bytes(), Image.fromarray(array)]
    expected = model.localize(array, places=False)
    assert isinstance(expected, Prediction)
    for form in forms:
        assert model.localize(form, places=False) == expected, type(form)
    for sequence in (forms, tuple(forms)):
        many = model.localize(sequence, batch_size=2, places=False)
        assert isinstance(many, list)
        assert places_of(many) == pytest.approx(np.array([[expected.lat, expected.lon]] * 5), abs=1e-4)
    assert model.localize([]) == []


def test_a_bad_image_is_named(model: Geolocalizer) -> None:
    with pytest.raises(BadImageError, match=r"^(?!image)"):
        model.localize(b"no image")
    with pytest.raises(BadImageError, match=r"^image 3 of the list: "):
        model.localize([tiny_image(0)] * 3 + [b"no image"], batch_size=2)


@pytest.mark.parametrize("parts", [{}, {"offsets": None}, {"offsets": OffsetHeadConfig(shared=True)}])
def test_neighbours_in_the_batch_change_nothing(parts: dict[str, Any]) -> None:
    model = tiny_geolocalizer(**parts)
    images = [tiny_image(seed) for seed in range(23)]
    # The cells of this model are 5000 km wide, so a float32's rounding of a probability is metres; the median
    # answers to it most. 0.011 km are 1e-4 degrees.
    for utility, limit_km in (("geoscore", 0.011), ("median", 0.1), ("within:300", 0.011)):
        alone = places_of([model.localize(image, utility=utility, places=False) for image in images])
        for batch_size in (3, 16, 100):
            together = model.localize(images, batch_size=batch_size, utility=utility, places=False)
            assert haversine_km(alone, places_of(together)).max() < limit_km


# --- What comes out ---


def test_a_prediction_is_consistent(model: Geolocalizer) -> None:
    assert model.quadtree is not None
    for prediction in model.localize([tiny_image(seed) for seed in range(20)], top_k=4, places=False):
        assert -90 <= prediction.lat <= 90
        assert -180 <= prediction.lon < 180
        best = prediction.candidates[0]
        assert (prediction.cell_path, prediction.probability) == (best.key, best.probability)
        probabilities = [candidate.probability for candidate in prediction.candidates]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1 + 1e-9
        assert len(prediction.candidates) <= 4
        for candidate in prediction.candidates:
            assert candidate.key in model.quadtree.paths
            assert (candidate.source, candidate.similarity) == ("cell", None)
        assert 0 < prediction.radius_km[50] < prediction.radius_km[90]
        assert (prediction.place, prediction.abstained) == (None, False)


def test_probabilities_are_the_softmax_of_the_networks_logits(model: Geolocalizer) -> None:
    assert model.quadtree is not None
    images = torch.stack([model.load(tiny_image(seed)) for seed in range(4)])
    with torch.inference_mode():
        probs = torch.softmax(model.network(images).cell_logits.double() / model.calibration.temperature, -1)
    for row, prediction in zip(probs, model.localize_batch(images, places=False), strict=True):
        cell = int(row.argmax())
        assert prediction.cell_path == model.quadtree.paths[cell]
        assert prediction.probability == pytest.approx(float(row[cell]), rel=1e-5)


def test_offsets_move_the_candidates_inside_their_cells(model: Geolocalizer) -> None:
    tree, head = model.quadtree, model.network.offsets
    assert tree is not None
    assert head is not None
    images = torch.stack([model.load(tiny_image(seed)) for seed in range(4)])
    with torch.inference_mode():
        offsets = model.network(images).offsets
    moved = 0
    for row, prediction in zip(offsets, model.localize_batch(images, places=False), strict=True):
        for candidate in prediction.candidates:
            cell = tree.paths.index(candidate.key)
            south, west, north, east = tree.bounds_deg[cell]
            lat, lon = tree.center_latlon_deg[cell]
            r = row[cell].double().tolist()
            lat += r[0] * (north - lat if r[0] > 0 else lat - south)
            lon += r[1] * (east - lon if r[1] > 0 else lon - west)
            assert candidate.lat == pytest.approx(min(max(lat, -90), 90), abs=1e-3)
            assert (candidate.lon - lon) % 360 == pytest.approx(
                0, abs=1e-3
            ) or candidate.lon == pytest.approx((lon + 180) % 360 - 180, abs=1e-3)
            moved += abs(r[0]) > 0.05
    assert moved > 0


def test_without_offsets_candidates_are_representative_points() -> None:
    model = tiny_geolocalizer(offsets=None)
    assert model.quadtree is not None
    for prediction in model.localize([tiny_image(seed) for seed in range(5)], places=False):
        for candidate in prediction.candidates:
            center = model.quadtree.center_latlon_deg[model.quadtree.paths.index(candidate.key)]
            assert [candidate.lat, candidate.lon] == pytest.approx(center.tolist(), abs=1e-9)


def test_the_point_is_the_posteriors_best_for_the_utility(model: Geolocalizer) -> None:
    images = torch.stack([model.load(tiny_image(seed)) for seed in range(6)])
    found = {}
    for text in ("geoscore", "median", "within:100km", Utility("within", 2000.0)):
        posteriors, _ = model.pipeline.posteriors(model.pipeline.run(images), model.calibration, None, 5)
        predictions = model.localize_batch(images, utility=text, places=False)
        for posterior, prediction in zip(posteriors, predictions, strict=True):
            lat, lon = np.degrees(np.arcsin(posterior.point(Utility.parse(text))[2])), prediction.lon
            assert (prediction.lat, prediction.lon) == (pytest.approx(lat, abs=1e-6), lon)
        found[str(text)] = places_of(predictions)
    for a in found:
        for b in found:
            assert a == b or not np.allclose(found[a], found[b], atol=0.01)


def test_radii_hold_the_calibrated_mass(model: Geolocalizer) -> None:
    image = model.load(tiny_image(1))[None]
    (posterior,), _ = model.pipeline.posteriors(model.pipeline.run(image), model.calibration, None, 5)
    for kind in ("geoscore", "median"):
        (prediction,) = model.localize_batch(image, utility=kind, places=False)
        point = posterior.point(Utility.parse(kind))
        for percent, level in model.calibration.levels(kind).items():
            assert posterior.mass_within(point, prediction.radius_km[percent]) == pytest.approx(
                level, abs=1e-6
            )


def test_the_posterior_counts_every_cell(model: Geolocalizer) -> None:
    flat = tiny_geolocalizer()
    assert flat.network.cells is not None
    with torch.no_grad():
        flat.network.cells[-1].weight.zero_()
        flat.network.cells[-1].bias.zero_()
    outputs = flat.pipeline.run(flat.load(tiny_image(0))[None])
    (posterior,), (candidates,) = flat.pipeline.posteriors(outputs, flat.calibration, None, 3)
    assert len(candidates) == 3
    assert posterior.cloud_weight.sum() == pytest.approx(1)
    assert posterior.weight == pytest.approx(np.full(13, 1 / 13))  # 95 % needs all 13


def test_places_are_looked_up_when_asked_for(model: Geolocalizer) -> None:
    prediction = model.localize(tiny_image(0))
    assert prediction.place is not None
    assert prediction.place.distance_km == pytest.approx(
        float(haversine_km([prediction.lat, prediction.lon], prediction.place.latlon_deg)), abs=0.01
    )


# --- Options ---


def test_abstaining(model: Geolocalizer) -> None:
    images = [tiny_image(seed) for seed in range(8)]
    radii = sorted(p.radius_km[90] for p in model.localize(images, places=False))
    limit = (radii[3] + radii[4]) / 2
    predictions = model.localize(images, abstain_above_km=limit, places=False)
    assert [p.abstained for p in predictions] == [p.radius_km[90] > limit for p in predictions]
    assert sum(p.abstained for p in predictions) == 4


def test_a_model_without_calibration_has_no_radii_and_cannot_abstain() -> None:
    model = tiny_geolocalizer(calibration=None)
    assert model.localize(tiny_image(0), places=False).radius_km == {}
    with pytest.raises(
        ConfigError,
        match=r"above 100 km, but the model 'tiny' has no calibrated 90 % radius for the utility geoscore",
    ):
        model.localize(tiny_image(0), abstain_above_km=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"utility": "mean"}, r"utility is 'mean'; expected geoscore, median or within:"),
        ({"top_k": 0}, r"top_k is 0; it must be at least 1"),
        ({"batch_size": 0}, r"batch_size is 0; it must be at least 1"),
        ({"batch_size": -4}, r"batch_size is -4; it must be at least 1"),
        ({"abstain_above_km": -1.0}, r"abstain_above_km is -1\.0; it must be a distance"),
        ({"abstain_above_km": float("nan")}, r"abstain_above_km is nan; it must be a distance"),
    ],
)
def test_impossible_options_are_refused(model: Geolocalizer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.localize([tiny_image(0)], **options)
    with pytest.raises(ConfigError, match=message):
        model.localize(tiny_image(0), **options)


# --- Other networks ---


@pytest.mark.parametrize("kind", ["unit_vector", "tanh"])
def test_a_regression_alone(kind: str) -> None:
    model = regression(kind=kind)
    images = torch.stack([model.load(tiny_image(seed)) for seed in range(5)])
    with torch.inference_mode():
        expected = np.degrees(model.network(images).latlon_rad.double().numpy())
    predictions = model.localize_batch(images, places=False)
    assert haversine_km(places_of(predictions), expected).max() < 0.01  # what was regressed, and nothing else
    for prediction, (lat, lon) in zip(predictions, expected, strict=True):
        (candidate,) = prediction.candidates
        assert (candidate.lat, candidate.lon) == (pytest.approx(lat), pytest.approx(lon))
        assert (candidate.source, candidate.key, candidate.probability) == ("regression", "", 1.0)
        assert prediction.cell_path == ""
        # Within 25 km of the middle of a kernel of 500 km.
        assert prediction.probability == pytest.approx(-np.expm1(-((25 / 500) ** 2) / 2), abs=1e-4)


def test_a_regression_at_the_seams_stays_on_the_earth() -> None:
    """tanh saturates: float32 has no pi, and its next number is 180.000005 degrees."""
    model = regression(kind="tanh")
    assert model.network.regression is not None
    with torch.no_grad():
        model.network.regression.mlp[-1].bias.fill_(100.0)
    (candidate,) = model.localize(tiny_image(0), places=True).candidates
    assert 89.99 < candidate.lat <= 90
    assert -180 <= candidate.lon < 180


def test_a_model_that_only_embeds() -> None:
    model = tiny_geolocalizer(cells=None, offsets=None, embeddings={"query": EmbeddingHeadConfig(dim=8)})
    with pytest.raises(
        ConfigError, match=r"'tiny' has neither a cell head nor a regression head: it only embeds"
    ):
        model.localize(tiny_image(0))


def test_numbers_that_are_not_finite_are_an_error_and_no_place() -> None:
    model = tiny_geolocalizer()
    with torch.no_grad():
        next(model.network.parameters()).fill_(float("nan"))
    with pytest.raises(
        CheckpointError, match=r"the model 'tiny' gives numbers that are not finite: its weights"
    ):
        model.localize(tiny_image(0))


def test_the_quadtree_must_be_the_networks() -> None:
    model = tiny_geolocalizer()
    with pytest.raises(
        ConfigError, match=r"the network classifies 13 cells, but the quadtree has 0; give the"
    ):
        Geolocalizer("x", model.network, model.preprocess, None)
    other = tiny_quadtree(num_points=200)
    with pytest.raises(ConfigError, match=rf"classifies 13 cells, but the quadtree has {other.num_cells}"):
        Geolocalizer("x", model.network, model.preprocess, other)


def test_the_network_is_switched_to_evaluation() -> None:
    model = tiny_geolocalizer()
    assert not any(module.training for module in model.network.modules())
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_an_identity_comes_with_a_save(tmp_path: Path) -> None:
    model = tiny_geolocalizer()
    with pytest.raises(
        CheckpointError, match=r"a model has an identity once it is saved: call save_pretrained"
    ):
        _ = model.identity
    model.save_pretrained(tmp_path / "a")
    assert Geolocalizer.from_pretrained(tmp_path / "a").identity == model.identity


# --- Calibration ---


def scattered(
    model: Geolocalizer, seed: int, count: int
) -> Iterator[tuple[torch.Tensor, NDArray[np.float64]]]:
    """Images, and places scattered around where the model puts them: exchangeable, and wrong by much."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, 50):
        images = torch.stack([model.load(tiny_image(seed * 10**6 + start + i)) for i in range(50)])
        at = places_of(model.localize_batch(images, places=False))
        off = rng.normal(0, 8, (50, 2)) + (rng.random((50, 1)) < 0.1) * rng.normal(0, 60, (50, 2))
        latlon = at + off
        yield images, np.stack([latlon[:, 0].clip(-90, 90), latlon[:, 1]], -1)


@pytest.mark.parametrize("kind", ["cells", "cells without offsets", "regression"])
def test_calibrated_radii_hold_the_truth_as_often_as_they_say(kind: str) -> None:
    makers = {
        "cells": tiny_geolocalizer,
        "cells without offsets": lambda: tiny_geolocalizer(offsets=None),
        "regression": regression,
    }
    model = makers[kind]()
    sets = list(scattered(model, 1, 300)), list(scattered(model, 2, 300))
    calibration = model.calibrate(sets[0], "made up")
    assert model.calibration is calibration
    assert (calibration.num_images, calibration.data) == (300, "made up")
    assert (calibration.regression_kernel_km != 500) == (kind == "regression")
    assert (calibration.temperature != 1) == (kind != "regression")
    for utility in ("geoscore", "median"):
        inside = []
        for images, latlon in sets[1]:
            predictions = model.localize_batch(images, utility=utility, places=False)
            off_km = haversine_km(places_of(predictions), latlon)
            inside += [
                [d <= p.radius_km[50], d <= p.radius_km[90]] for d, p in zip(off_km, predictions, strict=True)
            ]
        # Two samples of 300: the standard deviation of the share of a half is 4 %.
        assert np.mean(inside, axis=0) == pytest.approx([0.5, 0.9], abs=0.08)


def test_calibration_makes_another_model_of_it(tmp_path: Path) -> None:
    model = tiny_geolocalizer()
    model.save_pretrained(tmp_path / "a")
    before = model.identity
    model.calibrate(scattered(model, 1, 50), "a few")
    with pytest.raises(CheckpointError, match=r"an identity once it is saved"):
        _ = model.identity
    model.save_pretrained(tmp_path / "a")
    assert model.identity != before
    assert Geolocalizer.from_pretrained(tmp_path / "a").calibration == model.calibration


def test_calibration_needs_images(model: Geolocalizer) -> None:
    before = model.calibration
    with pytest.raises(ConfigError, match=r"there are no images to calibrate with; give a few thousand"):
        model.calibrate([], "nothing")
    assert model.calibration is before


# --- Areas ---


def test_cell_radii_add_up_to_the_earth() -> None:
    tree = tiny_quadtree()
    bounds = np.concatenate([tree.bounds_deg, tree.empty_bounds_deg])
    area = (np.pi * cell_radius_km(bounds) ** 2).sum()
    assert area == pytest.approx(4 * np.pi * EARTH_MEAN_RADIUS_KM**2)
    assert cell_radius_km(np.array([[10.0, 20, 10, 20]])).tolist() == [0.001]


def test_pictures_of_the_readme_work(model: Geolocalizer) -> None:
    """A JPEG, by way of the fast decoder."""
    file = io.BytesIO()
    Image.fromarray(tiny_image(0, 300, 400)).save(file, "JPEG", quality=95)
    a, b = model.localize([file.getvalue(), tiny_image(0, 300, 400)], places=False)
    assert haversine_km([a.lat, a.lon], [b.lat, b.lon]) < 2000
    assert VIT["embed_dim"] == 16


# --- What reference databases need ---


def test_references_are_embedded_by_the_head_of_their_source() -> None:
    heads = {role: EmbeddingHeadConfig(dim=8) for role in ("query", "aerial", "street")}
    model = tiny_geolocalizer(embeddings=heads)
    images = torch.stack([model.load(tiny_image(seed)) for seed in range(3)])
    assert model.embedding_dim == 8
    for source in ("aerial", "street"):
        vectors = model.embed_reference(images, source)
        expected = model.network.embed(model.network.backbone(images), source).detach().numpy()
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    with pytest.raises(ConfigError, match="no embedding for 'location'"):
        model.embed_reference(images, "location")


def test_a_model_without_embeddings_says_so(model: Geolocalizer) -> None:
    with pytest.raises(ConfigError, match=r"embeddings of 0 widths, .* trained for retrieval"):
        model.embedding_dim  # noqa: B018  the access is the test
