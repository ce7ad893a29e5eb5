"""A name becomes a folder: which kind of name is which; the Hub itself is in `test_pull`."""

from pathlib import Path
from typing import Any

import pytest

from geoloc.errors import ConfigError, IntegrityError, NotFoundError
from geoloc.hub import resolve as module
from geoloc.hub.resolve import bundled_names, resolve


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """What was asked of the Hub."""
    asked: list[tuple[Any, ...]] = []

    def cached(repo_id: str, kind: str, *, revision: str | None, subfolder: str) -> Path:
        asked.append((repo_id, kind, revision, subfolder))
        return tmp_path / "snapshot"

    monkeypatch.setattr(module, "cached", cached)
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


def test_a_hub_id(asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
    assert resolve("Org-1/some.model_2", revision="v1") == tmp_path / "snapshot"
    assert resolve("org/zoo", subfolder="a/b") == tmp_path / "snapshot"
    assert asked == [("Org-1/some.model_2", "model", "v1", ""), ("org/zoo", "model", None, "a/b")]


def test_a_subfolder_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert resolve(tmp_path, subfolder="a/b") == tmp_path / "a" / "b"
    with pytest.raises(IntegrityError, match=r"\.\./b"):
        resolve(tmp_path / "a", subfolder="../b")


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
    asked: list[tuple[Any, ...]], bundled: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "checkpoints" / "half")
    with pytest.raises(
        NotFoundError,
        match=r"no model is called '.*': it is not bundled \(bundled: earth, zebra\), not a folder h",
    ):
        resolve(name)
    assert asked == []


def test_a_path_is_never_a_hub_id(asked: list[tuple[Any, ...]]) -> None:
    with pytest.raises(
        NotFoundError, match=r"there is no model folder org/name; check the path, or save a model"
    ):
        resolve(Path("org/name"))
    assert asked == []


def test_revisions_are_the_hubs(bundled: Path, tmp_path: Path) -> None:
    for name in ("earth", tmp_path):
        with pytest.raises(
            ConfigError, match=r"revision 'v1' was asked of .*on this machine: only models on the"
        ):
            resolve(name, "v1")
