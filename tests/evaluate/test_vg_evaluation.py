"""Place recognition as a user runs it: a street model, a data set of @UTM@ names, references, and recall@N at 25 m."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import VIT, tiny_geolocalizer, tiny_image
from typer.testing import CliRunner

from geoloc.cli import app
from geoloc.data.layouts.vg import vg_stem
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.config import AggregationConfig, BackboneConfig, EmbeddingHeadConfig
from geoloc.view.candidate_pictures import FRAME_PX, HEADING_PX, PLAIN, RIGHT, SIDE_PX, WRONG, tile_left_px
from quadtree.sphere import geodesic_km

NUM_PLACES = 24
LUND = (55.7, 13.2)


def place(number: float) -> tuple[float, float]:
    """Places 111 m apart, from south to north."""
    return LUND[0] + number / 1000, LUND[1]


def geoloc(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output + str(result.exception or "")


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 24 places; queries of six of them from 10 m away, one of which is mislabelled by 44 m, and one from
    nowhere near."""
    folder = tmp_path_factory.mktemp("towns")

    def paint(split: str, seed: int, latlon_deg: tuple[float, float], note: str = "") -> None:
        path = folder / "images" / "test" / split / f"{vg_stem(latlon_deg, heading_deg=90, note=note)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny_image(seed)).save(path)

    for seed in range(NUM_PLACES):
        paint("database", seed, place(seed))
    for seed in range(5):
        paint("queries", seed, place(seed + 0.09))
    paint("queries", 5, place(5.4), "mislabelled")
    paint("queries", 6, (LUND[0], LUND[1] + 1), "alone")
    return folder


@pytest.fixture(scope="module")
def model_folder(data_set: Path) -> Path:
    """Untrained: like pictures have like vectors all the same."""
    head = EmbeddingHeadConfig(8, aggregation=AggregationConfig("cosplace"))
    model = tiny_geolocalizer(
        None,
        backbone=BackboneConfig(custom=VIT, features="map"),
        cells=None,
        offsets=None,
        embeddings={"query": head},
        street_as_query=True,
    )
    model.save_pretrained(data_set.parent / "street-model")
    return data_set.parent / "street-model"


@pytest.fixture(scope="module")
def references(data_set: Path, model_folder: Path) -> Path:
    folder = data_set.parent / "refs"
    code, output = geoloc(
        *("reference", "build", folder, "--model", model_folder, "--street", data_set, "--layout", "vg"),
        *("--split", "test/database", "--quiet"),
    )
    assert code == 0, output
    assert f"{NUM_PLACES} rows in" in output
    return folder


def evaluate(
    data_set: Path, model_folder: Path, references: Path, output: Path, *more: object
) -> tuple[dict[str, object], str]:
    code, text = geoloc(
        *(
            "evaluate",
            "benchmark",
            "--model",
            model_folder,
            "--benchmark",
            "vg",
            "--data",
            data_set,
            "--output",
            output,
        ),
        *("--reference", references, *more),
    )
    assert code == 0, text
    return json.loads((output / "metrics.json").read_text("utf-8")), text


def brute_force_recall(data_set: Path, model_folder: Path, is_counted: str) -> dict[str, float]:
    """Recall from all distances of all vectors, and geodesics between the places in the names."""
    model = Geolocalizer.from_pretrained(model_folder)
    files = {split: sorted((data_set / "images/test" / split).iterdir()) for split in ("queries", "database")}
    vectors, points = {}, {}
    for split, paths in files.items():
        vectors[split] = np.concatenate(
            [model.pipeline.run(model.load(path)[None], embed=True).queries[0][0] for path in paths]
        )
        points[split] = np.array([[float(field) for field in path.name.split("@")[5:7]] for path in paths])
    order = np.argsort(-(vectors["queries"] @ vectors["database"].T), axis=1)
    is_near = 1000 * geodesic_km(points["queries"][:, None], points["database"][None]) <= 25
    if is_counted == "with a positive":
        order, is_near = order[is_near.any(1)], is_near[is_near.any(1)]
    hit = np.take_along_axis(is_near, order, 1)
    return {str(k): float(hit[:, :k].any(1).mean()) for k in (1, 5, 10, 20)}


@pytest.mark.parametrize(
    ("protocol", "counted", "num_images"), [("vpr-25m", "with a positive", 5), ("cosplace", "all", 7)]
)
def test_recall_is_that_of_brute_force(
    protocol: str,
    counted: str,
    num_images: int,
    data_set: Path,
    model_folder: Path,
    references: Path,
    tmp_path: Path,
) -> None:
    metrics, text = evaluate(data_set, model_folder, references, tmp_path / "report", "--protocol", protocol)
    expected = brute_force_recall(data_set, model_folder, counted)
    assert metrics["num_images"] == num_images
    assert metrics["recall_at"] == {"25": pytest.approx(expected)}
    assert expected["1"] == 5 / num_images
    problems = metrics["problems"]
    if protocol == "vpr-25m":
        assert problems["without_positive"]["count"] == 2
        assert {"mislabelled", "alone"} == {
            name.split("@")[-2] for name in problems["without_positive"]["examples"]
        }
        assert "2 without positive: queries without a reference" in text
    else:
        assert problems == {}
        assert metrics["rules"]["without_positive"] == "a miss"


