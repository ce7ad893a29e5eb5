"""Run a folder of hostile images through the decoder: each must become an image or a `BadImageError`.

    python scripts/check_decoder_corpus.py FOLDER [--mutations 20] [--seed 0]

A good folder is `Tests/images` of Pillow's source distribution:

    pip download --no-deps --no-binary :all: pillow==12.3.0 && tar xzf pillow-12.3.0.tar.gz

Files are decoded in forked processes, so a crash or a hang costs one file and is reported under its name.
With `--mutations N` each file is followed by N seeded mutations of itself (truncated, bits flipped, spliced).
Exits with 1 if anything crashed, hung, raised something else, leaked a warning or went over the memory limit.
"""

import argparse
import json
import os
import random
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from geoloc.errors import BadImageError
from geoloc.images import decode_image

ADDRESS_SPACE_BYTES = 3 * 2**30
NUM_FILES_PER_PROCESS = 50
PEAK_RSS_LIMIT_MIB = 1024


@dataclass
class Report:
    """What happened to every case of a corpus."""

    num_cases: int = 0
    num_images: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)  # crashes, hangs, other exceptions, leaked warnings
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_mib: float = 0.0


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One of: the data cut short, 1 to 32 of its bits flipped, or its tail replaced by another file's."""
    if len(data) < 2 or len(other) < 2:
        return data
    kind = rng.choice(("truncate", "flip", "splice"))
    if kind == "truncate":
        return data[: rng.randrange(len(data))]
    if kind == "splice":
        return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
    mutated = bytearray(data)
    # Half of the flips go to the first kilobyte, where the headers are.
    end = len(data) if rng.random() < 0.5 else min(len(data), 1024)
    for _ in range(2 ** rng.randrange(6)):
        mutated[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def check_corpus(
    paths: list[Path],
    *,
    num_mutations: int = 0,
    seed: int = 0,
    seconds_per_case: int = 20,
    decode: Callable[[bytes], object] = decode_image,
) -> Report:
    """Decode every file, and `num_mutations` mutations of each, in forked processes with a memory limit."""
    report = Report()
    pending = list(range(len(paths)))
    while pending:
        batch = pending[:NUM_FILES_PER_PROCESS]
        done, died_at = _run_batch(paths, batch, num_mutations, seed, seconds_per_case, decode, report)
        if died_at is not None:  # the rest of that file's mutations is given up
            done.add(died_at)
        pending = [index for index in pending if index not in done]
    return report


def _run_batch(
    paths: list[Path],
    batch: list[int],
    num_mutations: int,
    seed: int,
    seconds_per_case: int,
    decode: Callable[[bytes], object],
    report: Report,
) -> tuple[set[int], int | None]:
    """Fork, decode, read what the child says; returns the finished files and the one it died at, if any."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        status = 1
        try:
            most = _address_space_bytes() + ADDRESS_SPACE_BYTES  # beside what the parent has
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside a C loop
            with os.fdopen(write_end, "w", buffering=1) as pipe:
                before_mib = _peak_rss_mib()  # a forked process begins with its parent's
                for index in batch:
                    for message in _decode_file(
                        paths, index, num_mutations, seed, seconds_per_case, decode, before_mib
                    ):
                        pipe.write(json.dumps(message) + "\n")
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write_end)
    done: set[int] = set()
    current_index, current_name = batch[0], ""
    with os.fdopen(read_end) as pipe:
        for line in pipe:
            message = json.loads(line)
            if message["kind"] == "start":
                current_index, current_name = message["index"], message["name"]
                report.num_cases += 1
                continue
            if message["kind"] == "end":
                done.add(message["index"])
                continue
            report.seconds[current_name] = message["seconds"]
            report.peak_rss_mib = max(report.peak_rss_mib, message["rss_mib"])
            if message["kind"] == "image":
                report.num_images += 1
            elif message["kind"] == "refused":
                report.refusals[message["reason"]] += 1
            else:
                report.failures.append(f"{current_name}: {message['reason']}")
    _, status = os.waitpid(child, 0)
    if status == 0:
        return done, None
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    what = {0: f"exit status {status}", signal.SIGALRM: f"hung for {seconds_per_case} s"}.get(
        number, f"crashed with signal {number}"
    )
    report.failures.append(f"{current_name}: {what}")
    return done, current_index


def _decode_file(
    paths: list[Path],
    index: int,
    num_mutations: int,
    seed: int,
    seconds_per_case: int,
    decode: Callable[[bytes], object],
    before_mib: float,
) -> Iterator[dict[str, object]]:
    rng = random.Random(f"{seed}/{paths[index].name}")
    original = paths[index].read_bytes()
    for number in range(num_mutations + 1):
        name = str(paths[index]) + (f" mutation {number}" if number else "")
        data = mutate(original, rng.choice(paths).read_bytes(), rng) if number else original
        yield {"kind": "start", "index": index, "name": name}
        signal.alarm(seconds_per_case)
        start = time.perf_counter()
        kind, reason = _verdict(data, decode)
        seconds = time.perf_counter() - start
        signal.alarm(0)
        rss_mib = _peak_rss_mib() - before_mib
        yield {"kind": kind, "reason": reason, "seconds": seconds, "rss_mib": rss_mib}
    yield {"kind": "end", "index": index}


def _address_space_bytes() -> int:
    status = Path("/proc/self/statm")  # of Linux; elsewhere a decoder has less room
    return int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 0


def _peak_rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _verdict(data: bytes, decode: Callable[[bytes], object]) -> tuple[str, str]:
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        try:
            image = decode(data)
        except BadImageError as error:
            if "\n" in error.reason or not error.reason:
                return "failure", f"a reason that is no line: {error.reason!r}"
            verdict = "refused", re.sub(r"0x[0-9a-f]+|[\d,]*\d", "N", error.reason)
        except Exception as error:
            return "failure", f"raised {error!r}"
        else:
            if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
                return "failure", "the result is not (h, w, 3)"
            verdict = "image", ""
    if leaked:
        return "failure", f"leaked the warning {str(leaked[0].message)!r}"
    return verdict


def _print_report(report: Report) -> None:
    print(
        f"{report.num_cases:7d} cases\n{report.num_images:7d} images\n{report.refusals.total():7d} refused:"
    )
    for reason, count in report.refusals.most_common(40):
        print(f"{count:15d}  {reason}")
    if len(report.refusals) > 40:
        print(f"{'':15}  and {len(report.refusals) - 40} rarer reasons")
    slowest = sorted(report.seconds, key=report.seconds.__getitem__, reverse=True)[:5]
    print("slowest:")
    for name in slowest:
        print(f"{report.seconds[name]:13.2f} s  {name}")
    print(f"peak RSS over the start: {report.peak_rss_mib:.0f} MiB")
    print(f"failures: {len(report.failures)}")
    for failure in report.failures:
        print(f"    {failure}")


def main(arguments: Iterable[str] | None = None) -> int:
    """Parse the command line, run the corpus, print the table; 0 if nothing failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="searched recursively")
    parser.add_argument(
        "--mutations", type=int, default=0, metavar="N", help="mutations per file (default 0)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(None if arguments is None else list(arguments))
    paths = sorted(path for path in options.folder.rglob("*") if path.is_file())
    if not paths:
        parser.error(f"no files under {options.folder}")
    report = check_corpus(paths, num_mutations=options.mutations, seed=options.seed)
    _print_report(report)
    return int(bool(report.failures) or report.peak_rss_mib > PEAK_RSS_LIMIT_MIB)


if __name__ == "__main__":
    sys.exit(main())
