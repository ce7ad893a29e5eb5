"""Models composed of parts that were never trained together, against brute force over their databases."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_street_models import street_model
from tiny import tiny_geolocalizer, tiny_image
from typer.testing import CliRunner

from geoloc.cli import app
from geoloc.errors import ConfigError, FingerprintMismatchError, IntegrityError, NotFoundError
from geoloc.images.query import load_query_views
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.localize.session import SessionOptions, open_session
from geoloc.models.config import EmbeddingHeadConfig, RegressionHeadConfig
from geoloc.posterior.cells import choose_cells
from geoloc.posterior.pipeline import CELL_MASS, MAX_CELLS
from geoloc.posterior.reranker import RerankerConfig
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import ReferenceRows
from geoloc.search.cell_index import with_border_neighbours
from quadtree import build_quadtree

NUM_ROWS = 400


def positions(seed: int) -> np.ndarray:
    """Positions all over the Earth, at the poles and the antimeridian, too."""
    rng = np.random.default_rng(seed)
    lat = np.degrees(np.arcsin(rng.uniform(-1, 1, NUM_ROWS)))
    latlon_deg = np.stack([lat, rng.uniform(-180, 180, NUM_ROWS)], -1)
    latlon_deg[:4] = [[90, 0], [-90, 17], [10, -180], [10, 179.999]]
    return latlon_deg


def unit_vectors(seed: int, dim: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(NUM_ROWS, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A classifier, and a street and an aerial database, each of another embedder."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_geolocalizer().save_pretrained(folder / "classifier")
    street_model(dim=8).save_pretrained(folder / "places")
    head = {"query": EmbeddingHeadConfig(12), "aerial": EmbeddingHeadConfig(12)}
    tiny_geolocalizer(None, seed=3, cells=None, offsets=None, embeddings=head).save_pretrained(
        folder / "towers"
    )
    found: dict[str, Any] = {"folder": folder}
    for name, model, dim, source in (("street", "places", 8, "street"), ("aerial", "towers", 12, "aerial")):
        embedder = Geolocalizer.from_pretrained(folder / model)
        database = ReferenceDatabase.create(folder / name, model=embedder)
        latlon_deg, vectors = positions(dim), unit_vectors(dim, dim)
        rows = ReferenceRows(latlon_deg, source=source, key=[f"{name} {i}" for i in range(NUM_ROWS)])
        database.append(rows, vectors)
        found[name] = (latlon_deg, vectors, embedder)
    return found


def brute_force_keys(model: Geolocalizer, parts: dict[str, Any], image: np.ndarray, k: int) -> set[str]:
    """Keys of the k most similar rows of each database among the rows in the chosen cells."""
    tree = model.quadtree
    assert tree is not None
    logits = model.network(model.load(image)[None]).cell_logits[0].detach().numpy().astype(np.float64)
    probs = np.exp(logits / model.calibration.temperature)
    chosen = choose_cells(probs / probs.sum(), CELL_MASS, MAX_CELLS)
    outputs = model.pipeline.run(model.load(image)[None], embed=False)
    point = model.pipeline.cell_points(outputs.heads.offsets, [chosen[:1]])[0][0]
    reach_km = float(model.calibration.cell_kernel * model.pipeline.cell_radius_km[chosen[0]])
    asked = with_border_neighbours(tree, chosen, point, reach_km)
    keys = set()
    for name in ("street", "aerial"):
        latlon_deg, vectors, embedder = parts[name]
        views = torch.from_numpy(load_query_views(image, embedder.preprocess, "central_crop"))
        similarity = vectors @ embedder.embed_query([views])[0]
        rows = np.flatnonzero(np.isin(tree.assign(latlon_deg), asked))
        keys |= {f"{name} {row}" for row in rows[np.argsort(-similarity[rows])][:k]}
    return keys


@pytest.mark.parametrize("root", ["world", "data"])
def test_candidates_are_those_of_brute_force_in_the_chosen_cells(
    parts: dict[str, Any], root: Any, tmp_path: Path
) -> None:
    classifier = Geolocalizer.from_pretrained(parts["folder"] / "classifier")
    if root == "data":  # a tree with holes, as OSV-5M's
        rng = np.random.default_rng(0)
        points = rng.normal((20, 40), (15, 40), (600, 2)).clip((-70, -170), (80, 170))
        tree = build_quadtree(points, max_points_per_cell=30, max_depth=5, root="data")
        classifier = tiny_geolocalizer(quadtree=tree)
        classifier.save_pretrained(tmp_path / "holes")
    model = Geolocalizer.compose(classifier, [parts["folder"] / "street", parts["folder"] / "aerial"])
    for seed in range(6):
        image = tiny_image(seed)
        (prediction,) = model.localize([image], top_k=1000, places=False)
        found = {c.key: c.database for c in prediction.candidates if c.source != "cell"}
        expected = brute_force_keys(model, parts, image, 64)
        assert found.keys() == expected
        assert all(key.startswith(database) for key, database in found.items())
        assert sum(c.probability for c in prediction.candidates) == pytest.approx(1, abs=0.06)


def test_each_network_runs_once_for_an_image(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = parts["folder"]
    second = folder / "street-2"
    if not second.exists():
        ReferenceDatabase.open(folder / "street").copy_to(second)
    counts: dict[int, int] = {}
    street, aerial = folder / "street", folder / "aerial"
    for references, networks in (([street], 2), ([street, second], 2), ([street, second, aerial], 3)):
        model = Geolocalizer.compose(folder / "classifier", references)
        counts.clear()
        for embedder in (model, *model.references.embedders):

            def counted(
                views: Any, queries: Any, embedder: Any = embedder, read: Any = embedder.runner.read
            ) -> Any:
                counts[id(embedder)] = counts.get(id(embedder), 0) + 1
                return read(views, queries)

            monkeypatch.setattr(embedder.runner, "read", counted)
        model.localize(tiny_image(1), places=False)
        assert sorted(counts.values()) == [1] * networks


ANSWER = """
import json, sys
from geoloc import Geolocalizer
model = Geolocalizer.from_pretrained(sys.argv[1])
print(json.dumps([p.to_dict() for p in model.localize(sys.argv[2:], places=False)]))
"""


def test_a_composed_model_is_saved_and_answers_the_same_in_another_process(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    folder = parts["folder"]
    model = Geolocalizer.compose(folder / "classifier", [folder / "street", folder / "aerial"], name="mine")
    images = []
    for seed in range(3):
        Image.fromarray(tiny_image(seed)).save(tmp_path / f"{seed}.png")
        images.append(str(tmp_path / f"{seed}.png"))
    expected = [p.to_dict() for p in model.localize(images, places=False)]
    model.save_pretrained(tmp_path / "mine")
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(tmp_path / "mine"), *images],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == expected
    again = Geolocalizer.from_pretrained(tmp_path / "mine")
    assert again.name == "mine"
    again.save_pretrained(tmp_path / "again")
    twice = Geolocalizer.from_pretrained(tmp_path / "again")
    assert [p.to_dict() for p in twice.localize(images, places=False)] == expected
    assert twice.identity == again.identity
    session = open_session(str(tmp_path / "again"), SessionOptions())
    assert [p.lat for p in session.localize([session.load(image) for image in images])] == [
        p.lat for p in twice.localize(images)
    ]


@pytest.mark.parametrize(
    "name",
    [
        "embedders/0/model.safetensors",
        "embedders/1/config.json",
        "references/street/manifest.json",
        "config.json",
    ],
)
def test_a_changed_part_is_refused(parts: dict[str, Any], name: str, tmp_path: Path) -> None:
    folder = parts["folder"]
    Geolocalizer.compose(folder / "classifier", [folder / "street", folder / "aerial"]).save_pretrained(
        tmp_path / "m"
    )
    path = tmp_path / "m" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError):
        Geolocalizer.from_pretrained(tmp_path / "m")


def test_without_a_classifier_every_database_is_searched_everywhere(parts: dict[str, Any]) -> None:
    folder = parts["folder"]
    model = Geolocalizer.compose(None, [folder / "street", folder / "aerial"])
    image = tiny_image(2)
    prediction = model.localize(image, top_k=1000, places=False)
    expected = set()
    for name in ("street", "aerial"):
        _, vectors, embedder = parts[name]
        views = torch.from_numpy(load_query_views(image, embedder.preprocess, "central_crop"))
        similarity = vectors @ embedder.embed_query([views])[0]
        expected |= {f"{name} {row}" for row in np.argsort(-similarity)[:64]}
    assert {c.key for c in prediction.candidates} == expected
    assert sum(c.probability for c in prediction.candidates) == pytest.approx(1)


def test_a_regression_decides_where_is_searched(parts: dict[str, Any], tmp_path: Path) -> None:
    regression = tiny_geolocalizer(None, cells=None, offsets=None, regression=RegressionHeadConfig())
    regression.save_pretrained(tmp_path / "regression")
    model = Geolocalizer.compose(tmp_path / "regression", [parts["folder"] / "street"])
    alone = Geolocalizer.from_pretrained(tmp_path / "regression")
    retriever = model.retriever("own")
    assert retriever is not None
    assert retriever.quadtree is not None
    assert retriever.quadtree.num_points is not None
    assert retriever.quadtree.num_points.sum() == NUM_ROWS
    prediction = model.localize(tiny_image(4), top_k=1000, places=False)
    point = alone.localize(tiny_image(4), places=False)
    sources = {c.source for c in prediction.candidates}
    assert sources == {"cell", "street"}
    # Half of the mass stays with the classifier, whose kernel is 500 km wide.
    assert abs(prediction.lat - point.lat) < 15
    assert sum(c.probability for c in prediction.candidates) == pytest.approx(1, abs=0.06)


def test_a_composition_is_fitted_and_calibrated(parts: dict[str, Any], tmp_path: Path) -> None:
    folder = parts["folder"]
    model = Geolocalizer.compose(folder / "classifier", [folder / "street", folder / "aerial"])
    rng = np.random.default_rng(0)

    def labelled(first: int) -> list[Any]:
        images = [model.load_query(tiny_image(first + n), reference="own") for n in range(12)]
        return [(images, np.stack([rng.uniform(-80, 80, 12), rng.uniform(-180, 180, 12)], 1))]

    fitted = model.fit_reranker(labelled(0), config=RerankerConfig(hidden_dim=0))
    assert fitted.parameters["similarity_scale"].shape == (6,)
    model.calibrate(labelled(20), "made up", reference="own")
    prediction = model.localize(tiny_image(50), places=False)
    assert set(prediction.radius_km) == {50, 90}
    model.save_pretrained(tmp_path / "fitted")
    again = Geolocalizer.from_pretrained(tmp_path / "fitted")
    assert again.localize(tiny_image(50), places=False).to_dict() == prediction.to_dict()
    # The scales are not those of another database.
    other = model.localize(tiny_image(50), reference=ReferenceDatabase.open(folder / "aerial"), places=False)
    assert other.radius_km == {}


def test_an_embedder_that_is_another_one_now_is_named(parts: dict[str, Any], tmp_path: Path) -> None:
    street_model(dim=8).save_pretrained(tmp_path / "places")
    embedder = Geolocalizer.from_pretrained(tmp_path / "places")
    database = ReferenceDatabase.create(tmp_path / "refs", model=embedder)
    rows = ReferenceRows(positions(1), source="street", key=[str(i) for i in range(NUM_ROWS)])
    database.append(rows, unit_vectors(1, 8))
    street_model("gem", 32).save_pretrained(tmp_path / "places")
    composed = parts["folder"] / "classifier", [tmp_path / "refs"]
    with pytest.raises(
        FingerprintMismatchError, match=r"with the model \.\./places, but .*/places is another"
    ):
        Geolocalizer.compose(*composed)
    (tmp_path / "places").rename(tmp_path / "moved")
    with pytest.raises(
        NotFoundError, match=r"the model \.\./places, which embeds its queries, and it cannot"
    ):
        Geolocalizer.compose(*composed)
    given = ReferenceDatabase.open(tmp_path / "refs", model=embedder)
    (found,) = Geolocalizer.compose(parts["folder"] / "classifier", [given]).references.embedders
    assert found.embedding_fingerprint == embedder.embedding_fingerprint


def test_what_cannot_be_composed_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give at least one reference database"):
        Geolocalizer.compose(parts["folder"] / "classifier", [])
    with pytest.raises(ConfigError, match="a database is given twice"):
        Geolocalizer.compose(parts["folder"] / "classifier", [parts["folder"] / "street"] * 2)


def test_the_commands(parts: dict[str, Any], tmp_path: Path) -> None:
    folder = parts["folder"]
    Image.fromarray(tiny_image(5)).save(tmp_path / "photo.png")
    both = ["--reference", str(folder / "street"), "--reference", str(folder / "aerial")]
    run = CliRunner().invoke
    done = run(app, ["compose", str(tmp_path / "mine"), "--classifier", str(folder / "classifier"), *both])
    assert done.exit_code == 0, done.output
    assert "2 databases, 800 references" in done.output
    tables = []
    for name, options in (
        ("composed", ["--model", str(tmp_path / "mine")]),
        ("given", ["--model", str(folder / "classifier"), *both]),
    ):
        output = tmp_path / f"{name}.csv"
        done = run(app, ["localize", str(tmp_path / "photo.png"), *options, "--output", str(output)])
        assert done.exit_code == 0, done.output
        tables.append(output.read_text())
    assert tables[0] == tables[1]
    assert '""database"":""street""' in tables[0]
    done = run(app, ["localize", str(tmp_path / "photo.png"), "--reference", "none", *both])
    assert isinstance(done.exception, ConfigError)
    assert "leave none out" in str(done.exception)
