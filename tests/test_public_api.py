"""The public surface is a list, and the list is true."""

import ast
import importlib
import pkgutil
import sys
import types
from pathlib import Path

import pytest

import geoloc
import quadtree


@pytest.mark.parametrize("package", [geoloc, quadtree])
def test_all_is_sorted_and_importable(package: types.ModuleType) -> None:
    assert list(package.__all__) == sorted(set(package.__all__))
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_quadtree_exports_exactly_what_it_imports() -> None:
    assert dir(quadtree) == quadtree.__all__
    tree = ast.parse(Path(quadtree.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen.keys() == set(quadtree.__all__)
    for name, home in seen.items():
        value = getattr(quadtree, name)
        assert value is getattr(sys.modules[str(home)], name)
        assert getattr(value, "__module__", home) == home


def test_geoloc_exports_exactly_what_it_can_load() -> None:
    assert set(geoloc.__all__) == geoloc._HOME.keys() | {"__version__"}
    assert dir(geoloc) == geoloc.__all__
    for name, home in geoloc._HOME.items():
        assert getattr(geoloc, name).__module__ == home


def test_type_checkers_see_what_is_loaded() -> None:
    """The imports under TYPE_CHECKING and the table of homes say the same."""
    tree = ast.parse(Path(geoloc.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == geoloc._HOME


ROOMS = sorted(path.parent.name for path in Path(geoloc.__file__).parent.glob("*/__init__.pyi"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_package_exports_names_of_its_own_modules(room: str) -> None:
    package = importlib.import_module(f"geoloc.{room}")
    submodules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert package.__all__
    assert len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        value = getattr(package, name)
        assert name not in submodules  # importing the submodule would replace the name
        assert getattr(value, "__module__", f"geoloc.{room}.").startswith(f"geoloc.{room}.")
        assert getattr(value, "__doc__", None), name


def test_every_package_with_a_public_part_exports_it() -> None:
    with_code = {path.parent.name for path in Path(geoloc.__file__).parent.glob("*/__init__.py")}
    assert with_code - set(ROOMS) == {"cli", "files", "images"}  # a command, and two that import eagerly


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(
        AttributeError, match=r"'geoloc' has no attribute 'Geolocator'; it offers Geolocalizer, "
    ):
        geoloc.Geolocator  # noqa: B018  the access is the test


@pytest.mark.parametrize("package", [geoloc, quadtree])
def test_types_are_shipped(package: types.ModuleType) -> None:
    assert package.__file__ is not None
    assert Path(package.__file__).with_name("py.typed").exists()
