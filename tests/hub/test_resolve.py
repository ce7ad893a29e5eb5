"""No test here reaches a network: the Hub's client is replaced."""

from pathlib import Path
from typing import Any

import pytest

from geoloc.errors import ConfigError, NotFoundError
from geoloc.hub import resolve as module
from geoloc.hub.resolve import CHECKPOINT_FILES, bundled_names, resolve


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What was asked of huggingface_hub; every repository but "org/none" is there."""
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        asked.append({"repo_id": repo_id} | options)
        if repo_id == "org/none":
            raise OSError("no network")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package with two models, and a folder that is none."""
    folder = tmp_path / "checkpoints"
    for name in ("zebra", "earth"):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("{}")
    (folder / "half").mkdir()
    monkeypatch.setattr(module, "BUNDLED", folder)
    return folder


def test_bundled_models(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundled_names() == ["earth", "zebra"]
    assert resolve("earth") == bundled / "earth"


def test_a_folder_comes_first(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("earth", "org/name", "plain"):
        Path(name).mkdir(parents=True)
        assert resolve(name) == Path(name)
        assert resolve(Path(name)) == Path(name)


def test_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"


def test_a_save_that_was_killed_between_its_renames_is_found(tmp_path: Path) -> None:
    old = tmp_path / ".model.old"  # the name that geoloc.files gives the old folder meanwhile
    old.mkdir()
    assert resolve(tmp_path / "model") == tmp_path / "model"
    assert not old.exists()


def test_a_hub_id(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    assert resolve("Org-1/some.model_2", revision="v1") == tmp_path / "snapshot"
    assert hub == [
        {"repo_id": "Org-1/some.model_2", "revision": "v1", "allow_patterns": list(CHECKPOINT_FILES)}
    ]


def test_only_a_checkpoints_files_are_ever_downloaded() -> None:
    assert not any(set(name) & set("*?[") for name in CHECKPOINT_FILES)
    assert {Path(name).suffix for name in CHECKPOINT_FILES} == {".json", ".safetensors", ".parquet", ".md"}


def test_a_hub_that_does_not_answer(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(
        NotFoundError,
        match=r"could not get the model 'org/none' \(revision main\) from the Hugging Face Hub: no network; "
        r"check the name and the network, or give the path of a folder",
    ):
        resolve("org/none")


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "a/b/c",
        "/no/where",
        "../up",
        "./here",
        "org/",
        "/name",
        "org/..",
        "-o/x",
        "o/n ame",
        "ö/x",
    ],
)
def test_other_names_ask_nobody(
    hub: list[dict[str, Any]], bundled: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "checkpoints" / "half")
    with pytest.raises(
        NotFoundError,
        match=r"no model is called '.*': it is not bundled \(bundled: earth, zebra\), not a folder h",
    ):
        resolve(name)
    assert hub == []


def test_a_path_is_never_a_hub_id(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(
        NotFoundError, match=r"there is no model folder org/name; check the path, or save a model"
    ):
        resolve(Path("org/name"))
    assert hub == []


def test_revisions_are_the_hubs(bundled: Path, tmp_path: Path) -> None:
    for name in ("earth", tmp_path):
        with pytest.raises(
            ConfigError, match=r"revision 'v1' was asked of .*on this machine: only models on the"
        ):
            resolve(name, "v1")
