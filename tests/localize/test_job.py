import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from job_under_test import KnownModel, make_images, open_job, run_job
from PIL import Image

from geoloc.errors import BadImageError, ConfigError, NotFoundError, OutputMismatchError
from geoloc.localize.job import IMAGES_PER_SHARD, LocalizeJob, images_per_shard, job_folder
from geoloc.localize.rows import LocalizeWork, read_shard
from geoloc.localize.session import Session, SessionOptions
from geoloc.localize.table import read_rows
from geoloc.photos.sources import plan_shards


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def photos(tmp_path):
    make_images(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def output(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "predictions.csv"


def run_until(num_batches, photos, output, **modes):
    """A job that is stopped after some batches; its folder stays."""
    done = 3 * num_batches

    def stop_after(_):
        nonlocal num_batches
        num_batches -= 1
        if num_batches == 0:
            raise Killed

    with open_job(photos, output, **modes) as job:
        with pytest.raises(Killed):
            job.run(on_done=stop_after)
        assert job.num_done == done
        return job


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(os.listdir(folder))


def test_rows_are_in_the_order_of_the_images_and_an_error_stops_nothing(photos, output):
    model = run_job(photos, output)
    rows = list(read_rows(output))
    assert [row["id"] for row in rows] == [f"{n:02}.jpg" for n in range(11)]
    assert [row["error"] for row in rows] == [None] * 4 + ["no number in it"] + [None] * 6
    # Batches are slices of three images; the broken one leaves a gap and moves nobody.
    assert model.batches == [[0, 1, 2], [3, 5], [6, 7, 8], [9, 10]]
    assert [row["longitude"] for row in rows] == [-n if n != 4 else None for n in range(11)]
    assert rows[3]["latitude"] == 3 + 0.008
    assert names(output.parent) == [".predictions.csv.receipt", "predictions.csv"]


def test_the_options_reach_the_model_and_the_rows(photos, output):
    with open_job(photos, output, KnownModel(top_k=3, abstain_above_km=650), batch_size=4) as job:
        job.run()
        rows = list(job.rows())
    assert [len(row["candidates"]) for row in rows] == [3] * 4 + [0] + [3] * 6
    assert [row["abstained"] for row in rows] == [False] * 4 + [None] + [False] * 2 + [True] * 4


def test_a_batch_of_broken_images_only(tmp_path, output):
    (tmp_path / "photos").mkdir()
    for name in "abcd":
        (tmp_path / "photos" / f"{name}.jpg").write_text("no number")
    model = run_job(tmp_path / "photos", output)
    assert model.batches == []
    assert [row["error"] for row in read_rows(output)] == ["no number in it"] * 4


def test_the_progress_counts_every_image_once(photos, output):
    reported = []
    with open_job(photos, output) as job:
        job.run(reported.append)
        assert job.num_done == 11
    assert reported == [3, 3, 3, 2]


@pytest.mark.parametrize("suffix", ["csv", "geojson", "parquet"])
@pytest.mark.parametrize("num_batches", [1, 2, 3])
def test_a_continued_job_computes_the_rest_and_gives_the_same_file(photos, output, suffix, num_batches):
    whole, output = output.with_name(f"whole.{suffix}"), output.with_suffix(f".{suffix}")
    all_batches = run_job(photos, whole).batches
    run_until(num_batches, photos, output)
    assert not output.exists()
    assert run_job(photos, output, resume=True).batches == all_batches[num_batches:]
    assert output.read_bytes() == whole.read_bytes()
    assert not job_folder(output).exists()


def test_a_finished_job_is_complete_and_stays_as_it_is(photos, output):
    run_job(photos, output)
    before = output.read_bytes(), output.stat().st_mtime_ns
    model = KnownModel()
    with open_job(photos, output, model, resume=True) as job:
        assert job.is_complete
        assert job.num_done == 11
        job.run()
        job.finish()
        assert list(job.rows()) == list(read_rows(output))
    assert model.batches == []
    assert (output.read_bytes(), output.stat().st_mtime_ns) == before


def test_resume_begins_a_job_that_nobody_has_begun(photos, output):
    assert len(run_job(photos, output, resume=True).batches) == 4


def test_the_rows_can_be_read_before_and_after_the_end(photos, output):
    with open_job(photos, output) as job:
        job.run()
        before = list(job.rows())
        job.finish()
        assert job.is_complete
        assert len(before) == 11
        # The table has no column for the pictures of the posteriors.
        assert [row.pop("posterior", None) is None for row in before] == [n == 4 for n in range(11)]
        assert list(job.rows()) == before


def test_a_shard_keeps_the_pictures_of_the_posteriors(photos, output):
    run_until(2, photos, output)
    with open_job(photos, output, resume=True) as job:
        job.run()
        rows = list(job.rows())
    assert [row.get("posterior") for row in rows] == [
        None if n == 4 else [[row["latitude"], row["longitude"], 0.9, 10.0 * n]] for n, row in enumerate(rows)
    ]


def test_without_an_output_the_rows_live_as_long_as_the_job(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with open_job(photos, None) as job:
        job.run()
        job.finish()
        assert len(list(job.rows())) == 11
    assert names(tmp_path) == ["photos"]


# --- What is refused --------------------------------------------------------------------------------------


def test_an_existing_output_is_refused_and_named(photos, output):
    output.write_text("mine")
    with pytest.raises(OutputMismatchError, match=r"predictions.csv exists already: .*--overwrite.*--resume"):
        run_job(photos, output)
    with pytest.raises(
        OutputMismatchError, match=r"predictions.csv exists, and no receipt .* says which job made"
    ):
        run_job(photos, output, resume=True)
    assert output.read_text() == "mine"
    run_job(photos, output, overwrite=True)
    assert len(list(read_rows(output))) == 11


def test_an_unfinished_job_is_refused_and_kept(photos, output):
    run_until(2, photos, output)
    with pytest.raises(
        OutputMismatchError, match=r"an earlier run of .*csv is not finished: .*--resume, or .*--over"
    ):
        run_job(photos, output)
    assert len(run_job(photos, output, resume=True).batches) == 2


def test_overwriting_begins_anew_and_keeps_the_old_output_until_the_end(photos, output):
    run_job(photos, output)
    before = output.read_bytes()
    run_until(2, photos, output, overwrite=True)
    assert output.read_bytes() == before
    assert len(run_job(photos, output, overwrite=True).batches) == 4
    assert output.read_bytes() == before


def test_a_killed_overwriting_is_continued_over_the_old_output(photos, output):
    run_job(photos, output, batch_size=4)
    run_until(2, photos, output, overwrite=True)
    assert len(run_job(photos, output, resume=True).batches) == 2
    run_job(photos, output, resume=True)  # the receipt is that of the new job


def another_model():
    model = KnownModel()
    model.model = "decaf"
    return model


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda photos: {"batch_size": 4}, "batch_size is 3 there and 4 here"),
        (lambda photos: {"model": another_model()}, "model is c0ffee there and decaf here"),
        (
            lambda photos: (photos / "zz.jpg").write_text("11") and {},
            r"image_names is \w{12}… there and \w{12}… here; .*num_images is 11 there and 12 here",
        ),
    ],
)
@pytest.mark.parametrize("is_finished", [False, True])
def test_another_job_cannot_continue_this_one(photos, output, change, text, is_finished):
    if is_finished:
        run_job(photos, output)
    else:
        run_until(2, photos, output)
    files = contents(output.parent)
    with pytest.raises(OutputMismatchError, match=rf"{text}; .*--overwrite"):
        run_job(photos, output, resume=True, **change(photos))
    assert contents(output.parent) == files


