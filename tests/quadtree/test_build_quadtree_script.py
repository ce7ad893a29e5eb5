import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from quadtree_references import photo_like_latlon_deg

from quadtree import Quadtree, build_quadtree

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_quadtree.py"


def run(folder, *arguments):
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def latlon_deg(tmp_path):
    latlon_deg = photo_like_latlon_deg(2_000, seed=60)
    np.savetxt(tmp_path / "train.csv", latlon_deg, "%.17g", ",", header="latitude,longitude", comments="")
    return latlon_deg


def test_builds_the_world(tmp_path, latlon_deg):
    result = run(tmp_path, "points=train.csv", "output=tree.parquet", "max_points_per_cell=50")
    assert result.returncode == 0, result.stderr
    tree = Quadtree.read(tmp_path / "tree.parquet")
    assert tree.paths == build_quadtree(latlon_deg, 50, 10).paths
    assert f"tree.parquet: {tree}" in result.stdout
    # Hydra leaves no folder of its own behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.csv", "tree.parquet"]


def test_builds_osv5ms_table(tmp_path, latlon_deg):
    settings = ["points=[train.csv]", "max_points_per_cell=50", "max_depth=7"]
    result = run(tmp_path, "--config-name", "osv5m", *settings)
    assert result.returncode == 0, result.stderr
    tree = Quadtree.read_osv5m_csv(tmp_path / "quadtree_7_50.csv")
    assert tree.paths == build_quadtree(latlon_deg, 50, 7, root="data").paths


def test_an_unknown_key_is_refused(tmp_path):
    result = run(tmp_path, "points=train.csv", "output=tree.parquet", "max_point_per_cell=50")
    assert result.returncode != 0
    assert "max_point_per_cell" in result.stderr
