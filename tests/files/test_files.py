"""Nothing here times or sleeps: kills happen at counted calls, in children that a driver process forks."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from geoloc.errors import IntegrityError, NotFoundError, OutputMismatchError
from geoloc.files import (
    atomic_write,
    folders,
    manifests,
    recover_folder,
    replace_folder,
    safe_join,
    sha256_of,
    verify_manifest,
    write_manifest,
)

ROOT = Path(__file__).parents[1]


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def save(folder: Path, text: str) -> None:
    with replace_folder(folder) as temporary:
        (temporary / "weights").mkdir()
        (temporary / "weights" / "model.bin").write_text(text)
        (temporary / "config.json").write_text(text.upper())
        write_manifest(temporary, kind="test")


# --- sha256 ---


def test_sha256_is_that_of_the_coreutils(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(range(256)) * 10_000)  # more than two blocks
    expected = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[
        0
    ]
    assert sha256_of(path) == expected


# --- atomic_write ---


def test_atomic_write_text_and_bytes(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt", "w") as text:
        text.write("zwölf\n")
    with atomic_write(tmp_path / "b.bin", "wb") as binary:
        binary.write(b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == "zwölf\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert names_in(tmp_path) == ["a.txt", "b.bin"]


def test_atomic_write_keeps_the_old_file_on_any_exception(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), atomic_write(path, "w") as file:
            file.write("new")
            file.flush()
            raise error
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_atomic_write_takes_over_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.tmp").write_text("a long half-written file")
    with atomic_write(tmp_path / "a.txt", "w") as file:
        file.write("new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names_in(tmp_path) == ["a.txt"]


def test_atomic_write_goes_through_a_link_and_follows_the_umask(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with atomic_write(tmp_path / "link.txt", "w") as file:
        file.write("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    (tmp_path / "plain.txt").touch()
    assert (tmp_path / "real.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


def test_two_writers_of_one_path_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    first_is_in, first_may_end = threading.Event(), threading.Event()

    def write_first() -> None:
        with atomic_write(path, "w") as file:
            file.write("first")
            first_is_in.set()
            first_may_end.wait()

    def write_second() -> None:
        with atomic_write(path, "w") as file:
            file.write("2nd")

    first, second = threading.Thread(target=write_first), threading.Thread(target=write_second)
    first.start()
    first_is_in.wait()
    second.start()  # it waits for the lock, whenever it gets there
    first_may_end.set()
    first.join()
    second.join()
    assert path.read_text() == "2nd"
    assert names_in(tmp_path) == ["a.txt"]


# --- replace_folder ---


def test_replace_folder_makes_and_replaces(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, "old")
    save(folder, "new")
    assert (folder / "weights" / "model.bin").read_text() == "new"
    assert names_in(tmp_path) == [
        "model",
        "model/config.json",
        "model/manifest.json",
        "model/weights",
        "model/weights/model.bin",
    ]
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_replace_folder_makes_the_folders_above(tmp_path: Path) -> None:
    save(tmp_path / "runs" / "today" / "model", "new")
    assert verify_manifest(tmp_path / "runs" / "today" / "model")["kind"] == "test"


@pytest.mark.parametrize("existed", [True, False])
def test_replace_folder_leaves_everything_on_an_exception(tmp_path: Path, existed: bool) -> None:
    folder = tmp_path / "model"
    if existed:
        save(folder, "old")
    before = names_in(tmp_path)
    with pytest.raises(ZeroDivisionError), replace_folder(folder) as temporary:
        (temporary / "weights.bin").write_text("new")
        raise ZeroDivisionError
    assert names_in(tmp_path) == before


def test_replace_folder_deletes_nothing_that_it_did_not_write(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(
        OutputMismatchError, match=r"'thesis.tex', which no manifest there lists .*choose another"
    ):
        save(home, "new")
    folder = tmp_path / "model"
    save(folder, "old")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputMismatchError, match=r"'notes\.txt'"):
        save(folder, "new")
    assert (home / "thesis.tex").read_text() == "years of work"
    assert (folder / "notes.txt").read_text() == "mine"
    assert verify_manifest(folder)["kind"] == "test"


def test_replace_folder_sees_what_arrives_while_it_works(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, "old")
    with pytest.raises(OutputMismatchError, match=r"notes\.txt"), replace_folder(folder) as temporary:
        (folder / "notes.txt").write_text("mine")
        write_manifest(temporary)
    assert (folder / "notes.txt").read_text() == "mine"


def test_replace_folder_goes_on_with_what_was_filled_in(tmp_path: Path) -> None:
    folder = tmp_path / "refs"
    save(folder, "old")
    with pytest.raises(KeyError), replace_folder(folder, resume=True) as part:
        (part / "half").write_text("1")
        raise KeyError
    assert names_in(folder) == ["config.json", "manifest.json", "weights", "weights/model.bin"]
    with replace_folder(folder, resume=True) as part:
        assert names_in(part) == ["half"]
        (part / "rest").write_text("2")
        write_manifest(part)
    assert names_in(tmp_path) == ["refs", "refs/half", "refs/manifest.json", "refs/rest"]


def test_of_two_who_fill_one_folder_the_second_waits(tmp_path: Path) -> None:
    inside, order = threading.Event(), []

    def second() -> None:
        inside.wait()
        with replace_folder(tmp_path / "refs", resume=True) as part:
            order.append(names_in(part))
            (part / "b").write_text("")
            write_manifest(part)

    thread = threading.Thread(target=second)
    thread.start()
    with replace_folder(tmp_path / "refs", resume=True) as part:
        inside.set()
        (part / "a").write_text("")
        write_manifest(part)
        order.append("first")
    thread.join()
    assert order == ["first", []]  # what the first has finished is no work to go on with
    assert names_in(tmp_path) == ["refs", "refs/b", "refs/manifest.json"]


def test_replace_folder_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(OutputMismatchError, match="is a file, where a folder was to be saved"):
        save(tmp_path / "model", "new")


def test_abandoned_folders_go_with_the_next_save_and_living_ones_stay(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    abandoned = tmp_path / ".model.0badcafe.new"
    abandoned.mkdir()
    (abandoned / "half").write_text("written")
    with replace_folder(folder) as living:
        save(folder, "in between")
        assert living.is_dir()
        (living / "late").write_text("last one wins")
        write_manifest(living)
    assert names_in(tmp_path) == ["model", "model/late", "model/manifest.json"]


def test_everything_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut cannot be staged here, but the order that survives one can be observed."""
    folder = tmp_path / "model"
    save(folder, "old")
    order: list[str] = []
    fsync, exchange = os.fsync, folders._exchange

    def note_fsync(descriptor: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{descriptor}") if sys.platform == "linux" else "")
        fsync(descriptor)

    def note_exchange(a: Path, b: Path) -> bool:
        order.append("swap")
        return exchange(a, b)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(folders, "_exchange", note_exchange)
    with replace_folder(folder) as temporary:
        inside = str(temporary)
        (temporary / "weights").mkdir()
        (temporary / "weights" / "model.bin").write_text("new")
        write_manifest(temporary)
    swap = order.index("swap")
    expected = {"", "/weights", "/weights/model.bin", "/manifest.json"}
    if sys.platform == "linux":
        assert {inside + name for name in expected} <= set(order[:swap])
        assert str(tmp_path) in order[swap:]
    else:
        assert len(order[:swap]) >= len(expected)


# The driver forks one child for each k. The child dies (SIGKILL to itself) just before or just after the k-th
# call that changes the disk, and the driver looks at what is there. It ends when a child survives to the end.
DRIVER = """
import os, shutil, signal, sys
from pathlib import Path
from geoloc.errors import IntegrityError
from geoloc.files import atomic_write, folders, recover_folder, replace_folder, verify_manifest, write_manifest

what, swap, root = sys.argv[1], sys.argv[2], Path(sys.argv[3])
calls = 0


def step(fatal):
    global calls
    calls += 1
    if calls == fatal:
        os.kill(os.getpid(), signal.SIGKILL)


def arm(module, name, fatal):
    original = getattr(module, name)

    def wrapped(*args, **kwargs):
        step(fatal)
        result = original(*args, **kwargs)
        step(fatal)
        return result

    setattr(module, name, wrapped)


def save_folder(text, pause=lambda: None):
    with replace_folder(root / "model") as temporary:
        for name in ("a", "b", "c"):
            pause()
            (temporary / name).write_text(text * 100)
        pause()
        write_manifest(temporary, text=text)


def save_file(text, pause=lambda: None):
    with atomic_write(root / "file", "w") as file:
        for _ in range(3):
            pause()
            file.write(text * 100)
            file.flush()


def read_folder():
    manifest = verify_manifest(root / "model", strict=True)
    assert set(manifest["files"]) == {"a", "b", "c"}, manifest
    return manifest["text"]


def read_file():
    text = (root / "file").read_text()
    assert text == text[:3] * 300, text
    return text[:3]


save, read = {"folder": (save_folder, read_folder), "file": (save_file, read_file)}[what]
if swap == "two renames":
    folders._exchange = lambda a, b: False
save("old")
seen, k = {"old": 0, "new": 0}, 0
while True:
    k += 1
    child = os.fork()
    if child == 0:
        for module, name in [
            (os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"),
            (os, "open"), (os, "ftruncate"), (shutil, "rmtree"), (folders, "_exchange"),
        ]:
            arm(module, name, k)
        save("new", lambda: step(k))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
    else:
        assert os.WEXITSTATUS(status) == 0, status
    found = read()
    seen[found] += 1
    if not os.WIFSIGNALED(status):
        assert found == "new"
        break
    save("old")
    leftovers = {path.name for path in root.iterdir()} - {"model", "file"}
    assert not leftovers, (k, leftovers)
print(seen["old"], seen["new"])
"""


@pytest.mark.parametrize(
    ("what", "swap"), [("folder", "in one step"), ("folder", "two renames"), ("file", "in one step")]
)
def test_killed_at_any_call_leaves_the_old_or_the_new(tmp_path: Path, what: str, swap: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, what, swap, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    old, new = map(int, result.stdout.split())
    # The number of kill points is no promise, but so few would mean that the failpoints have come loose.
    assert old >= 10
    assert new >= 4


def test_recover_folder_puts_the_old_one_back_only_when_there_is_none(tmp_path: Path) -> None:
    folder, old = tmp_path / "model", tmp_path / ".model.old"
    recover_folder(folder)
    assert names_in(tmp_path) == []
    save(folder, "old")
    folder.rename(old)
    recover_folder(folder)
    assert verify_manifest(folder)["kind"] == "test"
    assert not old.exists()
    old.mkdir()
    recover_folder(folder)
    assert old.exists()


def test_a_reader_that_recovers_between_two_renames_costs_the_save_not_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    save(folder, "old")
    rename = os.rename

    def rename_and_let_a_reader_in(source: Path, destination: Path) -> None:
        rename(source, destination)
        if destination.name == ".model.old":
            rename(destination, source)

    monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    monkeypatch.setattr(os, "rename", rename_and_let_a_reader_in)
    with pytest.raises(OSError, match="not empty"):
        save(folder, "new")
    assert (folder / "config.json").read_text() == "OLD"


# --- manifests ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "a.bin").write_bytes(b"abc")
    (root / "sub" / "ü.txt").write_text("x")
    write_manifest(root, model="tiny", numbers={10: 0.1, 9: None})
    return root


def test_manifest_says_what_it_should(folder: Path) -> None:
    manifest = verify_manifest(folder, strict=True)
    assert manifest["schema_version"] == 1
    assert manifest["model"] == "tiny"
    assert manifest["numbers"] == {"10": 0.1, "9": None}
    assert manifest["files"] == {
        "a.bin": {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        "sub/ü.txt": {"bytes": 1, "sha256": sha256_of(folder / "sub" / "ü.txt")},
    }
    assert write_manifest(folder, model="tiny", numbers={9: None, 10: 0.1}) == manifest


def test_facts_cannot_take_the_manifests_own_names(folder: Path) -> None:
    with pytest.raises(ValueError, match="its own files: give the fact another name"):
        write_manifest(folder, files={})


def test_every_flipped_bit_of_the_manifest_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    good = path.read_bytes()
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            path.write_bytes(bad)
            with pytest.raises(IntegrityError, match=r"manifest\.json .*fetch or save the folder again"):
                verify_manifest(folder)
    path.write_bytes(good)
    verify_manifest(folder)


@pytest.mark.parametrize("name", ["a.bin", "sub/ü.txt"])
def test_every_flipped_bit_of_a_file_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    good = path.read_bytes()
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            path.write_bytes(bad)
            with pytest.raises(IntegrityError, match=f"{name} has sha256 .* promises .*fetch or save"):
                verify_manifest(folder)


def test_missing_shortened_and_unlisted_files(folder: Path) -> None:
    (folder / "extra.txt").write_text("")
    verify_manifest(folder)
    with pytest.raises(IntegrityError, match=r"extra\.txt is not listed in the manifest: remove it"):
        verify_manifest(folder, strict=True)
    (folder / "a.bin").write_bytes(b"ab")
    with pytest.raises(IntegrityError, match=r"a\.bin has 2 bytes, but its manifest promises 3"):
        verify_manifest(folder)
    (folder / "a.bin").unlink()
    with pytest.raises(IntegrityError, match=r"a\.bin is missing, but the manifest beside it lists it"):
        verify_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match=r"manifest\.json is missing, so nothing vouches"):
        verify_manifest(folder)
    with pytest.raises(NotFoundError, match=r"there is no folder .*nowhere: check the path"):
        verify_manifest(folder / "nowhere")


def rewrite(folder: Path, **changes: object) -> None:
    """Change a manifest and sign it anew, as somebody would who knows the format."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest.update(changes)
    manifests.save_manifest(folder, manifest)


GOOD_ENTRY = {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside", "sub/../a.bin", "./a.bin", "sub//ü.txt", "sub\\a", "", ".", "a\0b", "up/x"],
)
def test_names_that_lead_elsewhere_are_refused(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_text("")
    (folder.parent / "x").write_text("")
    (folder / "up").symlink_to(folder.parent)
    rewrite(folder, files={name: GOOD_ENTRY})
    with pytest.raises(IntegrityError, match="do not trust the source"):
        verify_manifest(folder)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        "a.bin",
        {"a.bin": None},
        {"a.bin": 3},
        {"a.bin": {"bytes": 3}},
        {"a.bin": {**GOOD_ENTRY, "bytes": "3"}},
        {"a.bin": {**GOOD_ENTRY, "bytes": True}},
        {"a.bin": {**GOOD_ENTRY, "sha256": 7}},
        {"a.bin": {**GOOD_ENTRY, "path": "/etc/passwd"}},
    ],
)
def test_a_malformed_table_of_files_is_refused(folder: Path, entries: object) -> None:
    rewrite(folder, files=entries)
    with pytest.raises(IntegrityError, match="does not agree with its own digest"):
        verify_manifest(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "names no schema version"),
        (b'{"schema_version": true}', "names no schema version"),
        (b'{"schema_version": 1, "digest": NaN}', "does not agree"),
        (b'{"schema_version": 1, "x": "\\ud800"}', "does not agree"),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder: Path, data: bytes, message: str) -> None:
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(IntegrityError, match=message):
        verify_manifest(folder)


def test_a_newer_manifest_asks_for_a_newer_geoloc(folder: Path) -> None:
    rewrite(folder, schema_version=2)
    with pytest.raises(IntegrityError, match=r"has schema version 2, .*reads up to 1: upgrade geoloc-vision"):
        verify_manifest(folder)


def test_an_enormous_manifest_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_MANIFEST_BYTES", 10)
    with pytest.raises(IntegrityError, match="has more than 10 bytes"):
        verify_manifest(folder)


def test_safe_join_allows_links_that_stay_inside(folder: Path) -> None:
    (folder / "inside").symlink_to(folder / "a.bin")
    assert safe_join(folder, "inside").read_bytes() == b"abc"
    assert safe_join(folder, "sub/new.txt") == folder / "sub" / "new.txt"


def test_what_a_killed_manifest_write_left_is_no_file_of_the_folder(folder: Path) -> None:
    (folder / ".manifest.json.tmp").write_text("half")
    verify_manifest(folder, strict=True)
    save(folder, "new")
    assert ".manifest.json.tmp" not in names_in(folder)
