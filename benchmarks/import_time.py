"""Start-up time of the package and the command in fresh interpreters, medians, one thread.

    python benchmarks/import_time.py

Budget: `import geoloc` and `geoloc --help` under 0.3 s. The first row is what Python alone costs, the last
what importing torch would add.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = 7
BUDGET_S = 0.5

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import geoloc": [sys.executable, "-c", "import geoloc"],
    "import quadtree": [sys.executable, "-c", "import quadtree"],
    "geoloc --help": [sys.executable, "-c", "from geoloc.cli import main; main()", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - start


def main() -> None:
    print(f"{'':18}{'median':>9}{'least':>9}   of {RUNS} runs, after one to warm the disk cache")
    for name, command in COMMANDS.items():
        seconds(command)
        times = [seconds(command) for _ in range(RUNS)]
        median = statistics.median(times)
        budget = ""
        if name in ("import geoloc", "geoloc --help"):
            budget = f"   budget {BUDGET_S} s: {'kept' if median < BUDGET_S else 'BROKEN'}"
        print(f"{name:18}{median:8.3f}s{min(times):8.3f}s{budget}")


if __name__ == "__main__":
    main()
