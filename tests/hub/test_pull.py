"""Folders from a Hub on loopback, by the real client: whole or absent, resumed, shared, pinned, offline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer, Repository, with_manifest

from geoloc.errors import ConfigError, IntegrityError, NotFoundError, OutputMismatchError
from geoloc.files import verify_manifest
from geoloc.hub.pull import cached, kind_of, pull
from geoloc.hub.repository import find, read

BIG = bytes(range(256)) * 4096  # 1 MiB
FILES = {"config.json": b"{}", "model.safetensors": BIG, "reference/segments/0000/rows.parquet": b"rows" * 99}


def publish(hub: HubServer, files: dict[str, bytes] = FILES) -> str:
    """A commit of "me/x" that holds these files with their manifest, and some that nobody asked for."""
    repository = hub.repositories.setdefault(("model", "me/x"), Repository())
    return repository.commit(
        with_manifest(files) | {".gitattributes": b"", "pytorch_model.bin": b"\x80"}, "push"
    )


def nothing(folder: Path) -> None:
    pass


def test_what_the_manifest_lists_comes_and_nothing_else(hub: HubServer) -> None:
    publish(hub)
    folder = cached("me/x", "model")
    assert verify_manifest(folder, strict=True)["files"].keys() == FILES.keys()
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert not any("pytorch_model" in path for _, path, _ in hub.requests)


def test_the_second_time_only_asks_for_the_commit(hub: HubServer) -> None:
    commit = publish(hub)
    folder = cached("me/x", "model")
    hub.requests.clear()
    assert cached("me/x", "model") == folder
    assert [path for _, path, _ in hub.requests] == ["/api/models/me/x"]
    hub.requests.clear()
    assert cached("me/x", "model", revision=commit) == folder
    assert hub.requests == []


def test_revisions_are_pinned_and_share_what_is_the_same(hub: HubServer) -> None:
    first = publish(hub)
    old = cached("me/x", "model")
    publish(hub, FILES | {"config.json": b"[]"})
    new = cached("me/x", "model")
    assert old != new
    assert (new / "config.json").read_bytes() == b"[]"
    assert len(hub.received("model.safetensors")) == 1
    assert (old / "model.safetensors").samefile(new / "model.safetensors")
    assert cached("me/x", "model", revision=first) == old


def test_a_branch_a_pull_request_and_a_subfolder(hub: HubServer) -> None:
    publish(hub)
    repository = hub.repositories["model", "me/x"]
    nested = {f"a/b/{name}": data for name, data in with_manifest({"config.json": b"7"}).items()}
    repository.commit(repository.files() | nested, "nested", "refs/pr/1")
    folder = cached("me/x", "model", revision="refs/pr/1", subfolder="a/b")
    assert (folder / "config.json").read_bytes() == b"7"
    assert cached("me/x", "model", revision="refs/pr/1") != folder
    with pytest.raises(
        NotFoundError, match=r"at [0-9a-f]{8} has no manifest.json, so geoloc did not publish it"
    ):
        cached("me/x", "model", subfolder="a/c")


def test_a_cut_connection_goes_on_where_it_broke(hub: HubServer) -> None:
    publish(hub)
    hub.cut["model.safetensors"] = [1000, 500_000]
    folder = cached("me/x", "model")
    assert (folder / "model.safetensors").read_bytes() == BIG
    assert hub.received("model.safetensors") == ["", "bytes=1000-", "bytes=500000-"]


def test_a_pull_that_gave_up_is_gone_on_with_by_the_next_one(hub: HubServer) -> None:
    publish(hub)
    hub.cut["model.safetensors"] = [300_000] * 7  # no byte more, however often it is asked
    with pytest.raises(
        NotFoundError,
        match=r"could not get 'model.safetensors' of the model me/x at .*: the Hub does not answer .*; "
        r"check the network, or run `geoloc pull` where there is a network",
    ):
        cached("me/x", "model")
    hub.requests.clear()
    hub.cut.clear()
    folder = cached("me/x", "model")
    assert (folder / "model.safetensors").read_bytes() == BIG
    assert hub.received("model.safetensors") == ["bytes=300000-"]
    assert hub.received("config.json") == []
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_bytes_of_last_time_that_are_wrong_come_again(hub: HubServer, tmp_path: Path) -> None:
    publish(hub)
    part = tmp_path / ".here.part"
    part.mkdir()
    (part / ".model.safetensors.part").write_bytes(b"\0" * 1000)
    (part / "left of another commit.json").write_text("")
    pull(read(find("me/x", "model")), tmp_path / "here", nothing)
    assert verify_manifest(tmp_path / "here", strict=True)
    assert hub.received("model.safetensors") == ["bytes=1000-", ""]


def test_a_server_without_ranges(hub: HubServer, tmp_path: Path) -> None:
    publish(hub)
    part = tmp_path / ".here.part"
    part.mkdir()
    (part / ".config.json.part").write_bytes(b"{")
    (part / ".model.safetensors.part").write_bytes(BIG + b"more than there is")
    hub.has_ranges = False
    pull(read(find("me/x", "model")), tmp_path / "here", nothing)
    assert verify_manifest(tmp_path / "here", strict=True)
    assert hub.received("config.json") == ["bytes=1-"]


def test_a_pull_replaces_an_older_one_and_brings_what_is_new(hub: HubServer, tmp_path: Path) -> None:
    publish(hub)
    pull(read(find("me/x", "model")), tmp_path / "here", nothing)
    publish(hub, {"model.safetensors": BIG, "config.json": b"new"})
    hub.requests.clear()
    pull(read(find("me/x", "model")), tmp_path / "here", nothing)
    assert verify_manifest(tmp_path / "here", strict=True)["files"].keys() == {
        "model.safetensors",
        "config.json",
    }
    assert hub.received("model.safetensors") == []
    (tmp_path / "here" / "mine.txt").write_text("")
    with pytest.raises(OutputMismatchError, match=r"holds 'mine.txt', which no manifest there lists"):
        pull(read(find("me/x", "model")), tmp_path / "here", nothing)


def test_what_does_not_pass_the_check_never_takes_the_name(hub: HubServer, tmp_path: Path) -> None:
    publish(hub)

    def refuse(folder: Path) -> None:
        verify_manifest(folder, strict=True)
        raise IntegrityError("no")

    with pytest.raises(IntegrityError, match="no"):
        pull(read(find("me/x", "model")), tmp_path / "here", refuse)
    assert not (tmp_path / "here").exists()


def test_a_damaged_cache_heals(hub: HubServer) -> None:
    publish(hub)
    folder = cached("me/x", "model")
    (folder / "config.json").write_bytes(b"[]")
    (folder / "manifest.json").write_bytes(b"")
    assert cached("me/x", "model") == folder
    assert verify_manifest(folder, strict=True)


def test_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    publish(hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        NotFoundError,
        match=r"could not get the model 'me/x' \(revision main\): it is not in the cache, and offline mode is on "
        r"\(HF_HUB_OFFLINE\); unset that, or run `geoloc pull` where there is a network and give the path of that",
    ):
        cached("me/x", "model")
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = cached("me/x", "model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert cached("me/x", "model") == folder
    (folder / "config.json").unlink()
    with pytest.raises(
        NotFoundError, match=r"could not get the model me/x at [0-9a-f]{8}: it is not in the cache"
    ):
        cached("me/x", "model")
    assert hub.requests == []


def test_a_hub_that_is_gone_leaves_what_was_there(hub: HubServer) -> None:
    publish(hub)
    folder = cached("me/x", "model")
    hub.close()
    assert cached("me/x", "model") == folder


def test_names_that_are_not_there(hub: HubServer) -> None:
    publish(hub)
    with pytest.raises(
        NotFoundError,
        match=r"could not get the model 'me/y' \(revision main\): there is no such repository, or it is private; check "
        r"the name, or log in with `hf auth login`",
    ):
        cached("me/y", "model")
    with pytest.raises(NotFoundError, match=r"model 'me/x' \(revision v9\): there is no such revision"):
        cached("me/x", "model", revision="v9")
    hub.fail["/api/models/me/x"] = 403
    with pytest.raises(NotFoundError, match=r"could not get the model 'me/x'"):
        cached("me/x", "model")


def test_the_kind_of_a_repository(hub: HubServer) -> None:
    hub.repositories["dataset", "me/d"] = Repository()
    publish(hub)
    assert kind_of("me/x") == "model"
    assert kind_of("me/d") == "dataset"
    with pytest.raises(NotFoundError, match=r"could not get 'me/none': there is no such repository"):
        kind_of("me/none")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("me", None, ""), "'me' is not the name of a Hub repository: the form is org/name"),
        (("me/../x", None, ""), "is not the name of a Hub repository"),
        (("me/a--b", None, ""), "is not the name of a Hub repository"),
        (("me/x", "../main", ""), "is not a revision"),
        (("me/x", "a/../../b", ""), "is not a revision"),
        (("me/x", "", ""), "is not a revision"),
        (("me/x", None, "../up"), "is not a folder of a repository"),
        (("me/x", None, "/abs"), "is not a folder"),
    ],
)
def test_names_that_nothing_can_have(hub: HubServer, arguments: tuple[str, str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        find(arguments[0], "model", arguments[1], arguments[2])
    assert hub.requests == []


PULL = "from geoloc.hub.pull import cached; print(cached('me/x', 'model'))"


def environment(hub: HubServer, folder: Path) -> dict[str, str]:
    return os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}


def test_a_folder_that_another_process_has_completed_is_kept(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process renames its folder between this one's check and its download."""
    publish(hub)
    folder = cached("me/x", "model")
    inode = (folder / "model.safetensors").stat().st_ino
    monkeypatch.setattr("geoloc.hub.pull.is_whole", lambda _: False)
    with (folder / "model.safetensors").open("rb") as reader:
        assert cached("me/x", "model") == folder
        assert reader.read() == FILES["model.safetensors"]
    assert (folder / "model.safetensors").stat().st_ino == inode
    assert len(hub.received("model.safetensors")) == 1
    assert verify_manifest(folder, strict=True)


