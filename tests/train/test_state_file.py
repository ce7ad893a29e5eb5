"""The state of a run is whole, verified, and loaded as data."""

import os
import pickle

import pytest
import torch

from geoloc.errors import IntegrityError, OutputMismatchError
from geoloc.train.run_folder import MetricsFile, RunFolder, read_metrics
from geoloc.train.state_file import load_verified, save_verified

STATE = {"weights": torch.arange(6.0), "step": 7, "names": ["a", None, 0.5]}


def test_what_was_written_comes_back(tmp_path):
    path = tmp_path / "state.ckpt"
    for _ in range(2):
        save_verified(STATE, path)
    found = load_verified(path)
    assert torch.equal(found["weights"], STATE["weights"])
    assert {key: found[key] for key in ("step", "names")} == {key: STATE[key] for key in ("step", "names")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.ckpt", "state.ckpt.sha256"]


@pytest.mark.parametrize("position", [0, 200, -1])
def test_a_flipped_bit_is_noticed(tmp_path, position):
    path = tmp_path / "state.ckpt"
    save_verified(STATE, path)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="was damaged"):
        load_verified(path)


def test_a_missing_digest_is_noticed(tmp_path):
    path = tmp_path / "state.ckpt"
    save_verified(STATE, path)
    (tmp_path / "state.ckpt.sha256").unlink()
    with pytest.raises(IntegrityError, match=r"state\.ckpt\.sha256 is missing"):
        load_verified(path)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_the_rename_leaves_a_state_that_verifies(tmp_path, monkeypatch, moment):
    path = tmp_path / "state.ckpt"
    save_verified({"step": 1}, path)
    real = os.replace

    def killed(source, target):
        if str(target).endswith("state.ckpt"):
            if moment == "after":
                real(source, target)
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_verified({"step": 2}, path)
    assert load_verified(path) == {"step": 1 if moment == "before" else 2}


class Opens:
    def __reduce__(self):
        return (os.mkdir, ("made_by_unpickling",))


def test_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.ckpt"
    save_verified({"step": Opens()}, path)
    with pytest.raises(pickle.UnpicklingError):
        load_verified(path)
    assert not (tmp_path / "made_by_unpickling").exists()


def test_another_config_is_refused_with_the_difference(tmp_path):
    RunFolder(tmp_path / "run", {"seed": 1, "mix": {"cells": 1.0}})
    RunFolder(tmp_path / "run", {"seed": 1, "mix": {"cells": 1.0}})
    with pytest.raises(
        OutputMismatchError, match=r"holds a run with mix.cells = 1.0, and this run has 2.0: choose"
    ):
        RunFolder(tmp_path / "run", {"seed": 1, "mix": {"cells": 2.0}})
    with pytest.raises(OutputMismatchError, match=r"mix.offsets = no such key, and this run has 1"):
        RunFolder(tmp_path / "run", {"seed": 1, "mix": {"cells": 1.0, "offsets": 1}})


def test_metrics_after_the_step_that_a_run_goes_on_from_are_forgotten(tmp_path):
    metrics = MetricsFile(tmp_path, 0)
    for step in (10, 20, 30):
        metrics.add(step, {"loss/cells": 1 / step, "val/geoscore": 100.0 * step})
    with metrics.path.open("a") as file:
        file.write("40,loss/cel")  # a kill
    metrics = MetricsFile(tmp_path, 20)
    metrics.add(30, {"loss/cells": 0.5})
    assert read_metrics(metrics.path) == [
        (10, "loss/cells", 0.1),
        (10, "val/geoscore", 1000.0),
        (20, "loss/cells", 0.05),
        (20, "val/geoscore", 2000.0),
        (30, "loss/cells", 0.5),
    ]
