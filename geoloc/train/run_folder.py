"""Run folder: config, environment, metrics and latest state of a training run.

config.json        all settings that decide the result; a different config is refused
environment.json   one entry per start: versions, git state, machine
metrics.csv        step,name,value
state.ckpt         latest state, with state.ckpt.sha256
best.ckpt          with early stopping: the weights with the best validation
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from geoloc import __version__
from geoloc.errors import OutputMismatchError
from geoloc.files import atomic_write

_PACKAGES = ("torch", "lightning", "numpy", "open_clip_torch", "timm", "torchvision", "pillow", "webdataset")


class RunFolder:
    """Opens a run's folder, or creates it.

    Args:
        folder: path of the folder.
        config: plain JSON values: all settings that decide the result.

    Raises:
        OutputMismatchError: the folder holds a run with another config; the message names the first difference.
    """

    def __init__(self, folder: str | Path, config: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.json"
        wanted = json.loads(json.dumps(config))  # tuples become lists, as in the file
        if path.exists():
            there = json.loads(path.read_text("utf-8"))
            for key, before, now in _differences(there, wanted):
                raise OutputMismatchError(
                    f"{self.folder} holds a run with {key} = {before}, and this run has {now}: choose another run "
                    "folder, use the same config, or delete that folder"
                )
        else:
            with atomic_write(path, "w") as file:
                file.write(json.dumps(wanted, indent=1) + "\n")

    @property
    def state_path(self) -> Path:
        """Path of the latest state."""
        return self.folder / "state.ckpt"

    @property
    def best_path(self) -> Path:
        """Path of the best weights."""
        return self.folder / "best.ckpt"

    def note_environment(self) -> None:
        """Add this start to environment.json."""
        path = self.folder / "environment.json"
        starts = json.loads(path.read_text("utf-8")) if path.exists() else []
        starts.append(environment())
        with atomic_write(path, "w") as file:
            file.write(json.dumps(starts, indent=1) + "\n")


class MetricsFile:
    """`metrics.csv` of a run; rows after the resumed step are dropped.

    Args:
        folder: run folder.
        step: step at which the run starts or resumes.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.csv"
        kept = [row for row in read_metrics(self.path) if row[0] <= step] if self.path.exists() else []
        with atomic_write(self.path, "w") as file:
            csv.writer(file, lineterminator="\n").writerows([("step", "name", "value"), *kept])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of a step."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(
                (step, name, value) for name, value in values.items()
            )


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """Rows of a `metrics.csv`; an incomplete last line is left out."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n") and not line.startswith("step,"):
                step, name, value = next(csv.reader([line]))
                rows.append((int(step), name, float(value)))
    return rows


def environment() -> dict[str, Any]:
    """Command, machine, package versions and git state of this process, as plain values."""
    versions = {"geoloc": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "machine": platform.machine(),
        "system": platform.system(),
        "versions": versions,
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the source and number of changed files; None outside of a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        found = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=30
        )
        return found.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "changed_files": len(changed.splitlines())}
    except (OSError, subprocess.SubprocessError):
        return None


def _differences(there: Any, wanted: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Each differing value: its key, the stored value, the wanted value."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        for key in sorted(there.keys() | wanted.keys()):
            name = f"{where}.{key}" if where else key
            if key not in wanted:
                yield name, json.dumps(there[key]), "no such key"
            elif key not in there:
                yield name, "no such key", json.dumps(wanted[key])
            else:
                yield from _differences(there[key], wanted[key], name)
    elif there != wanted:
        yield where, json.dumps(there), json.dumps(wanted)
