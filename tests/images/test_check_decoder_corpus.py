"""The corpus check itself: it must notice what it is there to notice."""

import os
import random
import signal
import time
import warnings

import numpy as np
import pytest
from image_samples import encode, photo_like

from geoloc.images import decode_image

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the check forks"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(photo_like(20, 20), "PNG"))
    (tmp_path / "b.txt").write_bytes(b"no image")
    (tmp_path / "c.jpg").write_bytes(encode(photo_like(20, 20), "JPEG"))
    return tmp_path


def test_a_good_decoder_passes(folder, corpus_check, capsys):
    assert corpus_check.main([str(folder), "--mutations", "3"]) == 0
    printed = capsys.readouterr().out
    assert "     12 cases" in printed
    assert "not a JPEG" in printed
    assert "failures: 0" in printed


def crash(data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(data: bytes) -> np.ndarray:
    time.sleep(60)
    return np.zeros((1, 1, 3))


def raise_another(data: bytes) -> np.ndarray:
    raise KeyError(3)


def warn(data: bytes) -> np.ndarray:
    warnings.warn("look here", stacklevel=1)
    return np.zeros((1, 1, 3))


@pytest.mark.parametrize(
    ("misbehave", "expected"),
    [
        (crash, "crashed with signal 9"),
        (hang, "hung for 1 s"),
        (raise_another, "raised KeyError(3)"),
        (warn, "leaked the warning 'look here'"),
        (lambda data: None, "the result is not (h, w, 3)"),
    ],
)
def test_a_bad_decoder_is_caught_and_the_rest_goes_on(folder, corpus_check, misbehave, expected):
    def decode(data: bytes) -> object:
        return misbehave(data) if data.startswith(b"\x89PNG") else decode_image(data)

    report = corpus_check.check_corpus(sorted(folder.iterdir()), decode=decode, seconds_per_case=1)
    assert report.failures == [f"{folder / 'a.png'}: {expected}"]
    assert (report.num_cases, report.num_images, report.refusals.total()) == (3, 1, 1)


def test_mutations_are_seeded_and_of_all_kinds(corpus_check):
    data, other = bytes(range(256)) * 8, bytes(2000)
    first = [corpus_check.mutate(data, other, random.Random(seed)) for seed in range(50)]
    assert first == [corpus_check.mutate(data, other, random.Random(seed)) for seed in range(50)]
    assert any(data.startswith(mutated) and mutated != data for mutated in first)
    assert any(len(mutated) == len(data) and mutated != data for mutated in first)
    assert any(mutated.endswith(bytes(50)) for mutated in first)


def test_memory_counts_from_the_start(folder, corpus_check, monkeypatch):
    """What the parent has taken is not the decoder's: whole test suites take a gigabyte."""
    monkeypatch.setattr(corpus_check, "PEAK_RSS_LIMIT_MIB", 60)
    ballast = np.ones(100 * 2**20, np.uint8)
    assert corpus_check.main([str(folder)]) == 0
    assert ballast[0] == 1
    report = corpus_check.check_corpus(
        sorted(folder.iterdir()), decode=lambda data: np.ones((40 * 2**20, 1, 3), np.uint8)
    )
    assert 100 < report.peak_rss_mib < 200
