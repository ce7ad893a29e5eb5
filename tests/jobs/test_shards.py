"""Shards on every engine: the same bytes, and nothing lost or doubled when workers or drivers are killed."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from shard_work import NUM_SHARDS, Digest, Faulty, contents, job, living

from geoloc.errors import ConfigError, IntegrityError, JobError, MissingDependencyError, OutputMismatchError
from geoloc.jobs.local_engine import MAX_DEATHS
from geoloc.jobs.shards import Shard, ShardJob

HAS_RAY = importlib.util.find_spec("ray") is not None
ON_RAY = pytest.param(
    "ray",
    2,
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(not HAS_RAY, reason="Ray is an extra"),
        pytest.mark.filterwarnings("ignore"),  # Ray's own, of sockets that it leaves open
    ],
)
ENGINES = [("local", 0), ("local", 2), ON_RAY]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected") / "job"
    reference = job(folder)
    reference.run(Digest(), num_workers=0)
    reference.finish()
    return contents(folder)


@pytest.mark.parametrize(("engine", "num_workers"), ENGINES)
def test_every_engine_writes_the_same_bytes(engine, num_workers, tmp_path, expected):
    done = []
    running = job(tmp_path / "job")
    running.run(
        Digest(), engine=engine, num_workers=num_workers, on_done=lambda shard: done.append(shard.name)
    )
    assert sorted(done) == [shard.name for shard in running.shards]
    assert not running.is_complete
    manifest = running.finish()
    assert running.is_complete
    assert len(manifest["files"]) == NUM_SHARDS + 1
    assert contents(tmp_path / "job") == expected
    running.run(Digest(), engine="local", num_workers=0, on_done=lambda shard: pytest.fail("done twice"))
    assert running.finish() == manifest


@pytest.mark.parametrize(("engine", "num_workers"), ENGINES[1:])
def test_a_bad_shard_does_not_stop_the_others(engine, num_workers, tmp_path):
    running = job(tmp_path / "job", 10)
    with pytest.raises(JobError) as caught:
        running.run(Faulty(), engine=engine, num_workers=num_workers)
    assert "3 of 10 shards failed" in str(caught.value)
    assert "the others are done" in str(caught.value)
    assert [shard.name for shard in running.pending] == ["00003.bin", "00005.bin", "00007.bin"]
    with pytest.raises(JobError, match=r"3 of 10 shards are not done, 00003.bin first: run the job"):
        running.finish()
    running.run(Digest(), num_workers=0)
    running.finish()


def test_errors_name_the_shard_and_the_cause(tmp_path):
    with pytest.raises(
        JobError, match=r"1 of 4 shards failed, 00003.bin first: ValueError: three is too many \(shard_work"
    ):
        job(tmp_path / "job", 4).run(Faulty(), num_workers=0)


def test_another_job_is_refused(tmp_path):
    job(tmp_path / "job", model="a").run(Digest(), num_workers=0)
    with pytest.raises(OutputMismatchError, match=r"holds another job: model is a there and b here"):
        job(tmp_path / "job", model="b")
    with pytest.raises(
        OutputMismatchError, match=r"num_shards is 24 there and 3 here; .*digest of the inputs"
    ):
        job(tmp_path / "job", 3, model="a")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(
        OutputMismatchError, match=r"holds 'a.jpg' and no job.json, so it is not a job's folder"
    ):
        job(tmp_path / "photos")
    for names, complaint in ((["a", "a"], "two shards are called 'a'"), (["../a"], "cannot name a shard")):
        with pytest.raises(ConfigError, match=complaint):
            ShardJob(tmp_path / "names", [Shard(name, 0) for name in names], {})
    with pytest.raises(ConfigError, match="no engine 'spark'; known are local, ray"):
        job(tmp_path / "job", model="a", num_shards=24).run(Digest(), engine="spark")


def test_a_changed_output_is_noticed(tmp_path):
    running = job(tmp_path / "job", 2)
    running.run(Digest(), num_workers=0)
    running.finish()
    (tmp_path / "job" / "00001.bin").write_bytes(b"x" * 256)
    with pytest.raises(IntegrityError, match=r"00001.bin has sha256"):
        running.finish()


def test_two_drivers_do_not_meet(tmp_path):
    running = job(tmp_path / "job", 2)

    class Meddle:
        def __call__(self, payload, output):
            with pytest.raises(OutputMismatchError, match="another process is at work on the job"):
                job(tmp_path / "job", 2).run(Digest(), num_workers=0)
            Digest()(payload, output)

    running.run(Meddle(), num_workers=0)


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'geoloc-vision\[ray\]'"):
        job(tmp_path / "job", 2).run(Digest(), engine="ray")


# Kills at random moments, as a power cut or the out-of-memory killer has them ---------------------------------

NUM_KILLS = int(os.environ.get("GEOLOC_TEST_KILLS", "50"))  # of the slow tests; fewer for a quick look


@dataclass(frozen=True)
class Killing:
    """Jobs of the script beside this file in folders of their own, of which something is killed.

    Attributes:
        folder: of the folders.
        expected: what each job must have written in the end.
        engine: "local" or "ray".
        start_up_s: about what a driver takes to begin with its first shard.
    """

    folder: Path
    expected: dict
    engine: str = "local"
    start_up_s: float = 0.8

    def start(self, number):
        folder = self.folder / str(number)
        (folder / "pids").mkdir(parents=True, exist_ok=True)
        script = Path(__file__).with_name("shard_work.py")
        return subprocess.Popen(
            [sys.executable, script, folder, self.engine], stderr=subprocess.PIPE, text=True
        )

    def num_done(self, number):
        return len(list((self.folder / str(number)).glob("job/*.bin")))

    def complete(self, number):
        """Run a job until it ends well: three deaths at one shard are an error, and the user runs it again."""
        for _ in range(4):
            driver = self.start(number)
            _, stderr = driver.communicate(timeout=300)
            if driver.returncode == 0:
                break
            assert "workers died at it" in stderr, stderr
        assert contents(self.folder / str(number) / "job") == self.expected

    def workers(self, num_kills):
        """Kill workers, in as many jobs as that takes; none of a job that was killed once needs a second run."""
        rng, num_killed, number = random.Random(num_kills), 0, 0
        while num_killed < num_kills:
            driver, before = self.start(number), num_killed
            while driver.poll() is None:
                time.sleep(rng.uniform(0, 0.3))
                workers = living(self.folder / str(number) / "pids")
                if workers and num_killed < num_kills:
                    with suppress(ProcessLookupError):
                        os.kill(rng.choice(workers), signal.SIGKILL)
                        num_killed += 1
            _, stderr = driver.communicate()
            if driver.returncode != 0:
                assert num_killed - before >= MAX_DEATHS, stderr
                assert "workers died at it" in stderr, stderr
            self.complete(number)
            number += 1

    def drivers(self, num_kills):
        """Kill drivers: one half while they start or later, the other a moment after a shard is done."""
        rng, num_killed, number = random.Random(num_kills), 0, 0
        while num_killed < num_kills:
            driver, num_before = self.start(number), self.num_done(number)
            delay_s = rng.uniform(0, 1.5 * self.start_up_s)
            if rng.random() < 0.5:
                while driver.poll() is None and self.num_done(number) == num_before:
                    time.sleep(0.01)
                delay_s = rng.uniform(0, 0.2)
            try:
                driver.wait(delay_s)
            except subprocess.TimeoutExpired:
                driver.kill()
                num_killed += 1
            driver.communicate(timeout=60)  # its workers end with it, or this would hang
            if driver.returncode == 0 or num_killed == num_kills:
                self.complete(number)
                number += 1


def test_a_killed_worker_is_replaced(tmp_path, expected):
    Killing(tmp_path, expected).workers(1)


def test_a_killed_driver_is_continued(tmp_path, expected):
    Killing(tmp_path, expected).drivers(1)


@pytest.mark.slow
def test_workers_killed_at_many_random_moments(tmp_path, expected):
    Killing(tmp_path, expected).workers(NUM_KILLS)


@pytest.mark.slow
def test_drivers_killed_at_many_random_moments(tmp_path, expected):
    Killing(tmp_path, expected).drivers(NUM_KILLS)


@pytest.fixture
def ray_cluster(monkeypatch):
    """A cluster that outlives the drivers, so that a kill does not cost the start of another one."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray_cluster")
def test_actors_of_ray_killed_at_many_random_moments(tmp_path, expected):
    Killing(tmp_path, expected, "ray", start_up_s=4.0).workers(NUM_KILLS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray_cluster")
def test_drivers_on_ray_killed_at_many_random_moments(tmp_path, expected):
    Killing(tmp_path, expected, "ray", start_up_s=4.0).drivers(NUM_KILLS)
