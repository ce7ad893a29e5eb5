"""One root class for the errors of geoloc and quadtree."""

import subprocess
import sys

import pytest

import geoloc.errors
import quadtree
from geoloc.errors import GeolocError
from quadtree.points import PointTable


def read_points_of_a_text_file(tmp_path):
    (tmp_path / "points.txt").write_text("latitude,longitude\n1,2\n")
    list(PointTable(tmp_path / "points.txt"))


def read_a_tree_of_text(tmp_path):
    (tmp_path / "tree.parquet").write_text("no Parquet")
    quadtree.Quadtree.read(tmp_path / "tree.parquet")


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda folder: quadtree.validate_latlon_deg([91, 0]), quadtree.InvalidCoordinateError),
        (read_a_tree_of_text, quadtree.InvalidTreeError),
        (read_points_of_a_text_file, quadtree.InvalidPointTableError),
    ],
)
def test_geoloc_error_catches_errors_of_quadtree(call, kind, tmp_path):
    with pytest.raises(GeolocError) as caught:
        call(tmp_path)
    assert caught.type is kind


def test_every_public_error_is_a_geoloc_error():
    kinds = [getattr(geoloc.errors, name) for name in geoloc.errors.__all__]
    assert len(kinds) == 12
    assert all(issubclass(kind, GeolocError) for kind in kinds)


def test_quadtree_imports_without_geoloc():
    code = (
        "import sys; sys.modules['geoloc'] = None; import quadtree\n"
        "for name in quadtree.__all__: getattr(quadtree, name)\n"
        "print(*(name for name in sys.modules if name.startswith('geoloc.')), 'end')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["end"]
