"""Shards on every engine: the same bytes, and nothing lost or doubled when workers or drivers are killed."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from shard_work import NUM_SHARDS, Digest, Faulty, contents, job

from geoloc.errors import ConfigError, IntegrityError, JobError, MissingDependencyError, OutputMismatchError
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
    with pytest.raises(OutputMismatchError, match=r"num_shards is 24 there and 3 here"):
        job(tmp_path / "job", 3, model="a")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(OutputMismatchError, match=r"holds 'a.jpg' and no job.json, so it is no job's folder"):
        job(tmp_path / "photos")
    for names, complaint in ((["a", "a"], "two shards are called 'a'"), (["../a"], "is no name for a shard")):
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


def test_a_killed_worker_is_replaced(tmp_path, expected):
    kill_workers(tmp_path, "local", expected, num_kills=1)


def test_a_killed_driver_is_continued(tmp_path, expected):
    kill_drivers(tmp_path, "local", expected, delays_s=[0.5])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_workers_killed_at_ten_random_moments(tmp_path, expected, seed):
    kill_workers(tmp_path, "local", expected, num_kills=10, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_drivers_killed_at_ten_random_moments(tmp_path, expected, seed):
    rng = random.Random(seed)
    kill_drivers(tmp_path, "local", expected, delays_s=[rng.uniform(0.2, 0.9) for _ in range(10)])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="Ray is an extra")
def test_ray_actors_and_driver_killed(tmp_path, expected):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    kill_workers(tmp_path / "a", "ray", expected, num_kills=3)
    kill_drivers(tmp_path / "b", "ray", expected, delays_s=[6.0, 9.0])


def start(folder, engine):
    (folder / "pids").mkdir(exist_ok=True)
    script = Path(__file__).with_name("shard_work.py")
    return subprocess.Popen(
        [sys.executable, script, folder / "job", engine, "2", folder / "pids"],
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_workers(folder, engine, expected, num_kills, seed=0):
    """Kill workers at random moments while the job runs, never three at one shard on purpose."""
    rng = random.Random(seed)
    driver = start(folder, engine)
    killed, stop = set(), threading.Event()

    def hunt():
        while len(killed) < num_kills and not stop.is_set():
            time.sleep(rng.uniform(0.01, 0.12))
            for entry in os.listdir(folder / "pids"):
                if entry not in killed:
                    killed.add(entry)
                    try:
                        os.kill(int(entry), signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    break

    hunter = threading.Thread(target=hunt)
    hunter.start()
    try:
        _, stderr = driver.communicate(timeout=300)
    finally:
        stop.set()
        hunter.join()
    if driver.returncode != 0:  # three deaths at one shard: the user runs it again
        assert "workers died at it" in stderr, stderr
        driver = start(folder, engine)
        _, stderr = driver.communicate(timeout=300)
    assert driver.returncode == 0, stderr
    assert killed
    assert contents(folder / "job") == expected


def kill_drivers(folder, engine, expected, delays_s):
    for delay_s in delays_s:
        driver = start(folder, engine)
        try:
            driver.wait(delay_s)
        except subprocess.TimeoutExpired:
            driver.kill()
        driver.communicate(timeout=60)  # its workers end with it, or this would hang
    for _ in range(3):
        driver = start(folder, engine)
        _, stderr = driver.communicate(timeout=300)
        if driver.returncode == 0:
            break
    assert driver.returncode == 0, stderr
    assert contents(folder / "job") == expected
    assert json.loads((folder / "job" / "manifest.json").read_text())["job"]["num_shards"] == NUM_SHARDS