def test_two_processes_that_pull_at_once_receive_it_once(hub: HubServer, tmp_path: Path) -> None:
    publish(hub)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PULL],
            env=environment(hub, tmp_path / "home"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    assert verify_manifest(answers[0], strict=True)
    assert len(hub.received("model.safetensors")) == 1
    assert [path.name for path in Path(answers[0]).parent.iterdir()] == [Path(answers[0]).name]


def test_a_killed_pull_is_gone_on_with_by_another_process(hub: HubServer, tmp_path: Path) -> None:
    publish(hub)
    hub.stall["model.safetensors"] = 700_000
    killed = subprocess.Popen([sys.executable, "-c", PULL], env=environment(hub, tmp_path / "home"))
    assert hub.is_stalled.wait(300)
    part = tmp_path / "home/assets/geoloc/hub/models--me--x/snapshots"
    while not any(path.stat().st_size for path in part.rglob(".model.safetensors.part")):
        assert killed.poll() is None
    killed.kill()
    killed.wait()
    hub.requests.clear()
    done = subprocess.run(
        [sys.executable, "-c", PULL], env=environment(hub, tmp_path / "home"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert verify_manifest(done.stdout.strip(), strict=True)
    (asked,) = hub.received("model.safetensors")
    assert 0 < int(asked.removeprefix("bytes=").removesuffix("-")) <= 700_000
    assert hub.received("config.json") == []
