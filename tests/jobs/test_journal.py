import errno
import json
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoloc.errors import IntegrityError, OutputMismatchError
from geoloc.jobs.journal import Journal, describe_differences

IDENTITY = {"model": "3fa9", "batch_size": 16, "abstain_above_km": None}
RECORDS = [{"rows": [n, n / 7, f"é{n}\n\t\"'"], "n": n} for n in range(4)]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def write(path, records=RECORDS, identity=IDENTITY):
    with Journal.open(path, identity) as journal:
        for record in records:
            journal.append(record)


def read(path, identity=IDENTITY):
    with Journal.open(path, identity) as journal:
        records = list(journal.records())
        assert journal.num_records == len(records)
    return records


def test_records_come_back_in_their_order(tmp_path):
    write(tmp_path / "journal")
    assert read(tmp_path / "journal") == RECORDS


@given(st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=5))
def test_any_json_comes_back_as_it_was(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("any") / "journal"
    write(path, records)
    assert read(path) == records
    assert path.read_bytes().count(b"\n") == 1 + len(records)


def test_a_continued_journal_is_the_same_file(tmp_path):
    write(tmp_path / "whole")
    write(tmp_path / "continued", RECORDS[:2])
    write(tmp_path / "continued", RECORDS[2:])
    assert (tmp_path / "continued").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_file_cut_at_any_byte_continues_to_the_same_file(tmp_path):
    write(tmp_path / "whole", RECORDS[:2])
    whole = (tmp_path / "whole").read_bytes()
    line_ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for num_bytes in range(len(whole) + 1):
        path = tmp_path / "cut"
        path.write_bytes(whole[:num_bytes])
        with Journal.open(path, IDENTITY) as journal:
            # The first line is the identity; every other whole line is a record.
            assert journal.num_records == max(0, sum(end <= num_bytes for end in line_ends) - 1)
            for record in RECORDS[journal.num_records : 2]:
                journal.append(record)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"0123456789abcdef {}\n", b"\xff\n", b"\n"])
def test_what_a_power_cut_leaves_of_the_last_line_is_dropped(tmp_path, tail):
    write(tmp_path / "journal")
    before = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(before + tail)
    assert read(tmp_path / "journal") == RECORDS
    assert (tmp_path / "journal").read_bytes() == before


def test_no_changed_byte_gives_a_record_that_was_not_written(tmp_path):
    write(tmp_path / "whole", RECORDS[:3])
    whole = (tmp_path / "whole").read_bytes()
    num_refused = 0
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        (tmp_path / "changed").write_bytes(changed)
        try:
            found = read(tmp_path / "changed")
        except IntegrityError:
            num_refused += 1
        else:
            assert found == RECORDS[: len(found)]  # the last line was taken for a torn one
            assert len(found) < 3
    last_two_lines = len(whole.splitlines()[-1]) + 2  # a changed line feed makes one line of two
    assert num_refused == len(whole) - last_two_lines


def test_lines_in_another_order_are_refused(tmp_path):
    write(tmp_path / "journal")
    lines = (tmp_path / "journal").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal").write_bytes(b"".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(IntegrityError, match=r"journal is damaged in line 2: .* start the job anew"):
        Journal.open(tmp_path / "journal", IDENTITY)


def test_a_foreign_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes").write_text("milk\neggs\n")
    with pytest.raises(IntegrityError, match=r"notes is damaged in line 1"):
        Journal.open(tmp_path / "notes", IDENTITY)
    assert (tmp_path / "notes").read_text() == "milk\neggs\n"


def test_another_identity_is_refused_with_the_values_that_differ(tmp_path):
    write(tmp_path / "journal")
    with pytest.raises(
        OutputMismatchError,
        match=r"journal of another job: batch_size is 16 there and 8 here; images is absent there and 3 here"
        r"; repeat the old values to continue it, choose another output, or start anew with --overwrite",
    ):
        Journal.open(tmp_path / "journal", {**IDENTITY, "batch_size": 8, "images": 3})
    assert read(tmp_path / "journal") == RECORDS


