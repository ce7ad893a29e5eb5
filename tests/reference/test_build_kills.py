"""Kill -9 while a database is built: nothing is lost or doubled, and the end is the same byte for byte.

As in test_database_kills, a driver forks one child for each kill. A build is killed again and again until it
comes to its end, so every moment of the job is hit in many states of it.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DRIVER = """
import os, random, shutil, signal, sys, time
from pathlib import Path

sys.path[:0] = ["tests", "tests/reference/aerial"]
import numpy as np
from aerial_samples import write_geotiff
from embedders import ColourEmbedder, contents
from PIL import Image

import geoloc.reference.aerial.references, geoloc.reference.street  # loaded once, not in every child
import geoloc.reference.locations
from geoloc.errors import NotFoundError
from geoloc.reference.database import ReferenceDatabase

root, num_kills = Path(sys.argv[1]), int(sys.argv[2])
raster = write_geotiff(root / "town.tif", "EPSG:32619", side_px=200)
photos = root / "photos"
photos.mkdir()
for number in range(40):
    Image.fromarray(np.full((20, 24, 3), 6 * number, np.uint8)).save(photos / f"{number:02}.png")
(photos / "17.png").write_bytes(b"no picture")
lines = [f"{number:02}.png,{number},{-number}" for number in range(40)]
(root / "photos.csv").write_text("\\n".join(["id,latitude,longitude", *lines]))
latlon = np.random.default_rng(0).uniform(-80, 80, (64, 2))
geoloc.reference.aerial.references.CELLS_PER_BLOCK = 8
geoloc.reference.street.PHOTOS_PER_SHARD = 5
geoloc.reference.locations.LOCATIONS_PER_SHARD = 16


def build(folder):
    try:
        database = ReferenceDatabase.open(folder, model=ColourEmbedder())
    except NotFoundError:
        database = ReferenceDatabase.create(folder, model=ColourEmbedder())
    encode = lambda latlon: np.cos(latlon @ np.ones((2, 48)) * np.arange(1, 49))
    return [
        database.add_aerial(raster, cell_size_m=20, gsd_m_per_px=(0.5, 1.0), batch_size=4),
        database.add_street(photos, metadata=root / "photos.csv", batch_size=4),
        database.add_locations(latlon, encode),
    ]


os.fsync = lambda descriptor: None  # a killed process loses no power
start = time.perf_counter()
reports = build(root / "whole")
seconds = time.perf_counter() - start
expected = contents(root / "whole")
total = sum(report.num_rows for report in reports)
work, luck = root / "work", random.Random(7)
num_killed = num_finished = 0
sizes = set()
while num_killed < num_kills:
    child = os.fork()
    if child == 0:
        build(work)
        os._exit(0)
    time.sleep(luck.uniform(0, 0.6 * seconds) * luck.random())
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    num_killed += os.WIFSIGNALED(status)
    try:
        database = ReferenceDatabase.open(work)
    except NotFoundError:
        continue
    database.verify()
    sizes.add(len(database))  # only whole builds are seen
    if status == 0 or len(database) == total:
        again = build(work)
        assert [r.num_rows for r in again] == [r.num_rows for r in reports]
        assert [r.problems for r in again] == [r.problems for r in reports]
        assert contents(work) == expected, contents(work).keys() ^ expected.keys()
        shutil.rmtree(work)
        num_finished += 1
again = build(work)
assert contents(work) == expected
assert sizes <= {0, *np.cumsum([r.num_rows for r in reports]).tolist()}, sizes
strangers = {path.name for path in root.iterdir()} - {"town.tif", "photos", "photos.csv", "whole", "work"}
assert not strangers, strangers
print(num_killed, num_finished + 1, len(sizes))
"""


def kill(num_kills: int, folder: Path) -> tuple[int, int, int]:
    """How many children died, how often the build came to its end, and how many states were seen."""
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, folder, str(num_kills)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    num_killed, num_finished, num_states = map(int, result.stdout.split())
    return num_killed, num_finished, num_states


def test_killed_at_a_few_moments_the_database_is_the_same(tmp_path: Path) -> None:
    num_killed, num_finished, _ = kill(4, tmp_path)
    assert num_killed == 4
    assert num_finished >= 1


@pytest.mark.slow
def test_killed_at_200_random_moments_the_database_is_the_same(tmp_path: Path) -> None:
    num_killed, num_finished, num_states = kill(200, tmp_path)
    assert num_killed == 200
    assert num_finished >= 5
    assert num_states >= 3