def test_another_version_of_geoloc_cannot_continue(photos, output, monkeypatch):
    run_until(2, photos, output)
    monkeypatch.setattr("geoloc.localize.rows.__version__", "99.0")
    with pytest.raises(OutputMismatchError, match=r"geoloc is .* there and 99\.0 here"):
        run_job(photos, output, resume=True)


@pytest.mark.parametrize("is_finished", [False, True])
def test_an_image_that_changed_after_its_turn_is_noticed(photos, output, is_finished):
    if is_finished:
        run_job(photos, output)
    else:
        run_until(2, photos, output)
    (photos / "01.jpg").write_text("77")
    text = "image_sizes_and_times is" if is_finished else r"photos/01\.jpg has changed since it was localised"
    with pytest.raises(OutputMismatchError, match=rf"{text}.*--overwrite"):
        run_job(photos, output, resume=True)


def test_an_image_may_change_before_its_turn(photos, output):
    run_until(2, photos, output)
    (photos / "06.jpg").write_text("77")
    assert run_job(photos, output, resume=True).batches[0] == [77, 7, 8]


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("out.txt", ConfigError, r"known are \.csv, \.geojson, \.parquet"),
        ("nowhere/out.csv", NotFoundError, r"there is no folder .*nowhere for out\.csv; create it first"),
        ("folder.csv", OutputMismatchError, r"folder\.csv is a folder: name a file in it"),
    ],
)
def test_an_impossible_output(photos, tmp_path, name, error, text):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(error, match=text):
        run_job(photos, tmp_path / name)


