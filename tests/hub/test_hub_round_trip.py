"""A model goes to a Hub on loopback and comes back, by the API and by the commands, here and in fresh processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer, with_manifest
from PIL import Image
from tiny import tiny_geolocalizer, tiny_image

from geoloc import Geolocalizer, ReferenceDatabase, cli
from geoloc.errors import CheckpointError
from geoloc.hub.card import Source
from geoloc.models.config import EmbeddingHeadConfig
from geoloc.reference.rows import ReferenceRows

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPORT = {
    "protocol": "geodesic",
    "num_images": 9,
    "num_missing": 0,
    "geoscore": 3000.0,
    "mean_km": 800.0,
    "median_km": 100.0,
    "accuracy_within_km": {"25": 0.5},
}
LOCALIZE = (
    "import json, sys\nfrom geoloc import Geolocalizer\n"
    "print(json.dumps(Geolocalizer.from_pretrained('me/tiny').localize(sys.argv[1]).to_dict()))"
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def geoloc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `geoloc …`: exit code, stdout, stderr."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["geoloc", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        out, err = capsys.readouterr()
        return int(exited.value.code or 0), out, err

    return run


def searching_model(tmp_path: Path) -> Geolocalizer:
    """A model that brings its own references."""
    heads = {role: EmbeddingHeadConfig(dim=8) for role in ("query", "street")}
    model = tiny_geolocalizer(embeddings=heads)
    model.save_pretrained(tmp_path / "bare")
    model.reference = ReferenceDatabase.create(tmp_path / "refs", model=model)
    rng = np.random.default_rng(0)
    latlon_deg = np.stack([rng.uniform(-80, 80, 500), rng.uniform(-180, 180, 500)], axis=1)
    vectors = rng.normal(size=(500, 8))
    rows = ReferenceRows(latlon_deg, source="street", key=[str(i) for i in range(500)], licence="cc0-1.0")
    model.reference.append(rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return model


def test_a_fresh_process_in_an_empty_directory(hub: HubServer, tmp_path: Path) -> None:
    model = searching_model(tmp_path)
    Image.fromarray(tiny_image()).save(tmp_path / "photo.png")
    model.push_to_hub("me/tiny", licence="mit")
    hub.requests.clear()
    empty, home = tmp_path / "empty", tmp_path / "home"
    empty.mkdir()

    def localize(**variables: str) -> Any:
        names = {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(home),
            "HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", LOCALIZE, str(tmp_path / "photo.png")],
            cwd=empty, env=os.environ | names | variables, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    model.save_pretrained(tmp_path / "here")
    expected = Geolocalizer.from_pretrained(tmp_path / "here").localize(tmp_path / "photo.png").to_dict()
    assert localize() == json.loads(json.dumps(expected))
    clients_own = ("/cdn/", "/api/models/me/tiny", "/api/agent-harnesses")
    asked = {path for _, path, _ in hub.requests if not path.startswith(clients_own)}
    assert all(path.startswith("/me/tiny/resolve/") for path in asked), asked
    assert len(hub.received("model.safetensors")) == 1
    hub.requests.clear()
    assert localize(HF_HUB_OFFLINE="1") == json.loads(json.dumps(expected))
    assert hub.requests == []
    assert list(empty.iterdir()) == []
    assert {path.name for path in home.iterdir()} <= {"assets", ".agent_harnesses.json", ".cache"}


def test_what_is_pushed_is_what_was_there(hub: HubServer, tmp_path: Path) -> None:
    model = tiny_geolocalizer()
    model.save_pretrained(tmp_path / "model")
    identity = model.identity
    (tmp_path / "metrics.json").write_text(json.dumps(REPORT))
    ledger = [Source("photos", "nowhere", "cc0-1.0", "training")]
    pushed = model.push_to_hub(
        "me/tiny",
        private=True,
        revision="v1",
        metrics=[tmp_path / "metrics.json"],
        licence="mit",
        ledger=ledger,
    )
    assert model.identity == identity
    loaded = Geolocalizer.from_pretrained("me/tiny", revision=pushed.commit)
    assert loaded.embedding_fingerprint == model.embedding_fingerprint
    assert loaded.localize(tiny_image()).to_dict() == model.localize(tiny_image()).to_dict()
    for text in (
        "license: mit",
        "model-index",
        "Protocol `geodesic`",
        'from_pretrained("me/tiny")',
        "cc0-1.0",
    ):
        assert text in loaded.card
    assert "fitted on 100 images (nothing: made up for tests)" in loaded.card
    assert hub.repositories["model", "me/tiny"].private
    assert hub.repositories["model", "me/tiny"].files("main") == {}


def test_a_model_by_the_commands(hub: HubServer, geoloc: Run, tmp_path: Path) -> None:
    model = searching_model(tmp_path)
    model.save_pretrained(tmp_path / "model")
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    code, out, err = geoloc(
        "push", tmp_path / "model", "me/tiny", "--private", "--licence", "mit", "-m", "First"
    )
    assert (code, err.count("error")) == (0, 0), err
    repository = hub.repositories["model", "me/tiny"]
    assert f"pinned by revision {repository.branches['main']}" in out
    assert repository.messages[-1] == "First"
    assert repository.files()["model.safetensors"] == weights
    assert "| gallery: 500 references | in reference/ | cc0-1.0 |" in repository.files()["README.md"].decode()
    code, out, _ = geoloc("pull", "me/tiny", tmp_path / "pulled")
    assert (code, out) == (
        0,
        f"the model me/tiny at {repository.branches['main'][:8]} -> {tmp_path / 'pulled'}\n",
    )
    pulled = Geolocalizer.from_pretrained(tmp_path / "pulled")
    assert pulled.localize(tiny_image()).to_dict() == model.localize(tiny_image()).to_dict()


def test_a_database_by_the_commands(hub: HubServer, geoloc: Run, tmp_path: Path) -> None:
    database = searching_model(tmp_path).reference
    assert database is not None
    code, out, err = geoloc("push", database.folder, "me/refs", "--licence", "cc0-1.0", "--create-pr")
    assert code == 0, err
    assert "/discussions/1" in out
    assert geoloc("push", database.folder, "me/refs")[0] == 0
    assert geoloc("pull", "me/refs", tmp_path / "pulled")[:2] == (0, f"500 rows -> {tmp_path / 'pulled'}\n")
    code, out, _ = geoloc("pull", "me/refs", tmp_path / "part", "--bounds", "0,0,80,180")
    assert code == 0
    assert len(ReferenceDatabase.open(tmp_path / "part")) < 500
    code, _, err = geoloc("push", database.folder, "me/refs", "--metrics", tmp_path)
    assert code == 2
    assert "--metrics is for the card of a model" in err
    code, _, err = geoloc("pull", "me/refs", tmp_path / "x", "--subfolder", "a")
    assert code == 2
    assert "--subfolder is for models" in err


def test_commands_that_cannot_be_carried_out(hub: HubServer, geoloc: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    code, _, err = geoloc("push", tmp_path / "folder", "me/x")
    assert code == 2
    assert "manifest.json is missing, so nothing vouches for the files there" in err
    code, _, err = geoloc("pull", "me/none", tmp_path / "x")
    assert code == 2
    assert "error: could not get 'me/none': there is no such repository, or it is private" in err
    code, _, err = geoloc("pull", "me/none", tmp_path / "no" / "where")
    assert code == 2
    assert "there is no folder" in err


def test_a_model_that_does_not_load_is_not_pulled(hub: HubServer, geoloc: Run, tmp_path: Path) -> None:
    """All its checksums are right: only reading it shows that the tensors are another network's."""
    tiny_geolocalizer().push_to_hub("me/tiny")
    repository = hub.repositories["model", "me/tiny"]
    files = repository.files()
    del files["manifest.json"]
    tiny_geolocalizer(offsets=None).push_to_hub("me/other")
    files["model.safetensors"] = hub.repositories["model", "me/other"].files()["model.safetensors"]
    repository.commit(with_manifest(files), "evil")
    code, _, err = geoloc("pull", "me/tiny", tmp_path / "pulled")
    assert code == 2
    assert "does not fit the network of config.json" in err
    assert not (tmp_path / "pulled").exists()
    with pytest.raises(CheckpointError, match=r"does not fit the network of config.json"):
        Geolocalizer.from_pretrained("me/tiny")
