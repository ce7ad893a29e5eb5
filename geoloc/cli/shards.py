"""How the commands run shard jobs: the options that say where, and a progress bar."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from geoloc.cli.models import check_device

if TYPE_CHECKING:
    from geoloc.batch.work import EmbedWork, LocalizeWork
    from geoloc.jobs.shards import ShardJob


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
class Crew:
    """Who works on a job, as the options say."""

    engine: Engine
    num_workers: int
    num_gpus_per_worker: float

    def check_device(self, name: str) -> None:
        """Refuse a device that the workers cannot use; those of a cluster have devices of their own.

        Raises:
            ConfigError: it cannot be used.
        """
        if self.engine is Engine.LOCAL:
            check_device(name)

    def run(self, job: "ShardJob", work: "LocalizeWork | EmbedWork") -> None:
        """Run a job under a progress bar, and finish it.

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
                    num_workers=self.num_workers,
                    num_gpus_per_worker=self.num_gpus_per_worker,
                    on_done=lambda shard: bar.update(),
                )
        job.finish()