def test_afresh_forgets_the_records_and_the_identity(tmp_path):
    write(tmp_path / "journal")
    with Journal.open(tmp_path / "journal", {"model": "other"}, afresh=True) as journal:
        assert journal.num_records == 0
    assert read(tmp_path / "journal", {"model": "other"}) == []


def test_one_process_at_a_time(tmp_path):
    with (
        Journal.open(tmp_path / "journal", IDENTITY),
        pytest.raises(
            OutputMismatchError, match=r"another process is at work on this job \(it holds .*journal"
        ),
    ):
        Journal.open(tmp_path / "journal", IDENTITY, afresh=True)
    write(tmp_path / "journal")  # the lock is gone with the one who held it


def test_the_lock_ends_with_a_killed_process(tmp_path):
    code = (
        "import os, signal, sys; from geoloc.jobs.journal import Journal\n"
        "journal = Journal.open(sys.argv[1], {'a': 1}); journal.append({'n': 1}); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "journal"], check=False)
    assert killed.returncode == -9
    assert read(tmp_path / "journal", {"a": 1}) == [{"n": 1}]


def test_a_journal_that_is_removed_while_another_waits_for_it_is_not_written_into(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    write(path)
    real_flock, num_calls = Journal.open.__globals__["fcntl"].flock, 0

    def flock(descriptor, operation):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            path.unlink()  # the other process finishes between our open and our lock
        real_flock(descriptor, operation)

    monkeypatch.setattr("geoloc.jobs.journal.fcntl.flock", flock)
    write(path, RECORDS[:1])
    monkeypatch.undo()
    assert read(path) == RECORDS[:1]


def test_a_full_disk_loses_no_record(tmp_path, monkeypatch):
    path, real_pwrite = tmp_path / "journal", os.pwrite

    def pwrite_half(descriptor, data, offset):
        real_pwrite(descriptor, bytes(data)[: len(data) // 2], offset)
        raise OSError(28, "No space left on device")

    with Journal.open(path, IDENTITY) as journal:
        journal.append(RECORDS[0])
        monkeypatch.setattr(os, "pwrite", pwrite_half)
        with pytest.raises(OSError, match="No space left"):
            journal.append(RECORDS[1])
        assert journal.num_records == 1
        assert list(journal.records()) == RECORDS[:1]
        monkeypatch.undo()
        journal.append(RECORDS[1])
    assert read(path) == RECORDS[:2]


def test_a_record_is_on_the_disk_before_append_returns(tmp_path, monkeypatch):
    calls = []
    real_pwrite, real_fsync = os.pwrite, os.fsync
    monkeypatch.setattr(os, "pwrite", lambda *a: [calls.append("write"), real_pwrite(*a)][1])
    monkeypatch.setattr(os, "fsync", lambda *a: [calls.append("fsync"), real_fsync(*a)][1])
    with Journal.open(tmp_path / "journal", IDENTITY) as journal:
        calls.clear()
        journal.append(RECORDS[0])
        assert calls == ["write", "fsync"]


def test_remove_deletes_the_file(tmp_path):
    with Journal.open(tmp_path / "journal", IDENTITY) as journal:
        journal.remove()
    assert os.listdir(tmp_path) == []


def test_values_that_are_no_json_are_refused(tmp_path):
    with Journal.open(tmp_path / "journal", IDENTITY) as journal:
        with pytest.raises(ValueError, match="not JSON compliant"):
            journal.append({"latitude": float("nan")})
        journal.append(RECORDS[0])
    assert read(tmp_path / "journal") == RECORDS[:1]


def test_long_values_are_cut_in_the_description_of_differences():
    there, here = {"model": "a" * 64, "same": 1}, {"model": "b" * 64, "same": 1}
    assert describe_differences(there, here) == f"model is {'a' * 12}… there and {'b' * 12}… here"
    assert json.loads("1") == 1  # numbers and lists are shown as JSON
    assert describe_differences({"x": [1, None]}, {"x": True}) == "x is [1, null] there and true here"


def test_a_file_system_whose_folders_cannot_be_synced(tmp_path, monkeypatch):
    """As some network file systems answer, where a checkpoint can be saved."""
    real_fsync = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "journal")
    assert read(tmp_path / "journal") == RECORDS
