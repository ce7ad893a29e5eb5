"""Folders pushed to a Hub on loopback by the real client: one commit, resumed, and nothing touched that is not ours."""

import hashlib
import json
from pathlib import Path

import pytest
from hub_server import HubServer, Repository

from geoloc.errors import ConfigError, IntegrityError, JobError, NotFoundError
from geoloc.files import parse_manifest, write_manifest
from geoloc.hub.pull import cached
from geoloc.hub.push import PushOptions, push

# The client's own way to upload; httpx2 would like another.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "reference").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("# old card\n")
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "reference" / "rows.parquet").write_bytes(b"rows" * 1000)
    write_manifest(folder)
    return folder


def test_a_new_repository(hub: HubServer, folder: Path) -> None:
    pushed = push(folder, "me/x", "model", "# new card\n", PushOptions(private=True, commit_message="Hello"))
    repository = hub.repositories["model", "me/x"]
    assert repository.private
    assert repository.messages == ["initial commit", "Hello"]
    assert repository.branches["main"] == pushed.commit
    assert pushed.url == f"{hub.address}/me/x/commit/{pushed.commit}"
    files = repository.files()
    assert files.keys() == {
        "manifest.json", "config.json", "README.md", "model.safetensors", "reference/rows.parquet"
    }  # fmt: skip
    listed = parse_manifest(files["manifest.json"], "pushed")["files"]
    assert listed["README.md"]["sha256"] == hashlib.sha256(b"# new card\n").hexdigest()
    assert (folder / "README.md").read_text() == "# old card\n"
    there = cached("me/x", "model", revision=pushed.commit)
    assert (there / "README.md").read_text() == "# new card\n"


def test_one_that_is_there(hub: HubServer, folder: Path) -> None:
    push(folder, "me/x", "model", "# card\n")
    repository = hub.repositories["model", "me/x"]
    repository.change({"images/plot.png": b"png", ".gitattributes": b"*"})
    (folder / "reference" / "rows.parquet").unlink()
    (folder / "config.json").write_text("[]")
    write_manifest(folder)
    num = hub.uploaded()
    push(folder, "me/x", "model", "# card\n")
    assert hub.uploaded() == num  # the weights are the same
    assert repository.files().keys() == {
        "manifest.json", "config.json", "README.md", "model.safetensors", "images/plot.png", ".gitattributes"
    }  # fmt: skip
    assert [r for r in hub.repositories if r != ("model", "me/x")] == []


def test_the_same_again_is_no_commit(hub: HubServer, folder: Path) -> None:
    first = push(folder, "me/x", "model", "# card\n")
    assert push(folder, "me/x", "model", "# card\n").commit == first.commit


def test_a_branch_and_a_pull_request(hub: HubServer, folder: Path) -> None:
    push(folder, "me/x", "model", "# card\n")
    repository = hub.repositories["model", "me/x"]
    main = repository.branches["main"]
    push(folder, "me/x", "model", "# on a branch\n", PushOptions(revision="v2"))
    pushed = push(folder, "me/x", "model", "# for review\n", PushOptions(create_pr=True))
    assert repository.branches["main"] == main
    assert repository.files("v2")["README.md"] == b"# on a branch\n"
    assert repository.files("refs/pr/1")["README.md"] == b"# for review\n"
    assert pushed.url.endswith("/discussions/1")


def test_a_dataset_has_a_card_that_its_manifest_does_not_list(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "refs"
    folder.mkdir()
    (folder / "rows.parquet").write_bytes(b"rows")
    write_manifest(folder, kind="something")
    push(folder, "me/refs", "dataset", "# card\n")
    files = hub.repositories["dataset", "me/refs"].files()
    assert files["README.md"] == b"# card\n"
    assert files["manifest.json"] == (folder / "manifest.json").read_bytes()


def test_a_push_that_is_cut_goes_on(hub: HubServer, folder: Path) -> None:
    hub.uploads_left = 1
    with pytest.raises(
        JobError, match=r"could not push .* to the model 'me/x': .*push again: what was uploaded stays"
    ):
        push(folder, "me/x", "model", "# card\n")
    assert hub.repositories["model", "me/x"].messages == ["initial commit"]
    hub.uploads_left = None
    num, stored = hub.uploaded(), len(hub.stored)
    push(folder, "me/x", "model", "# card\n")
    assert stored == 1
    assert hub.uploaded() == num + 1


def test_what_is_not_pushed(hub: HubServer, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'x' is not the name of a Hub repository: the form is org/name"):
        push(folder, "x", "model", "")
    (folder / "evil.pkl").write_bytes(b"\x80")
    write_manifest(folder)
    with pytest.raises(IntegrityError, match=r"lists 'evil.pkl', which is no .json"):
        push(folder, "me/x", "model", "")
    (folder / "config.json").write_text("[]")
    with pytest.raises(IntegrityError, match=r"config.json has sha256"):
        push(folder, "me/x", "model", "")
    assert hub.requests == []


def test_without_the_right_to(hub: HubServer, folder: Path) -> None:
    hub.fail["/api/repos/create"] = 403
    hub.repositories["model", "you/x"] = Repository()
    hub.fail["/api/models/you/x/preupload"] = 403
    with pytest.raises(
        NotFoundError, match=r"could not push .* to the model 'you/x': .*; check the name and your acc"
    ):
        push(folder, "you/x", "model", "")
    hub.close()
    with pytest.raises(NotFoundError, match=r"the Hub does not answer .*; check the network, and push again"):
        push(folder, "me/x", "model", "")


def test_the_manifest_on_the_hub_is_canonical(hub: HubServer, folder: Path) -> None:
    push(folder, "me/x", "model", "# ö\n")
    data = hub.repositories["model", "me/x"].files()["manifest.json"]
    assert json.loads(data)["files"]["README.md"]["bytes"] == len("# ö\n".encode())
