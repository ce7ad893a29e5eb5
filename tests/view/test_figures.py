"""PNG figures: the projection against PROJ, and pixels where they belong."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyproj import Proj

from geoloc.view.figures import project_equal_earth, save_quadtree_png
from quadtree import Quadtree, build_quadtree

WHITE = (255, 255, 255)


def test_projection_is_equal_earth() -> None:
    grid = np.stack(np.meshgrid(np.linspace(-90, 90, 37), np.linspace(-180, 180, 73)), axis=-1).reshape(-1, 2)
    expected = np.stack(Proj("+proj=eqearth +R=1 +over")(grid[:, 1], grid[:, 0]), axis=1)
    np.testing.assert_allclose(project_equal_earth(grid), expected, atol=1e-6)


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def at(image: NDArray[np.uint8], latlon_deg: tuple[float, float]) -> tuple[int, int, int]:
    """The colour where a place is: the map's outermost pixels are the ends of the equator and the poles."""
    inked = (image != 255).any(axis=2)
    # Rows in which most pixels have ink are map, not text.
    rows = np.flatnonzero(inked.mean(axis=1) > 0.5)
    top, bottom = rows[0], rows[-1]
    columns = np.flatnonzero(inked[(top + bottom) // 2])
    edge = project_equal_earth(np.array([[0.0, 180.0], [90.0, 0.0]]))
    x, y = project_equal_earth(np.array(latlon_deg)) / [edge[0, 0], edge[1, 1]]
    column = round((columns[0] + columns[-1]) / 2 + x * (columns[-1] - columns[0]) / 2)
    row = round((top + bottom) / 2 - y * (bottom - top) / 2)
    red, green, blue = image[row, column].tolist()
    return red, green, blue


def test_quadtree_figure_colours_cells_and_leaves_the_rest(tmp_path: Path) -> None:
    tree = build_quadtree(
        np.array([[45.0, -100.0]] * 3 + [[-45.0, 100.0]]), max_points_per_cell=3, max_depth=2
    )
    choices: tuple[Literal["depth", "num_points"], ...] = ("depth", "num_points")
    for color_by in choices:
        path = tmp_path / f"{color_by}.png"
        save_quadtree_png(tree, path, color_by=color_by, title="Two cells, $x$ & <b>")
        image = pixels(path)
        assert image.shape[1] == 2200
        north_america, siberia, sahara = (
            at(image, (55.0, -110.0)),
            at(image, (60.0, 100.0)),
            at(image, (27.0, 3.0)),
        )
        assert siberia == sahara  # land without a cell
        assert max(abs(a - b) for a, b in zip(north_america, sahara, strict=True)) > 40
        assert min(sahara) > 240


def test_quadtree_without_numbers_of_points(tmp_path: Path) -> None:
    tree = build_quadtree(np.array([[45.0, -100.0], [-45.0, 100.0]]), max_points_per_cell=1, max_depth=2)
    untold = Quadtree(tree.morton_ranges[:, 0], tree.depths, tree.center_latlon_deg)
    with pytest.raises(ValueError, match='use color_by="depth"'):
        save_quadtree_png(untold, tmp_path / "tree.png", color_by="num_points")
    assert not (tmp_path / "tree.png").exists()
    save_quadtree_png(untold, tmp_path / "tree.png")
    assert (tmp_path / "tree.png").exists()