def test_resume_and_overwrite_exclude_each_other(photos, output):
    with pytest.raises(ConfigError, match=r"--resume continues and --overwrite starts again: choose one"):
        run_job(photos, output, resume=True, overwrite=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"top_k": 0}, r"top_k is 0; expected 1 to 1000"),
        ({"abstain_above_km": 0.0}, r"abstain_above_km is 0.0; expected a positive number"),
        ({"max_precision_km": 0.0}, r"max_precision_km is 0.0; expected 0.001 to 20000"),
        ({"abstain_above_km": float("nan")}, r"abstain_above_km is nan"),
        ({"utility": "best"}, r"utility is 'best'; expected geoscore, median or within"),
    ],
)
def test_impossible_options(options, text):
    with pytest.raises(ConfigError, match=text):
        SessionOptions(**options)


def test_impossible_work():
    with pytest.raises(ConfigError, match=r"batch_size is 0; expected 1 or more"):
        LocalizeWork("earthview", batch_size=0)
    with pytest.raises(ConfigError, match=r"max_precision_km and .*EXIF.*choose one"):
        LocalizeWork("earthview", SessionOptions(max_precision_km=25.0), truth_from_exif=True)


# --- What goes wrong --------------------------------------------------------------------------------------


def test_a_job_that_fails_at_once_leaves_nothing_behind(photos, output):
    class Refusing(KnownModel):
        def localize(self, images):
            raise ConfigError("no calibration")

    with pytest.raises(ConfigError, match="no calibration"):
        run_job(photos, output, Refusing())
    assert names(output.parent) == []


def test_a_model_that_loses_an_image_is_noticed(photos, output):
    class Losing:
        name, preprocess, identity = "losing", None, "c0ffee"

        def check_answers(self, reference):
            pass

        def reference_identity(self, reference):
            return "none"

        def localize_batch(self, images, **options):
            return KnownModel().localize(images)[1:]

    session = Session(Losing(), SessionOptions())
    inputs = [KnownModel().load(b"1"), KnownModel().load(b"2"), KnownModel().load(b"3")]
    with pytest.raises(RuntimeError, match=r"the model gave 2 predictions for 3 images"):
        session.localize(inputs)


def test_a_job_cannot_be_finished_before_it_ran(photos, output):
    job = open_job(photos, output)
    with job, pytest.raises(RuntimeError, match=r"0 of 11 images are done, .*: call run first"):
        job.finish()
    assert not output.exists()


def test_two_jobs_do_not_write_one_output(photos, output):
    first = open_job(photos, output)
    with first, pytest.raises(OutputMismatchError, match="another process is at work on the job"):
        run_job(photos, output, resume=True)


