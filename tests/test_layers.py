"""Imports point down: each room of the house has a floor and knows only what lies below it.

Read from the source, so imports inside functions and under TYPE_CHECKING count as well.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room is a module or package right under `geoloc`, or the whole of `quadtree`. A new room gets its floor
# here.
FLOORS = {
    "quadtree": 1,
    "errors": 1,
    "files": 1,
    "torchvision_cpu": 1,
    "geo": 2,
    "metrics": 2,
    "images": 2,
    "jobs": 2,
    "photos": 3,
    "models": 3,
    "hub": 3,
    "reference": 4,
    "adapters": 4,
    "data": 4,
    "search": 5,
    "posterior": 6,
    "checkpoint": 7,
    "localize": 8,
    "__init__": 9,  # the front door, `from geoloc import Geolocalizer`, is above the rooms that it opens
    "view": 9,  # maps and figures of predictions
    "train": 10,
    "evaluate": 10,  # its report is drawn by view
    "cli": 12,
    "__main__": 13,
}

# (room, neighbour on its own floor) -> why it may
NEIGHBOURS = {
    ("errors", "quadtree"): "quadtree stands alone, so the root of all errors is there",
    ("files", "errors"): "what it refuses is one of the tree of errors",
}

# A third party -> the only files or folders that import it, where there may be some
DOORS = {
    "faiss": ["geoloc/search/structures/"],
    "fsspec": ["geoloc/photos/sources.py"],
    "huggingface_hub": ["geoloc/hub/"],
    "hydra": ["geoloc/cli/"],
    "lightning": ["geoloc/train/"],
    "matplotlib": ["geoloc/view/"],
    "omegaconf": ["geoloc/cli/"],
    "onnx": ["geoloc/models/onnx/"],
    "onnxruntime": ["geoloc/models/onnx/"],
    "open_clip": ["geoloc/models/image_tower.py", "geoloc/models/text_tower.py"],
    "pillow_heif": ["geoloc/images/decode.py"],
    "pyproj": ["quadtree/sphere.py", "geoloc/geo/wgs84.py"],
    "pytorch_metric_learning": ["geoloc/models/losses/pairs.py"],
    "rasterio": ["geoloc/reference/aerial/geotiff.py"],
    "ray": ["geoloc/jobs/ray_engine.py"],
    "shapely": ["geoloc/geo/regions/polygons.py"],
    "simplejpeg": ["geoloc/images/decode.py"],
    "timm": ["geoloc/models/image_tower.py"],
    "torchvision": [],  # geoloc/torchvision_cpu.py makes it importable for others, and we want no more of it
    "webdataset": ["geoloc/photos/sources.py", "geoloc/data/shards.py"],
    "yaml": ["geoloc/reference/aerial/layout.py"],
}

TORCHLESS = {"quadtree", "errors", "files", "geo", "metrics", "hub", "jobs", "view"}


@dataclass(frozen=True)
class Import:
    """One imported module, with the names taken from it where there are any."""

    module: str
    names: tuple[str, ...]
    line: int


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield Import(module, tuple(alias.name for alias in node.names), node.lineno)


def sources(root: Path) -> list[Path]:
    return sorted(path for package in ("geoloc", "quadtree") for path in (root / package).rglob("*.py"))


def room_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return parts[0] if parts[0] == "quadtree" else parts[1]


def rooms_entered(imported: Import) -> set[str]:
    """The rooms of ours that an import reaches."""
    parts = imported.module.split(".")
    if parts[0] == "quadtree":
        return {"quadtree"}
    if parts[0] != "geoloc":
        return set()
    if len(parts) > 1:
        return {parts[1]}
    # `from geoloc import x`: a room, or a name at the front door; the version is no secret of the upper
    # floors.
    return {
        name if name in FLOORS else "__init__" for name in imported.names or ("",) if name != "__version__"
    }


def complaints(root: Path) -> list[str]:
    found = []
    for path in sources(root):
        place, room = path.relative_to(root).as_posix(), room_of(path, root)
        if room not in FLOORS:
            found.append(f"{place}: the room {room!r} has no floor: give it one in {Path(__file__).name}")
            continue
        for imported in imports_of(path, root):
            where = f"{place}:{imported.line}"
            for other in rooms_entered(imported) - {room}:
                if other not in FLOORS:
                    found.append(f"{where}: imports {other!r}, which has no floor")
                elif FLOORS[other] > FLOORS[room]:
                    found.append(
                        f"{where}: {room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"
                    )
                elif FLOORS[other] == FLOORS[room] and (room, other) not in NEIGHBOURS:
                    found.append(f"{where}: {room} imports its neighbour {other} (floor {FLOORS[room]})")
            party = imported.module.split(".")[0]
            if party in DOORS and not any(place == door or place.startswith(door) for door in DOORS[party]):
                found.append(f"{where}: {party} enters only through {', '.join(DOORS[party]) or 'nothing'}")
            if party == "torch" and room in TORCHLESS:
                found.append(f"{where}: {room} knows nothing about torch")
            if party in ("scripts", "tests", "benchmarks"):
                found.append(f"{where}: the library imports {party}")
    return found


def test_imports_point_down() -> None:
    assert not complaints(ROOT), "\n".join(complaints(ROOT))


def test_every_door_is_used() -> None:
    """A third party that nobody imports any more is neither a door nor a dependency."""
    used = {
        (i.module.split(".")[0], path.relative_to(ROOT).as_posix())
        for path in sources(ROOT)
        for i in imports_of(path, ROOT)
    }
    for party, doors in DOORS.items():
        for door in doors:
            assert any(name == party and path.startswith(door) for name, path in used), (party, door)


def test_quadtree_stands_alone() -> None:
    allowed = {"quadtree", "numpy", "pyarrow", "pyproj", *sys.stdlib_module_names}
    for path in sources(ROOT):
        if room_of(path, ROOT) == "quadtree":
            assert {i.module.split(".")[0] for i in imports_of(path, ROOT)} <= allowed, path


def test_every_folder_with_modules_is_a_package() -> None:
    """Without an __init__.py it would work here and be missing from the wheel."""
    for path in sources(ROOT):
        assert (path.parent / "__init__.py").exists(), path


def test_nothing_is_imported_by_a_name_in_a_string() -> None:
    """A class path in a file must have no way to become an import; the front door looks its own names up."""
    for path in sources(ROOT):
        names = {
            n.attr if isinstance(n, ast.Attribute) else getattr(n, "id", "")
            for n in ast.walk(ast.parse(path.read_text()))
        }
        if path not in (ROOT / "geoloc" / "__init__.py", ROOT / "quadtree" / "__init__.py"):
            assert not names & {"import_module", "__import__"}, path


# The checker itself: each line, put into a module of its own, must be complained about (or not).
@pytest.mark.parametrize(
    ("place", "line", "complaint"),
    [
        (
            "geoloc/models/x.py",
            "from geoloc.localize.session import Session",
            "models (floor 3) imports localize",
        ),
        ("geoloc/models/x.py", "def f():\n    import geoloc.view.map_html", "models (floor 3) imports view"),
        ("geoloc/models/x.py", "from geoloc import Geolocalizer", "models (floor 3) imports __init__"),
        ("geoloc/models/x.py", "import geoloc", "models (floor 3) imports __init__"),
        ("geoloc/localize/x.py", "from geoloc import Prediction", "localize (floor 8) imports __init__"),
        ("geoloc/models/x.py", "from geoloc import train", "models (floor 3) imports train"),
        ("geoloc/models/x.py", "from ..hub import push", "models imports its neighbour hub"),
        ("geoloc/models/x.py", "from .. import hub", "models imports its neighbour hub"),
        ("geoloc/models/deep/x.py", "from ...hub.push import y", "models imports its neighbour hub"),
        ("quadtree/x.py", "from geoloc.errors import GeolocError", "quadtree imports its neighbour errors"),
        ("quadtree/x.py", "import torch.nn", "quadtree knows nothing about torch"),
        (
            "geoloc/localize/x.py",
            "import open_clip.model",
            "open_clip enters only through geoloc/models/",
        ),
        (
            "geoloc/train/x.py",
            "from torchvision import transforms",
            "torchvision enters only through nothing",
        ),
        ("geoloc/train/x.py", "from tests.conftest import y", "the library imports tests"),
        ("geoloc/attic/x.py", "import os", "the room 'attic' has no floor"),
        ("geoloc/train/x.py", "from geoloc.attic import y", "imports 'attic', which has no floor"),
        (
            "geoloc/models/x.py",
            "from . import heads\nfrom .config import y\nfrom geoloc.models.lora import z",
            None,
        ),
        (
            "geoloc/localize/x.py",
            "from geoloc import __version__, models\nimport quadtree.sphere\nimport torch",
            None,
        ),
        ("geoloc/files.py", "from geoloc.errors import IntegrityError", None),
        ("geoloc/hub/push.py", "import huggingface_hub", None),
        ("geoloc/train/x.py", "from geoloc import Geolocalizer", None),
    ],
)
def test_the_checker_sees(tmp_path: Path, place: str, line: str, complaint: str | None) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(line)
    found = complaints(tmp_path)
    if complaint is None:
        assert found == []
    else:
        assert len(found) == 1
        assert complaint in found[0]
