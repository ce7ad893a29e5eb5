"""Importing is cheap, told by what is loaded; benchmarks/import_time.py has the seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HEAVY = {
    "PIL",
    "faiss",
    "fastapi",
    "geopandas",
    "huggingface_hub",
    "hydra",
    "lightning",
    "matplotlib",
    "numpy",
    "open_clip",
    "pandas",
    "pyarrow",
    "pyproj",
    "ray",
    "safetensors",
    "scipy",
    "simplejpeg",
    "sklearn",
    "timm",
    "torch",
    "torchvision",
    "webdataset",
}

HELP = "import geoloc.cli\ntry: geoloc.cli.main()\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    ("code", "arguments", "allowed"),
    [
        ("import geoloc", [], set()),
        ("import geoloc; geoloc.__version__, dir(geoloc)", [], set()),
        (HELP, ["--help"], set()),
        ("import quadtree", [], set()),
        ("import quadtree; quadtree.Quadtree", [], {"numpy", "pyarrow", "pyproj"}),
        ("import geoloc.errors", [], set()),
    ],
    ids=["import geoloc", "look around", "geoloc --help", "import quadtree", "use quadtree", "import errors"],
)
def test_nothing_heavy_is_loaded(code: str, arguments: list[str], allowed: set[str]) -> None:
    report = "\nimport sys; print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", code + report, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.rpartition("loaded: ")[2].split())
    assert code.split()[1].partition(".")[0].rstrip(";") in loaded
    assert not loaded & (HEAVY - allowed)
