"""A job with a small model of which everything is known: what the tests run, and what a killed child runs.

As a program, `job_under_test.py FOLDER OUTPUT FIRST STEP` forks a child for each of the lines FIRST, FIRST +
STEP, … of our own code that a job executes, and kills it there with SIGKILL; then another child continues, is
killed in its turn, and so on until the job is finished. It prints `killed K times` when every finished output
was the same, byte for byte.
"""

import os
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from geoloc.errors import BadImageError
from geoloc.localize.job import LocalizeJob
from geoloc.localize.rows import LocalizeWork
from geoloc.localize.session import SessionOptions
from geoloc.photos.sources import plan_shards
from geoloc.posterior.prediction import Atom, Candidate, Prediction

NUM_IMAGES, BATCH_SIZE = 11, 3
TRACED = tuple(
    f"/geoloc/{name}"
    for name in (
        "jobs/shards.py",
        "jobs/receipt.py",
        "localize/job.py",
        "localize/rows.py",
        "files/atomic.py",
    )
)


class KnownModel:
    """A session whose "images" are text files with a number; anything else is broken.

    A prediction depends on all that is in its batch, as a network's last digits do: a continued job whose
    batches were cut differently would show.
    """

    name = "known"

    def __init__(self, **options):
        self.options = SessionOptions(**{"top_k": 2, **options})
        self.model = "c0ffee"
        self.batches = []

    @property
    def identity(self):
        return {"model": self.model, **asdict(self.options)}

    def load(self, data):
        try:
            return torch.full((3, 2, 2), float(data))
        except ValueError:
            raise BadImageError("no number in it") from None

    def localize(self, images):
        top_k, abstain_above_km = self.options.top_k, self.options.abstain_above_km
        numbers = [float(image[0, 0, 0]) for image in images]
        self.batches.append(numbers)
        shift = sum(numbers) / 1000
        return [
            Prediction(
                lat=number + shift,
                lon=-number,
                cell_path="03",
                probability=1 / (number + 1),
                candidates=(Candidate(number, -number, 0.5, "cell", None, "03"),) * top_k,
                radius_km={50: 10.0 * number, 90: 100.0 * number},
                abstained=abstain_above_km is not None and 100.0 * number > abstain_above_km,
                posterior=(Atom(number + shift, -number, 0.9, 10.0 * number),),
            )
            for number in numbers
        ]


def make_images(folder, num_images=NUM_IMAGES):
    """Files 00.jpg, 01.jpg, …; the fifth is broken."""
    folder.mkdir()
    for number in range(num_images):
        text = "broken" if number == 4 else str(number)
        (folder / f"{number:02}.jpg").write_text(text)


def open_job(folder, output, model=None, *, batch_size=BATCH_SIZE, truth_from_exif=False, **modes):
    """A job whose shards are single batches."""
    work = LocalizeWork(
        model or KnownModel(), batch_size=batch_size, truth_from_exif=truth_from_exif, num_threads=1
    )
    return LocalizeJob(work, plan_shards([str(folder)], batch_size), output, **modes)


def run_job(folder, output, model=None, **modes):
    """The whole job; returns the model."""
    model = model or KnownModel()
    with open_job(folder, output, model, **modes) as job:
        job.run()
        job.finish()
    return model


def _run_in_child(folder, output, kill_at):
    """Exit status of a child that is killed before line `kill_at` of our code; 0 if it got to the end."""
    pid = os.fork()
    if pid == 0:
        num_lines = 0

        def trace(frame, event, argument):
            nonlocal num_lines
            if not frame.f_code.co_filename.endswith(TRACED):
                return None
            if event == "line":
                num_lines += 1
                if num_lines == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        run_job(folder, output, resume=True)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def main(folder, output, first, step):
    """See the module."""
    run_job(folder, output)  # not in a child, so that none of them has to load Arrow anew
    expected, num_killed, kill_at = output.read_bytes(), 0, first
    while True:
        for path in output.parent.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if _run_in_child(folder, output, kill_at) == 0:
            break  # the job has fewer lines than that
        num_killed += 1
        after = 101
        while _run_in_child(folder, output, after) != 0:
            num_killed += 1
            after += 101  # so that it ends, whatever the journal holds
        assert output.read_bytes() == expected, f"killed at line {kill_at}"
        assert sorted(os.listdir(output.parent)) == sorted([output.name, f".{output.name}.receipt"])
        kill_at += step
    print(f"killed {num_killed} times")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
