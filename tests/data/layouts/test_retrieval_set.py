"""GSV-Cities' evaluation triples: rows as they are given, and no file of them can run code."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_image

from geoloc.data.layouts.retrieval_set import read_retrieval_set
from geoloc.errors import BadTableError, NotFoundError

DATABASE = ["ref/0.jpg", "ref/1.jpg", "ref/2.jpg", "ref/3.jpg"]
QUERIES = ["query/0.jpg", "query/1.jpg", "query/2.jpg"]


def ragged(*lists: list[int]) -> np.ndarray:
    """As theirs: an array of arrays, which NumPy stores as a pickle."""
    array = np.empty(len(lists), object)
    array[:] = [np.array(rows, np.int64) for rows in lists]
    return array


def write(folder: Path, name: str, **arrays: np.ndarray | list) -> Path:
    folder.mkdir(exist_ok=True)
    for part, array in ({"dbImages": DATABASE, "qImages": QUERIES} | arrays).items():
        np.save(folder / f"{name}_{part}.npy", np.asarray(array), allow_pickle=True)
    for number, file in enumerate(DATABASE + QUERIES):
        (folder / file).parent.mkdir(exist_ok=True)
        Image.fromarray(tiny_image(number)).save(folder / file)
    return folder


def test_lists_of_different_lengths(tmp_path):
    found = read_retrieval_set(write(tmp_path, "pitts30k_val", gt=ragged([3, 1], [], [0])), "pitts30k_val")
    assert [rows.tolist() for rows in found.positives] == [[1, 3], [], [0]]
    assert found.database[3].read() == (tmp_path / "ref/3.jpg").read_bytes()
    assert found.queries[2].read() == (tmp_path / "query/2.jpg").read_bytes()


def test_one_positive_each(tmp_path):
    found = read_retrieval_set(write(tmp_path, "SPED", gt=[[2], [0], [1]]), "SPED")
    assert [rows.tolist() for rows in found.positives] == [[2], [0], [1]]


def test_msls_takes_the_queries_of_its_list_alone(tmp_path):
    folder = write(tmp_path / "npy", "msls_val", qIdx=[2, 0], pIdx=ragged([1], [2, 3]))
    photos = write(tmp_path / "photos", "unused")
    found = read_retrieval_set(folder, "msls_val", images=photos)
    assert [Path(place.path).name for place in found.queries] == ["2.jpg", "0.jpg"]
    assert Path(found.queries[0].path).is_relative_to(photos)
    assert [rows.tolist() for rows in found.positives] == [[1], [2, 3]]


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"gt": ragged([0], [1])}, r"x_gt\.npy has positives of 2 queries, and there are 3: use the files of one"),
        ({"gt": ragged([0], [4], [1])}, r"x_gt\.npy has row 4 of dbImages, which has 4"),
        ({"gt": ragged([0], [-1], [1])}, r"x_gt\.npy has row -1 of dbImages"),
        ({"gt": [0.5, 1.0, 2.0]}, r"x_gt\.npy holds .*0\.5.*, where rows of dbImages are expected"),
        ({"gt": [[0]] * 3, "qIdx": [3]}, r"x_qIdx\.npy has row 3 of qImages, which has 3"),
        ({"gt": [[0]] * 3, "dbImages": [1, 2]}, r"x_dbImages\.npy has shape \(2,\) and type int64"),
        ({"gt": [[0]] * 3, "dbImages": ["../a.jpg"]}, r"x_dbImages\.npy names '\.\./a\.jpg', which leads out"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path, arrays, complaint):
    with pytest.raises(BadTableError, match=complaint):
        read_retrieval_set(write(tmp_path, "x", **arrays), "x")


def test_what_is_not_there(tmp_path):
    write(tmp_path, "SPED", gt=[[0]] * 3)
    with pytest.raises(NotFoundError, match=r"no .*sped_dbImages\.npy; the folder has the sets SPED"):
        read_retrieval_set(tmp_path, "sped")
    os.remove(tmp_path / "query/1.jpg")
    with pytest.raises(
        NotFoundError, match=r"1 of 7 photos of SPED are not in .*, the first is query/1\.jpg: name"
    ):
        read_retrieval_set(tmp_path, "SPED")
    os.remove(tmp_path / "SPED_gt.npy")
    with pytest.raises(NotFoundError, match=r"there is no .*SPED_gt\.npy or .*SPED_pIdx\.npy"):
        read_retrieval_set(tmp_path, "SPED")


class Evil:
    """Its pickle makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_file_can_run_code(tmp_path):
    trap = tmp_path / "trap"
    array = np.empty(3, object)
    array[:] = [Evil(trap)] * 3
    folder = write(tmp_path, "x", gt=array)
    with pytest.raises(
        BadTableError, match=r"x_gt\.npy is no \.npy of names or numbers: it contains posix\.mkdir"
    ):
        read_retrieval_set(folder, "x")
    assert not trap.exists()
    for data in (
        b"",
        b"\x93NUMPY",
        (folder / "x_gt.npy").read_bytes()[:-20],
        b"\x93NUMPY\x09\x00" + b" " * 200,
    ):
        (folder / "x_gt.npy").write_bytes(data)
        with pytest.raises(BadTableError, match=r"x_gt\.npy is no \.npy"):
            read_retrieval_set(folder, "x")
