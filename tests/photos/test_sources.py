"""Folders, tars and tables, local and at URLs: the same images come out, in a fixed order."""

import io
import os
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geoloc.errors import BadImageError, BadTableError, NotFoundError
from geoloc.photos.sources import plan_shards, read_images


def read_all(shards):
    """(id, bytes or error) of all images."""

    def read(image):
        try:
            return image.read()
        except BadImageError as error:
            return error

    return [(image.id, read(image)) for shard in shards for image in read_images(shard.payload)]


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_folder_is_cut_into_shards(tmp_path):
    for name in ("b.jpg", "a.jpg", "c.png", "note.txt"):
        (tmp_path / name).write_bytes(name.encode())
    shards = plan_shards([str(tmp_path)], 2)
    assert [shard.name for shard in shards] == ["00000.parquet", "00001.parquet"]
    assert read_all(shards) == [("a.jpg", b"a.jpg"), ("b.jpg", b"b.jpg"), ("c.png", b"c.png")]
    before = shards[1].payload
    os.utime(tmp_path / "c.png", ns=(1, 1))
    assert plan_shards([str(tmp_path)], 2)[1].payload != before  # a change is another job


def test_a_file_that_is_gone_is_an_error_of_its_row(tmp_path):
    (tmp_path / "a.jpg").touch()
    (shard,) = plan_shards([str(tmp_path)])
    (tmp_path / "a.jpg").unlink()
    ((image_id, error),) = read_all([shard])
    assert image_id == "a.jpg"
    assert isinstance(error, BadImageError)
    assert "file not found" in error.reason


def test_webdataset_tars(tmp_path):
    write_tar(
        tmp_path / "00.tar",
        [("x/1.jpg", b"one"), ("x/1.json", b"{}"), ("2.seg.png", b"two"), ("2.jpg", b"later")],
    )
    write_tar(tmp_path / "01.tar", [("3.txt", b"no image"), ("4.webp", b"four")])
    shards = plan_shards([f"{tmp_path}/{{00..01}}.tar"])
    assert len(shards) == 2
    assert read_all(shards) == [("x/1", b"one"), ("2", b"later"), ("4", b"four")]
    (tmp_path / "bad.tar").write_bytes((tmp_path / "00.tar").read_bytes()[:1000])
    with pytest.raises(BadTableError, match=r"bad.tar is not a whole tar"):
        read_all(plan_shards([str(tmp_path / "bad.tar")]))


def test_local_tars_are_cut_into_shards(tmp_path):
    members = [("x/1.jpg", b"one"), ("x/1.json", b"{}"), ("2.seg.png", b"two"), ("3.webp", b"three")]
    write_tar(tmp_path / "00.tar", members)
    cut = plan_shards([str(tmp_path / "00.tar")], 2, cut_tars=True)
    assert len(cut) == 2
    assert read_all(cut) == read_all(plan_shards([str(tmp_path / "00.tar")]))


def test_names_with_braces(tmp_path):
    (tmp_path / "a{1..2}.jpg").write_bytes(b"braces")
    (tmp_path / "b{.jpg").write_bytes(b"open")
    for name, data in (("a{1..2}.jpg", b"braces"), ("b{.jpg", b"open")):
        assert [found for _, found in read_all(plan_shards([str(tmp_path / name)]))] == [data]


def test_parquet_by_row_group(tmp_path):
    plain, struct = tmp_path / "plain.parquet", tmp_path / "struct.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "image": [b"a", b"b", None]}), plain, row_group_size=2)
    pq.write_table(pa.table({"id": ["x"], "image": [{"bytes": b"c", "path": "x.jpg"}]}), struct)
    shards = plan_shards([str(plain), str(struct)])
    assert len(shards) == 3
    *rest, missing, last = read_all(shards)
    assert rest == [("1", b"a"), ("2", b"b")]
    assert missing[1].reason == "has no bytes in the table"
    assert last == ("x", b"c")
    pq.write_table(pa.table({"name": ["x"]}), struct)
    with pytest.raises(BadTableError, match=r"has the columns name; expected id and image"):
        plan_shards([str(struct)])
    plain.write_bytes(b"nothing")
    with pytest.raises(BadTableError, match=r"is not a Parquet file"):
        plan_shards([str(plain)])


def test_urls(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/photos/b/2.jpg", b"two")
    memory.pipe("/photos/1.jpg", b"one")
    memory.pipe("/photos/x.txt", b"")
    write_tar(tmp_path / "s.tar", [("5.jpg", b"five")])
    memory.pipe("/s.tar", (tmp_path / "s.tar").read_bytes())
    pq.write_table(pa.table({"id": ["p"], "image": [b"six"]}), tmp_path / "t.parquet")
    memory.pipe("/t.parquet", (tmp_path / "t.parquet").read_bytes())
    shards = plan_shards(["memory://photos/", "memory://s.tar", "memory://t.parquet"])
    assert read_all(shards) == [("1.jpg", b"one"), ("b/2.jpg", b"two"), ("5", b"five"), ("p", b"six")]
    assert read_all(plan_shards(["memory://photos/*.jpg"])) == [("1.jpg", b"one")]
    with pytest.raises(NotFoundError, match="no image at memory://nothing"):
        plan_shards(["memory://nothing/"])
    with pytest.raises(NotFoundError, match=r"there is no memory://absent.tar"):
        plan_shards(["memory://absent.tar"])


def test_nothing():
    with pytest.raises(NotFoundError, match="no input was named"):
        plan_shards([])
