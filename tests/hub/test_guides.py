"""What the guides say is done: their Python runs as it stands, and their commands have the options that they show."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import typer
from hub_server import HubServer, Repository
from PIL import Image
from tiny import tiny_geolocalizer, tiny_image
from tiny_plonk import plonk_files, street_files

from geoloc import Geolocalizer, ReferenceDatabase, cli
from geoloc.models.config import EmbeddingHeadConfig
from geoloc.posterior.coarse import CoarseGrid
from geoloc.reference.rows import ReferenceRows

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

ROOT = Path(__file__).parents[2]
OSV5M = ROOT / "tests" / "adapters" / "fixtures" / "osv5m_tiny"
REPORT = {
    "protocol": "geodesic", "num_images": 9, "num_missing": 0, "geoscore": 3000.0, "mean_km": 800.0,
    "median_km": 100.0, "accuracy_within_km": {"25": 0.5},
}  # fmt: skip


def blocks(guide: str, language: str) -> list[str]:
    """The fenced blocks of a guide in one language, "" for commands; those in a list are unindented."""
    text = (ROOT / "docs" / guide).read_text("utf-8")
    fenced = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [
        "".join(line.removeprefix(indent) for line in body.splitlines(keepends=True))
        for indent, name, body in fenced
        if name == language
    ]


def run(guide: str, **names: Any) -> dict[str, Any]:
    """Every Python block, one after the other, beginning with these names."""
    for number, block in enumerate(blocks(guide, "python")):
        exec(compile(block, f"{guide}, block {number}", "exec"), names)
    return names


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Geolocalizer:
    """A model that can search, in a folder where the demo's pictures and a photo lie."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    Image.fromarray(tiny_image(5)).save("photo.jpg")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").write_text(json.dumps(REPORT))
    made: Geolocalizer = tiny_geolocalizer(
        embeddings={role: EmbeddingHeadConfig(dim=8) for role in ("query", "street")}
    )
    made.save_pretrained("saved")
    return made


@pytest.fixture
def database(model: Geolocalizer) -> ReferenceDatabase:
    """References of that model in Europe and elsewhere."""
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-60, 70, 300), rng.uniform(-180, 180, 300)], 1)
    vectors = rng.normal(size=(300, 8))
    made = ReferenceDatabase.create("references", model=model)
    rows = ReferenceRows(points, source="street", key=[str(n) for n in range(300)], licence="cc0-1.0")
    made.append(rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return made


def test_use_a_published_model(hub: HubServer, model: Geolocalizer, database: ReferenceDatabase) -> None:
    commit = model.push_to_hub("me/my-geolocator").commit
    database.push_to_hub("me/street-references", licence="cc0-1.0")
    rng = np.random.default_rng(1)
    pictures = torch.stack([model.load(tiny_image(n)) for n in range(20)])
    labelled = [(pictures, rng.uniform(-60, 60, (20, 2)))]
    for name, called in (
        ("box.ckpt", "last.ckpt"),
        ("tower_quick", "clip"),
        ("quadtree.csv", "quadtree_10_1000.csv"),
    ):
        Path(called).symlink_to(OSV5M / name)
    for name, files in (
        ("nicolas-dufour/PLONK_OSV_5M", plonk_files()),
        ("geolocal/StreetCLIP", street_files()),
    ):
        hub.repositories["model", name] = Repository()
        hub.repositories["model", name].commit(files, "published")
    Path("osv5m").mkdir()
    Path("osv5m/baseline").symlink_to("../saved")  # a folder comes before a name on the Hub
    database.copy_to("street")
    other = tiny_geolocalizer(
        None, seed=1, embeddings={role: EmbeddingHeadConfig(dim=6) for role in ("query", "aerial")}
    )
    other.save_pretrained("other")
    aerial = ReferenceDatabase.create("aerial", model=Geolocalizer.from_pretrained("other"))
    aerial.append(
        ReferenceRows(rng.uniform(-60, 60, (9, 2)), source="aerial", key=list("abcdefghi")),
        np.eye(9, 6, dtype=np.float32) + 0.1,
    )
    names = run("use-a-published-model.md", commit=commit, labelled=labelled)
    assert names["latlon_deg"].shape == (1, 64, 2)
    assert np.isfinite(names["log_density"]).all()
    assert names["cells"].quadtree is not None
    assert names["pinned"].embedding_fingerprint == model.embedding_fingerprint
    assert names["model"].calibration.num_images == 20
    assert Geolocalizer.from_pretrained("my-model").calibration == names["model"].calibration
    assert 0 < len(names["database"]) < 300
    databases = {
        c.database for c in Geolocalizer.from_pretrained("mine").localize("photo.jpg", top_k=99).candidates
    }
    assert databases >= {"street"}


def test_publish_yours(hub: HubServer, model: Geolocalizer, database: ReferenceDatabase) -> None:
    names = run("publish-yours.md", model=model, database=database, photo="photo.jpg")
    assert len(names["pushed"].commit) == 40
    card = hub.repositories["model", "me/my-geolocator"].files()["README.md"].decode()
    assert "cc-by-4.0" in card
    assert "my archive, 2021 to 2025" in card
    assert ("dataset", "me/street-references") in hub.repositories


def test_the_space_answers_without_gradio(model: Geolocalizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "saved")
    monkeypatch.setenv("MAX_PRECISION_KM", "40")
    where = run("space.md", __name__="app")["where"]
    line, frame, values = where(tiny_image(3, 64, 96), 0)
    assert re.fullmatch(r"(I don't know: the 90 % radius is|Near .+, within) [\d,]+ km.*\.", line)
    assert frame.startswith('<iframe srcdoc="&lt;!')
    assert '"' not in frame[len('<iframe srcdoc="') : frame.index('" width=')]
    place = np.array((values["lat"], values["lon"]))
    assert CoarseGrid(40).snap(place) == pytest.approx(place, abs=1e-6)
    assert json.loads(json.dumps(values)) == values
    assert where(None, 100) == ("Give it a picture.", "", {})


def test_responsible_use(model: Geolocalizer) -> None:
    prediction = run("responsible-use.md", model=model)["prediction"]
    assert min(prediction.radius_km.values()) >= 100


GUIDES = (
    "how-to/aerial-tiles.md",
    "how-to/locate-photos.md",
    "publish-yours.md",
    "responsible-use.md",
    "space.md",
    "use-a-published-model.md",
)
COMMANDS = [
    line
    for guide in GUIDES
    for block in blocks(guide, "")
    for line in block.splitlines()
    if line.startswith("geoloc ")
]


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_the_options_that_are_shown(line: str) -> None:
    group: Any = typer.main.get_command(cli.app)
    words = shlex.split(line, comments=True)[1:]
    while isinstance(group, click.Group) or hasattr(group, "commands"):
        group = group.commands[words.pop(0)]
    known = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= known
