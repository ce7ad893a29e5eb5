"""Models of place recognition as the product: a head over feature maps, for photos and street references alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import VIT, tiny_geolocalizer, tiny_image

from geoloc.errors import ConfigError
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.localize.session import Session, SessionOptions
from geoloc.models.config import AggregationConfig, BackboneConfig, EmbeddingHeadConfig, RegressionHeadConfig
from geoloc.posterior.reranker_network import RerankerConfig
from geoloc.posterior.utility import Utility
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.embedder import embed_images
from geoloc.reference.rows import ReferenceRows
from quadtree.sphere import haversine_km

MAP = BackboneConfig(custom=VIT, features="map")
PLACES = np.array([[55.70, 13.19], [55.71, 13.20], [-33.9, 151.2], [0.0, -180.0], [89.9, 10.0]])


def street_model(kind: str = "cosplace", dim: int = 8, **parts: Any) -> Geolocalizer:
    """One that only embeds, unless it is given a head that says where."""
    head = EmbeddingHeadConfig(dim, aggregation=AggregationConfig(kind, **parts.pop("aggregation", {})))  # type: ignore[arg-type]
    parts = {"cells": None, "offsets": None, "backbone": MAP} | parts
    return tiny_geolocalizer(None, embeddings={"query": head}, street_as_query=True, **parts)


def saved_with_references(model: Geolocalizer, folder: Path) -> tuple[Geolocalizer, ReferenceDatabase]:
    """The model loaded again, and the pictures 0 to 4 at their places."""
    model.save_pretrained(folder / "model")
    model = Geolocalizer.from_pretrained(folder / "model")
    database = ReferenceDatabase.create(folder / "refs", model=model)
    pictures = torch.stack([model.load(tiny_image(seed)) for seed in range(5)])
    rows = ReferenceRows(PLACES, source="street", key=[f"picture {seed}" for seed in range(5)])
    database.append(rows, model.embed_reference(pictures, "street"))
    return model, database


@pytest.mark.parametrize(
    ("kind", "dim", "aggregation"),
    [
        ("cosplace", 8, {}),
        ("gem", 32, {}),
        ("netvlad", 8, {"clusters": 3, "pca": True}),
        ("convap", 16, {}),
        ("mixvpr", 8, {}),
        ("cls", 32, {}),
    ],
)
def test_a_model_that_only_embeds_localizes_by_its_references(
    kind: str, dim: int, aggregation: dict[str, Any], tmp_path: Path
) -> None:
    model, database = saved_with_references(street_model(kind, dim, aggregation=aggregation), tmp_path)
    found = model.localize([tiny_image(seed) for seed in range(5)], reference=database, places=False)
    for seed, prediction in enumerate(found):
        best = max(prediction.candidates, key=lambda c: c.similarity or 0)
        assert best.key == f"picture {seed}"
        assert best.similarity == pytest.approx(1, abs=1e-4)
        assert haversine_km([best.lat, best.lon], PLACES[seed]) < 1e-3
        assert all(c.source == "street" for c in prediction.candidates)
        assert sum(c.probability for c in prediction.candidates) == pytest.approx(1)
        assert prediction.cell_path == ""


@pytest.mark.parametrize(
    ("trunk", "parts"),
    [
        ("test_resnet", {"crop_after": "layer3"}),
        ("test_efficientnet", {"crop_blocks": 3, "batch_norm_eps": 1e-3}),
        ("test_vit", {"crop_blocks": 2, "final_norm": True}),
    ],
)
def test_timm_towers_are_saved_and_loaded(trunk: str, parts: dict[str, Any], tmp_path: Path) -> None:
    tower = BackboneConfig(timm=trunk, features="map", image_size_px=64, **parts)
    model = street_model(backbone=tower)
    for name, buffer in model.network.named_buffers():
        if "running" in name:  # norms that do something, for folding to keep
            buffer.add_(0.3)
    loaded, database = saved_with_references(model, tmp_path)
    assert loaded.network.config == model.network.config
    pictures = torch.stack([model.load(tiny_image(seed)) for seed in range(2)])
    np.testing.assert_allclose(
        loaded.embed_reference(pictures, "street"), model.embed_reference(pictures, "street"), atol=1e-4
    )
    again = Geolocalizer.from_pretrained(tmp_path / "model")
    found = again.localize(tiny_image(3), reference=database, places=False)
    assert {c.key: c.similarity for c in found.candidates}["picture 3"] == pytest.approx(1, abs=1e-4)


def test_street_photos_are_embedded_by_the_head_of_the_query(tmp_path: Path) -> None:
    model = street_model("gem", 32)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    lines = ["id,latitude,longitude"]
    for seed, (lat, lon) in enumerate(PLACES.tolist()):
        Image.fromarray(tiny_image(seed)).save(tmp_path / "photos" / f"{seed}.png")
        lines.append(f"{seed}.png,{lat},{lon}")
    (tmp_path / "photos.csv").write_text("\n".join(lines))
    database = ReferenceDatabase.create(tmp_path / "refs", model=model)
    database.add_street(
        tmp_path / "photos",
        metadata=tmp_path / "photos.csv",
        model=model,
        progress=False,
    )
    prediction = model.localize(tiny_image(2), reference=database, places=False)
    best = max(prediction.candidates, key=lambda c: c.similarity or 0)
    assert (best.lat, best.lon) == pytest.approx(tuple(PLACES[2]), abs=1e-4)


def test_the_point_is_the_place_that_was_recognised(tmp_path: Path) -> None:
    model, database = saved_with_references(street_model(), tmp_path)
    assert model.pipeline.is_place_recognition
    assert model.pipeline.default_utility == Utility("within", 0.025)
    for seed in range(3):
        prediction = model.localize(tiny_image(seed), reference=database, places=False)
        best = prediction.candidates[0]
        assert haversine_km([prediction.lat, prediction.lon], [best.lat, best.lon]) < 0.01
        # A kernel holds 1 - exp(-1/2) of its mass within its own width; the other places are far away.
        assert prediction.probability == pytest.approx(best.probability * -np.expm1(-0.5), abs=0.01)
    assert not tiny_geolocalizer().pipeline.is_place_recognition
    assert tiny_geolocalizer().pipeline.default_utility == Utility("geoscore")


def test_the_structure_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, database = saved_with_references(street_model(), tmp_path)
    exact = Session(model, SessionOptions(), database)
    hnsw = Session(model, SessionOptions(structure="hnsw"), database)
    assert exact.fingerprint != hnsw.fingerprint
    known = model.retriever(database, "hnsw")
    assert known is not None
    assert model.retriever(database) is known  # later calls keep it
    picture = exact.load(tiny_image(1))
    assert hnsw.localize([picture]) == exact.localize([picture])
    assert list((tmp_path / "cache").rglob("*-hnsw-*.faiss"))
    assert model.retriever(database, "exact") is not known
    with pytest.raises(ConfigError, match=r"structure is .hnsw., but .* has no references to search"):
        Session(tiny_geolocalizer(), SessionOptions(structure="hnsw"))
    with pytest.raises(ConfigError, match="structure must be one of exact"):
        SessionOptions(structure="tree")  # type: ignore[arg-type]


def test_without_references_it_is_refused(tmp_path: Path) -> None:
    model = street_model()
    with pytest.raises(ConfigError, match=r"it only embeds\. Give it a reference database to search"):
        model.localize(tiny_image())
    with pytest.raises(ConfigError, match=r"it only embeds\. Give it a reference database to search"):
        Session(model, SessionOptions())  # before a job of any length has begun
    model.save_pretrained(tmp_path / "model")
    empty = ReferenceDatabase.create(tmp_path / "refs", model=model)
    with pytest.raises(ConfigError, match="only embeds, and the database has no references"):
        model.localize(tiny_image(), reference=empty)
    regressing = street_model(regression=RegressionHeadConfig())
    regressing.save_pretrained(tmp_path / "regressing")
    database = ReferenceDatabase.create(tmp_path / "more", model=regressing)
    with pytest.raises(ConfigError, match="have no references, so there is nothing to search"):
        regressing.localize(tiny_image(), reference=database)


def test_views_are_averaged_as_vectors_or_searched_one_by_one(tmp_path: Path) -> None:
    model, _ = saved_with_references(street_model(), tmp_path)
    views = model.load_query(tiny_image(1, 40, 90), "five_crops")
    assert len(views) > 1
    single = model.network.embed_images(views, "query")
    mean = torch.nn.functional.normalize(single.mean(0), dim=-1)
    ((together,),) = model.pipeline.run([views], embed=True).queries
    np.testing.assert_allclose(together[0], mean.numpy(), atol=1e-6)
    one_by_one = model.pipeline.run([views], embed=True, merge="nearest").queries[0]
    np.testing.assert_allclose(np.concatenate(one_by_one), single.numpy(), atol=1e-6)
    # Pictures in shapes of their own go one after the other.
    shapes = [model.load(tiny_image(1)), views]
    ((mixed,),) = model.pipeline.run(shapes, embed=True).queries
    np.testing.assert_allclose(mixed[1], mean.numpy(), atol=1e-6)


def test_cells_and_a_head_over_maps_go_together(tmp_path: Path) -> None:
    """The second stage of a classifier, by vectors of the same pass."""
    model = tiny_geolocalizer(
        backbone=MAP,
        embeddings={"query": EmbeddingHeadConfig(8, aggregation=AggregationConfig("cosplace"))},
        street_as_query=True,
    )
    model, database = saved_with_references(model, tmp_path)
    bare = model.localize(tiny_image(0), reference=None, places=False)
    with_it = model.localize(tiny_image(0), reference=database, places=False, top_k=50)
    assert with_it.cell_path == bare.cell_path
    assert {c.source for c in with_it.candidates} >= {"cell"}
    pictures = torch.stack([model.load(tiny_image(seed)) for seed in range(3)])
    read = model.pipeline.run(pictures, embed=True)
    np.testing.assert_allclose(read.heads.cell_logits, model.network(pictures).cell_logits, atol=1e-6)
    np.testing.assert_allclose(read.queries[0][0], model.embed_reference(pictures, "street"), atol=1e-6)


def test_a_model_that_only_embeds_is_fitted_and_calibrated_with_references(tmp_path: Path) -> None:
    model, database = saved_with_references(street_model(), tmp_path)
    pictures = torch.stack([model.load(tiny_image(seed)) for seed in range(5)])
    batches = [(pictures, PLACES + 0.01)]
    model.fit_reranker(batches, reference=database, config=RerankerConfig(hidden_dim=0))
    calibration = model.calibrate(batches, "five pictures", reference=database)
    assert calibration.mass_levels == {}
    assert set(calibration.reference_levels) == {database.identity}
    prediction = model.localize(tiny_image(0), reference=database, places=False)
    assert set(prediction.radius_km) <= {50, 90}


def test_the_circles_around_its_answers_hold_the_truth_as_often_as_they_say(tmp_path: Path) -> None:
    """They are fitted around the points that it answers with.

    Around those of the best GeoScore, between the references, they would be far too wide: 93 of 99 for 50 %.
    """
    model, database = saved_with_references(street_model(), tmp_path)
    pictures = torch.stack([model.load(tiny_image(seed)) for seed in range(99)])
    # Half are where the most similar reference is, and half are a town away from it.
    near = np.array(
        [(p.lat, p.lon) for p in model.localize_batch(pictures, reference=database, places=False)]
    )
    truth = near + np.where(np.arange(99)[:, None] % 2, [0.08, 0.1], [0.0001, 0.0]) * np.where(
        near > 0, -1, 1
    )
    calibration = model.calibrate([(pictures, truth)], "noise", reference=database)
    (levels,) = calibration.reference_levels.values()
    assert set(levels) == {"geoscore", "median", "within:0.025km"}
    for utility in (None, "geoscore", "median"):
        found = model.localize_batch(pictures, reference=database, places=False, utility=utility)
        off_km = haversine_km([(p.lat, p.lon) for p in found], truth)
        for percent in (50, 90):  # of 99, the 50th and the 90th smallest are on the circle
            held = off_km <= [p.radius_km[percent] * (1 + 1e-6) + 1e-6 for p in found]
            assert held.sum() >= percent, (utility, percent)
            assert utility or held.sum() <= percent + 3, percent  # the others' points may tie


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"reference is '.*refs'; expected a ReferenceDatabase.*open\(folder\)"
    ):
        tiny_geolocalizer().localize(tiny_image(), reference=tmp_path / "refs")


def test_large_pictures_go_through_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = street_model()
    pictures = [model.load(tiny_image(seed)) for seed in range(3)]
    expected = model.pipeline.run(pictures, embed=True).queries[0][0], embed_images(model, pictures, "street")
    seen: list[int] = []
    model.network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    feature_map = model.network.backbone.feature_map
    monkeypatch.setattr(
        model.network.backbone,
        "feature_map",
        lambda images: (seen.append(len(images)), feature_map(images))[1],
    )
    for module in ("geoloc.models.torch_runner", "geoloc.reference.embedder"):
        monkeypatch.setattr(f"{module}.ALONE_PX", pictures[0].shape[-1] ** 2 - 1)
    found = model.pipeline.run(pictures, embed=True).queries[0][0], embed_images(model, pictures, "street")
    assert set(seen) == {1}
    assert len(seen) >= 6
    for ours, before in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, before, atol=1e-5)
