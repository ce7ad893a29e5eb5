"""Options of the commands that run as jobs: engine and workers, and a progress bar over shards."""

import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from geoloc.cli.models import check_device

if TYPE_CHECKING:
    from geoloc.jobs.shards import ShardJob
    from geoloc.jobs.work import Work
    from geoloc.localize.job import LocalizeJob


class Engine(str, Enum):
    """What the shards run on."""

    LOCAL = "local"
    RAY = "ray"


EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine", help="local: processes of this machine. ray: actors, at RAY_ADDRESS or of a new cluster."
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        "--workers", min=0, help="Processes or actors, each with its model; 0 works in this process."
    ),
]
GpusOption = Annotated[
    float, typer.Option("--gpus-per-worker", min=0, help="Reserved for each actor of Ray.")
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of each worker.")]


@dataclass(frozen=True)
class Workers:
    """Where the shards of a command run.

    Attributes:
        engine: local processes or Ray.
        number: of processes or actors; 0 is this process.
        gpus_each: reserved for each actor of Ray.
    """

    engine: Engine
    number: int
    gpus_each: float

    def check_device(self, name: str) -> None:
        """Refuse a device that the workers cannot use; those of a cluster have devices of their own.

        Raises:
            ConfigError: it cannot be used.
        """
        if self.engine is Engine.LOCAL:
            check_device(name)

    def run_localize(self, job: "LocalizeJob", num_done: int | None = None, *, quiet: bool = False) -> float:
        """Run a localising job under a progress bar over its images; returns how many seconds it took.

        Raises:
            GeolocError: as `LocalizeJob.run`.
        """
        from tqdm import tqdm

        start_s = time.monotonic()
        num_done = job.num_done if num_done is None else num_done
        # On a terminal only: in a log file a bar is thousands of lines.
        with tqdm(
            total=job.num_images,
            initial=num_done,
            unit=" images",
            smoothing=0.1,
            leave=False,
            disable=True if quiet or num_done == job.num_images else None,
        ) as bar:
            job.run(
                bar.update,
                engine=self.engine.value,
                num_workers=self.number,
                num_gpus_per_worker=self.gpus_each,
            )
        return time.monotonic() - start_s

    def run(self, job: "ShardJob", work: "Work") -> None:
        """Run a job under a progress bar over its shards, and finish it.

        Raises:
            GeolocError: as `ShardJob.run` and `ShardJob.finish`.
        """
        from tqdm import tqdm

        if not job.is_complete:
            num_done = len(job.shards) - len(job.pending)
            with tqdm(
                total=len(job.shards), initial=num_done, unit=" shards", leave=False, disable=None
            ) as bar:
                job.run(
                    work,
                    engine=self.engine.value,
                    num_workers=self.number,
                    num_gpus_per_worker=self.gpus_each,
                    on_done=lambda shard: bar.update(),
                )
        job.finish()
