"""A killed run goes on as if nothing had happened; two processes do what one does."""

import os
import random
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from subprocess import run as run_process

import pytest
import torch
from linear_task import CONFIG, MACHINE, LinearData, LinearTask

from geoloc.errors import ConfigError, IntegrityError
from geoloc.train.run_folder import RunFolder, read_metrics
from geoloc.train.settings import EarlyStopping, MachineConfig, TrainerConfig
from geoloc.train.trainer import fit

# Where a DataLoader's workers are, a fork meets threads; the children only train and die.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def train(folder, task=None, config=CONFIG, machine=MACHINE, data=None):
    task = task or LinearTask()
    fitted = fit(
        task, data or LinearData(), config, machine, RunFolder(folder, {"seed": config.seed}), LinearData()
    )
    return task, fitted


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory):
    """Weights, result and metrics of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unkilled")
    task, fitted = train(folder)
    return task.state_dict(), fitted, read_metrics(folder / "metrics.csv")


def assert_same(folder, unkilled):
    task, fitted = train(folder)
    weights, expected, metrics = unkilled
    for name, value in task.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert fitted == expected
    assert read_metrics(folder / "metrics.csv") == metrics


def in_a_child(work, kill_after_s=None):
    """Run `work` in a forked process, and kill that after so long, if it does not kill itself; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


class KillAt:
    """Kills the process at the n-th visit of a kind."""

    def __init__(self, where, number):
        self.where, self.left = where, number

    def __call__(self, where):
        if where == self.where:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def test_killed_in_a_step_in_a_validation_and_while_saving(tmp_path, unkilled, monkeypatch):
    def killed_while_saving():
        real, left = os.replace, [4]

        def replace_or_die(source, target):
            left[0] -= str(target).endswith("state.ckpt")
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        os.replace = replace_or_die
        train(tmp_path)

    for work in (
        lambda: train(tmp_path, LinearTask(visit=KillAt("step", 11))),  # within an accumulated step
        lambda: train(tmp_path, LinearTask(visit=KillAt("validation", 5))),
        killed_while_saving,
    ):
        assert in_a_child(work) == signal.SIGKILL
    assert_same(tmp_path, unkilled)


@pytest.mark.slow
def test_fifty_kills_at_random_moments(tmp_path, unkilled):
    moments = random.Random(5)
    killed = 0
    while killed < 50:
        kind = moments.choice(["step", "validation", "clock"])
        if kind == "clock":
            status = in_a_child(lambda: train(tmp_path), kill_after_s=moments.uniform(0, 0.6))
        else:
            number = moments.randint(1, 9)
            status = in_a_child(lambda: train(tmp_path, LinearTask(visit=KillAt(kind, number))))  # noqa: B023
        killed += status == signal.SIGKILL
        if status == 0 and killed < 50:  # the end was reached: start again
            assert_same(tmp_path, unkilled)
            for path in tmp_path.iterdir():
                path.unlink()
    assert_same(tmp_path, unkilled)


def test_batches_made_by_workers_are_the_same(tmp_path, unkilled):
    task, _ = train(tmp_path, machine=replace(MACHINE, num_workers=2))
    for name, value in task.state_dict().items():
        assert torch.equal(value, unkilled[0][name])


def test_a_run_at_its_end_stays_there(tmp_path, unkilled):
    train(tmp_path)
    before = (tmp_path / "state.ckpt").read_bytes()
    assert_same(tmp_path, unkilled)
    assert (tmp_path / "state.ckpt").read_bytes() == before


def test_the_averaged_weights_are_the_result(tmp_path):
    config = replace(CONFIG, early_stopping=None)
    averaged, _ = train(tmp_path / "averaged", config=config)
    last, _ = train(tmp_path / "last", config=replace(config, ema_decay=None))
    assert not torch.equal(averaged.first.weight, last.first.weight)
    again, _ = train(tmp_path / "averaged", config=config)
    assert torch.equal(again.first.weight, averaged.first.weight)


def test_accumulated_batches_make_one_step(tmp_path):
    class Halves(LinearData):
        def batch(self, index, rank, world_size):
            x, y = super().batch(index // 2, rank, world_size)
            part = slice(0, 4) if index % 2 == 0 else slice(4, 8)
            return x[part], y[part]

    config = replace(CONFIG, accumulate=1)
    whole, _ = train(tmp_path / "whole", LinearTask(dropout=0.0), config)
    halves, _ = train(tmp_path / "halves", LinearTask(dropout=0.0), CONFIG, data=Halves())
    for name, value in halves.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name])