def test_the_next_batch_is_decoded_while_the_network_works_and_no_further(photos, output):
    class Watching(KnownModel):
        def __init__(self):
            super().__init__()
            self.loaded, self.seen = set(), []
            self.next_is_loaded = threading.Condition()

        def load(self, data):
            with self.next_is_loaded:
                self.loaded.add(4 if data == b"broken" else int(data))
                self.next_is_loaded.notify_all()
            return super().load(data)

        def localize(self, images):
            last = min(3 * len(self.batches) + 5, 10)
            with self.next_is_loaded:
                # Had nobody begun with the next batch, this would wait in vain.
                assert self.next_is_loaded.wait_for(lambda: last in self.loaded, timeout=60)
                self.seen.append(max(self.loaded))
            return super().localize(images)

    model = run_job(photos, output, Watching())
    assert model.seen == [5, 8, 10, 10]


def test_an_unexpected_error_of_a_decoder_is_not_swallowed(photos, output):
    class Buggy(KnownModel):
        def load(self, data):
            if data == b"8":
                raise ZeroDivisionError("a bug")
            return super().load(data)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_job(photos, output, Buggy())
    assert len(run_job(photos, output, resume=True).batches) == 2  # two batches were saved before


# --- Truth ------------------------------------------------------------------------------------------------


def photo_with_gps(path, latitude_deg, longitude_deg):
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (latitude_deg, 0.0, 0.0), 3: "E", 4: (longitude_deg, 0.0, 0.0)})
    Image.new("RGB", (8, 8)).save(path, exif=exif)


def test_the_truth_is_beside_the_prediction_and_the_model_never_sees_it(tmp_path, output):
    class Blind(KnownModel):
        def load(self, data):
            if data == (tmp_path / "photos" / "broken.jpg").read_bytes():
                raise BadImageError("no picture")
            return super().load(b"1")

    (tmp_path / "photos").mkdir()
    photo_with_gps(tmp_path / "photos" / "a.jpg", 48.0, 2.0)
    photo_with_gps(tmp_path / "photos" / "broken.jpg", 10.0, 20.0)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "b.jpg")
    tables = []
    for truth in (True, False):
        with open_job(tmp_path / "photos", None, Blind(), truth_from_exif=truth) as job:
            job.run()
            tables.append(list(job.rows()))
    with_truth, without = tables
    assert [row["truth_latitude"] for row in with_truth] == [48.0, None, 10.0]
    assert [row["truth_longitude"] for row in with_truth] == [2.0, None, 20.0]
    assert [row["distance_km"] is not None for row in with_truth] == [True, False, False]
    assert [
        {name: row[name] for name in plain} for row, plain in zip(with_truth, without, strict=True)
    ] == without


# --- Killed -----------------------------------------------------------------------------------------------


def kill_at_lines(photos, output, first, step):
    script = Path(__file__).with_name("job_under_test.py")
    command = [sys.executable, script, photos, output, str(first), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(re.fullmatch(r"killed (\d+) times\n", done.stdout)[1])


@pytest.mark.parametrize("suffix", ["csv", "geojson", "parquet"])
def test_killed_at_some_lines_of_our_code_the_file_is_the_same(photos, output, suffix):
    assert kill_at_lines(photos, output.with_suffix(f".{suffix}"), 11, 113) >= 10


@pytest.mark.slow
def test_killed_at_every_line_of_our_code_the_file_is_the_same(photos, output):
    assert kill_at_lines(photos, output, 1, 1) >= 500


def test_the_folder_of_a_job_holds_one_file_a_shard(photos, output):
    run_until(2, photos, output)
    shards = sorted(job_folder(output).glob("*.jsonl"))
    assert [read_shard(path).num_rows for path in shards] == [3, 3]


def test_shards_are_whole_batches():
    assert images_per_shard(16) == IMAGES_PER_SHARD == 64
    assert images_per_shard(3) == 63
    assert images_per_shard(100) == 100


def test_shards_of_several_batches_give_the_same_file(photos, output):
    """Batches do not depend on the shards: a first batch is decoded while the shard before it ends."""
    run_job(photos, output)
    expected = output.read_bytes()
    model = KnownModel()
    work = LocalizeWork(model, batch_size=3, num_threads=2)
    with LocalizeJob(work, plan_shards([str(photos)], 6), output, overwrite=True) as job:
        job.run()
        job.finish()
    assert output.read_bytes() == expected
    assert model.batches == [[0, 1, 2], [3, 5], [6, 7, 8], [9, 10]]