@pytest.mark.parametrize("mode", ["resized", "five_crops", "nearest_crop", "majority_voting"])
def test_every_query_mode_evaluates(
    mode: str, data_set: Path, model_folder: Path, references: Path, tmp_path: Path
) -> None:
    metrics, _ = evaluate(data_set, model_folder, references, tmp_path / "report", "--query", mode)
    assert metrics["made_with"]["query mode"] == mode
    recall = metrics["recall_at"]["25"]
    assert list(recall) == ["1", "5", "10", "20"]
    assert 0 < recall["20"] <= 1


def test_without_a_database_folder_it_is_said(
    data_set: Path, model_folder: Path, references: Path, tmp_path: Path
) -> None:
    (tmp_path / "towns").mkdir()
    (tmp_path / "towns" / "queries").symlink_to(data_set / "images/test/queries")
    metrics, _ = evaluate(
        tmp_path / "towns", model_folder, references, tmp_path / "report", "--split", "queries"
    )
    assert metrics["num_images"] == 7
    assert any("leaves out queries without a positive" in warning for warning in metrics["warnings"])


def frame_colors(path: Path, num: int) -> list[str]:
    """Which of the three colours each tile's frame has."""
    picture = np.asarray(Image.open(path)).astype(int)
    names = {"query": PLAIN, "right": RIGHT, "wrong": WRONG}
    found = []
    for number in range(num):
        color = picture[HEADING_PX + 100, tile_left_px(number) + FRAME_PX // 2]
        found.append(min(names, key=lambda name: np.abs(color - names[name]).sum()))
    return found


def test_pictures_mark_right_and_wrong(
    data_set: Path, model_folder: Path, references: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    evaluate(data_set, model_folder, references, report, "--protocol", "cosplace", "--pictures", 6)
    files = sorted((report / "pictures").iterdir())
    assert [file.name for file in files] == [f"{number:04}.jpg" for number in range(1, 7)]
    table = {row["id"]: row for row in pq.read_table(tmp_path / "report.predictions.parquet").to_pylist()}
    queries = sorted(path.name for path in (data_set / "images/test/queries").iterdir())
    page = html.unescape((report / "report.html").read_text("utf-8"))
    for file, query in zip(files, queries, strict=False):
        true = [float(field) for field in query.split("@")[5:7]]
        best = json.loads(table[query]["candidates"])[:5]
        near = [1000 * geodesic_km(true, [c["lat"], c["lon"]]) <= 25 for c in best]
        assert frame_colors(file, 6) == ["query", *("right" if is_near else "wrong" for is_near in near)]
        assert f'<a href="pictures/{file.name}">{query}: ' in page
    assert "1 of 5 within 25 m, the first at 1" in page
    # The mislabelled query finds its place, which is 44 m away; the photos in the picture are the references' own.
    evaluate(
        *(
            data_set,
            model_folder,
            references,
            report,
            "--protocol",
            "cosplace",
            "--pictures",
            9,
            "--only-wrong",
        ),
        *("--reference-images", data_set),
    )
    assert len(list((report / "pictures").iterdir())) == 2
    page = html.unescape((report / "report.html").read_text("utf-8"))
    assert re.search("mislabelled@.png: none of 5 within 25 m, the nearest is 4[45] m away", page)
    assert re.search("alone@.png: none of 5 within 25 m, the nearest is 6[23].* km away", page)


def test_the_photo_of_a_candidate_is_shown(
    data_set: Path, model_folder: Path, references: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    evaluate(data_set, model_folder, references, report, "--pictures", 1)
    picture = np.asarray(Image.open(report / "pictures/0001.jpg")).astype(int)
    query, best = (
        picture[HEADING_PX + FRAME_PX :, tile_left_px(number) + FRAME_PX :][:SIDE_PX, :SIDE_PX]
        for number in (0, 1)
    )
    assert np.abs(query - best).mean() < 2  # the same picture, from 10 m away
    assert query.std() > 10


def test_pictures_without_photos_are_refused(
    data_set: Path, model_folder: Path, references: Path, tmp_path: Path
) -> None:
    start = (
        "evaluate",
        "benchmark",
        "--model",
        model_folder,
        "--benchmark",
        "vg",
        "--data",
        data_set,
        "--output",
        tmp_path / "r",
    )
    start = (*start, "--reference", references)
    (tmp_path / "elsewhere").mkdir()
    for arguments, complaint in (
        (
            (*start, "--pictures", 2, "--reference-images", tmp_path / "elsewhere"),
            "none of the 10 references to show",
        ),
        ((*start, "--pictures", 2, "--reference-images", tmp_path / "absent"), "check --reference-images"),
        ((*start, "--only-wrong"), "--only-wrong and --reference-images need --pictures"),
        (("evaluate", "score", "-p", "p.csv", "-t", "t.csv", "--pictures", 1), "--pictures needs --output"),
    ):
        code, output = geoloc(*arguments)
        assert code != 0
        assert complaint in output
    assert not (tmp_path / "r").exists()


def test_what_is_refused(data_set: Path, tmp_path: Path) -> None:
    build = ("reference", "build", tmp_path / "refs")
    for arguments, complaint in (
        ((*build, "--layout", "vg"), "there is nothing to add"),
        ((*build, "--street", data_set, "--split", "test/database"), "--split and --utm-epsg need --layout"),
        ((*build, "--street", data_set, "--layout", "vgg"), "there is no layout 'vgg'"),
        ((*build, "--street", data_set, "--layout", "vg", "--split", "x"), "no folder 'x'; it has test"),
        (("evaluate", "score", "-p", "p.csv", "-t", "t.csv", "--split", "test"), "No such option: --split"),
    ):
        code, output = geoloc(*arguments)
        assert code != 0
        assert complaint in output
