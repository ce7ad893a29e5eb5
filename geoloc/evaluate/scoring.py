"""Scoring as a shard job: each shard writes the `Evaluation` state of a slice of the images; states are merged.

    evaluation = score(matched, protocol, breakdowns, folder="scores/", engine="ray", num_workers=8)

The result equals that of one pass over all images (for quantiles see `Quantiles`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from geoloc import __version__
from geoloc.evaluate.evaluation import Evaluation, check_columns
from geoloc.evaluate.matching import Matched
from geoloc.files import atomic_write
from geoloc.jobs.shards import Engine, Shard, ShardJob
from geoloc.metrics.protocols import Protocol

IMAGES_PER_SHARD: Final = 1 << 17  # about a second of work; OSV-5M's test set is two shards


class ScoreWork:
    """Work that evaluates a slice of images; the payload is [first row, one past the last row].

    It is pickled with both tables, so that workers read no file.

    Raises:
        ConfigError, BadTableError: as `check_columns`.
    """

    def __init__(self, matched: Matched, protocol: Protocol, breakdowns: Sequence[str]) -> None:
        check_columns(matched, breakdowns)  # on the full tables, so that errors name the line
        self.matched, self.protocol, self.breakdowns = matched, protocol, list(breakdowns)

    def identity(self) -> dict[str, Any]:
        """Identity of the job, for `ShardJob`."""
        matched = self.matched
        return {
            "task": "score",
            "geoloc": __version__,
            "protocol": self.protocol.name,
            "breakdowns": self.breakdowns,
            "truth": matched.truth.take(matched.truth_row).digest(),
            "predictions": matched.predictions.digest(),
        }

    def __call__(self, payload: tuple[int, int], output: Path) -> None:
        """Score the images of a shard."""
        evaluation = Evaluation(self.protocol, self.breakdowns)
        evaluation.add(self.matched.part(slice(*payload)))
        with atomic_write(output, "w") as file:
            # json.dump is nearly twice as slow
            file.write(json.dumps(evaluation.state(), allow_nan=False))


def score(
    matched: Matched,
    protocol: Protocol,
    breakdowns: Sequence[str],
    *,
    folder: str | Path,
    images_per_shard: int = IMAGES_PER_SHARD,
    engine: Engine = "local",
    num_workers: int = 0,
) -> Evaluation:
    """Evaluate all images shard by shard; finished shards in the folder are kept.

    Args:
        matched: predictions with the truth.
        protocol: rules of the scores.
        breakdowns: see `Evaluation`.
        folder: of the job; see `ShardJob`.
        images_per_shard: number of images per shard.
        engine: see `ShardJob.run`.
        num_workers: see `ShardJob.run`; a single shard is scored in this process.

    Raises:
        ConfigError: a breakdown is neither built in nor a column of the truth.
        BadTableError: a column of radii holds text.
        OutputMismatchError: the folder holds scores of other images or of another protocol.
        JobError: a shard could not be scored.
    """
    work = ScoreWork(matched, protocol, breakdowns)
    starts = range(0, len(matched), images_per_shard)
    shards = [
        Shard(f"{number:05}.json", (start, min(start + images_per_shard, len(matched))))
        for number, start in enumerate(starts)
    ]
    job = ShardJob(folder, shards, work.identity())
    if len(shards) == 1:
        job.run(work, num_workers=0)
    else:
        job.run(work, engine=engine, num_workers=num_workers)
    job.finish()
    merged = Evaluation(protocol, breakdowns)
    for shard in shards:
        merged.merge(Evaluation.from_state(protocol, json.loads(job.output(shard).read_bytes())))
    return merged