def test_half_precision_computes_in_bfloat16_and_keeps_float32_weights(tmp_path):
    computed = set()
    task = LinearTask()
    task.first.register_forward_hook(lambda module, inputs, output: computed.add(output.dtype))
    _, half = train(tmp_path / "half", task, replace(CONFIG, precision="bf16-mixed"))
    assert torch.bfloat16 in computed
    assert {parameter.dtype for parameter in task.parameters()} == {torch.float32}
    _, full = train(tmp_path / "full")
    assert half.metrics["geoscore"] != full.metrics["geoscore"]
    assert half.metrics["geoscore"] == pytest.approx(full.metrics["geoscore"], rel=0.05)


def test_early_stopping_keeps_the_best_weights(tmp_path):
    class Worsening(LinearTask):
        def score(self, predicted):
            self.seen = getattr(self, "seen", 0) + 1
            self.kept = {**getattr(self, "kept", {}), self.seen: self.last.weight.clone()}
            return {"geoscore": float([1, 3, 2, 2, 2, 2, 2][self.seen - 1])}

    config = replace(CONFIG, validate_every_steps=2, early_stopping=EarlyStopping("geoscore", patience=3))
    task, fitted = train(tmp_path, Worsening(), config)
    assert (fitted.step, fitted.metrics) == (4, {"geoscore": 3.0})
    assert task.seen == 5
    assert torch.equal(task.last.weight, task.kept[2])
    again = Worsening()
    assert train(tmp_path, again, config)[1] == fitted  # stopped stays stopped
    assert not hasattr(again, "seen")
    assert torch.equal(again.last.weight, task.kept[2])


def test_a_damaged_state_is_refused(tmp_path):
    train(tmp_path)
    path = tmp_path / "state.ckpt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="damaged"):
        train(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Broken(LinearTask):
        def losses(self, batch):
            return {"cells": super().losses(batch)["first"] * torch.nan}

    with pytest.raises(FloatingPointError, match="the loss 'cells' is nan after step 2"):
        train(tmp_path, Broken())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainerConfig(0), "num_steps is 0"),
        (lambda: TrainerConfig(5, ema_decay=1.0), "ema_decay"),
        (lambda: TrainerConfig(5, early_stopping=EarlyStopping("geoscore")), "needs validate_every_steps"),
        (lambda: MachineConfig(devices=2), "machine.strategy=ddp"),
        (lambda: EarlyStopping("geoscore", 0), "patience"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_settings_that_do_not_go_together(tmp_path):
    with pytest.raises(ConfigError, match="ema_decay needs whole parameters"):
        train(tmp_path, machine=replace(MACHINE, strategy="fsdp"))
    with pytest.raises(
        ConfigError, match=r"early_stopping.metric is 'recall', and validation reports geoscore, count"
    ):
        train(tmp_path, config=replace(CONFIG, early_stopping=EarlyStopping("recall")))


TWO_PROCESSES = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from linear_task import CONFIG, MACHINE, LinearData, LinearTask
from geoloc.train.run_folder import RunFolder
from geoloc.train.trainer import fit
task = LinearTask(dropout=0.0)
machine = replace(MACHINE, devices=2, strategy="ddp")
fit(task, LinearData(), CONFIG, machine, RunFolder(sys.argv[1], {}), LinearData())
torch.save(task.state_dict(), f"{sys.argv[1]}/rank{torch.distributed.get_rank()}.pt")
"""


def test_two_processes_give_the_curve_of_one(tmp_path, request):
    one, _ = train(tmp_path / "one", LinearTask(dropout=0.0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    environment = os.environ | {
        "MASTER_PORT": str(port),
        "PYTHONPATH": f"{request.config.rootpath}:{Path(__file__).parent}",
    }
    done = run_process(
        [sys.executable, script, tmp_path / "two"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        for name, value in torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(value, one.state_dict()[name])
    found, expected = (read_metrics(tmp_path / name / "metrics.csv") for name in ("two", "one"))
    # A rank logs the loss of its own half; validation is over all.
    found, expected = ([row for row in rows if row[1].startswith("val/")] for rows in (found, expected))
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], rel=1e-4)
    assert {row[2] for row in found if row[1] == "val/count"} == {11.0}
