"""Shards hold every sample once, whatever was killed, and the same bytes for any number of workers."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_image, tiny_quadtree

from geoloc.data.layouts import check_layout, open_layout
from geoloc.data.sample import SampleTable
from geoloc.data.shards import ShardSet
from geoloc.errors import JobError, OutputMismatchError
from geoloc.files import verify_manifest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(tmp_path: Path) -> SampleTable:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(23):
        Image.fromarray(tiny_image(i)).save(folder / f"{i}.{'png' if i % 5 == 0 else 'jpg'}")
    lines = [f"{i},{i},{-i},{'FR' if i % 2 else ''},{i * 7}" for i in range(23)]
    (folder / "t.csv").write_text("\n".join(["id,latitude,longitude,country,heading", *lines]) + "\n")
    return open_layout("photos", folder)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def assert_same(table: SampleTable, folder: Path) -> None:
    back = open_layout("webdataset", folder)
    assert sorted(back.keys.to_pylist()) == sorted(table.keys.to_pylist())
    row_of = {key: row for row, key in enumerate(table.keys.to_pylist())}
    for row in range(len(back)):
        ours, original = back[row], table[row_of[back[row].key]]
        assert ours.image.read() == original.image.read()
        for name in ("latlon_deg", "country", "heading_deg", "cell_id", "targets"):
            assert getattr(ours, name) == getattr(original, name)


def test_shards_give_back_what_went_in(table, tmp_path):
    labelled = table.with_cells(tiny_quadtree())
    assert ShardSet(tmp_path / "s", labelled, samples_per_shard=10).write(num_workers=0) == 23
    assert_same(labelled, tmp_path / "s")
    verify_manifest(tmp_path / "s", strict=True)
    assert [path.name for path in sorted((tmp_path / "s").glob("*.tar"))] == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]
    keys = open_layout("webdataset", tmp_path / "s").keys.to_pylist()
    assert keys != sorted(keys, key=int)  # mixed
    # Without the index, as others read them.
    one = open_layout("webdataset", tmp_path / "s" / "00000.tar")
    assert one.keys.to_pylist() == keys[:10]


def test_bytes_do_not_depend_on_workers(table, tmp_path):
    for name, workers in (("a", 0), ("b", 2)):
        ShardSet(tmp_path / name, table, samples_per_shard=5).write(num_workers=workers)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    ShardSet(tmp_path / "c", table, samples_per_shard=5, seed=1).write(num_workers=0)
    assert digests(tmp_path / "a") != digests(tmp_path / "c")
    with pytest.raises(OutputMismatchError, match="another job"):
        ShardSet(tmp_path / "a", table.take(np.arange(22)), samples_per_shard=5)


def test_bad_pictures_are_refused_or_left_out(table, tmp_path):
    Path(table[3].image.path).write_bytes(b"nothing of the kind")
    with pytest.raises(JobError, match=r"sample '3' \(.*3\.jpg\): not a JPEG.*--drop-bad"):
        ShardSet(tmp_path / "s", table, samples_per_shard=5).write(num_workers=0)
    assert ShardSet(tmp_path / "t", table, samples_per_shard=5, drop_bad=True).write(num_workers=0) == 22
    rest = table.take([row for row in range(23) if row != 3])
    assert_same(rest, tmp_path / "t")


def test_a_shard_that_was_cut_is_found(table, tmp_path):
    ShardSet(tmp_path / "s", table, samples_per_shard=10).write(num_workers=0)
    path = tmp_path / "s" / "00001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    _, findings = check_layout("webdataset", tmp_path / "s")
    assert findings.counts["missing image"] > 0
    assert "index.parquet row" in findings.named[0].text


PROGRAM = """
import sys
from geoloc.data.layouts import open_layout
from geoloc.data.shards import ShardSet
ShardSet(sys.argv[2], open_layout("photos", sys.argv[1]), samples_per_shard=1).write(
    num_workers=0, on_done=lambda shard: print(shard.name, flush=True))
"""


def test_killed_at_any_moment_it_goes_on(table, tmp_path):
    ShardSet(tmp_path / "whole", table, samples_per_shard=1).write(num_workers=0)
    rng = np.random.default_rng(0)
    for lines in (1, 7, 20):
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, table.root, tmp_path / "killed"], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert child.stdout is not None
        for _ in range(lines):
            child.stdout.readline()
        time.sleep(rng.uniform(0, 0.002))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    ShardSet(tmp_path / "killed", table, samples_per_shard=1).write(num_workers=0)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
