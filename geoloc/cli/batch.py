"""`geoloc batch`: localise or embed any number of images as shards, on this machine or a Ray cluster."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoloc.cli.console import count, say
from geoloc.errors import NotFoundError

if TYPE_CHECKING:
    from geoloc.batch.work import EmbedWork, LocalizeWork
    from geoloc.jobs.shards import ShardJob


class Task(str, Enum):
    """What is done with the images."""

    LOCALIZE = "localize"
    EMBED = "embed"


class Engine(str, Enum):
    """What the shards run on."""

    LOCAL = "local"
    RAY = "ray"


class Role(str, Enum):
    """Which embedding."""

    QUERY = "query"
    AERIAL = "aerial"
    STREET = "street"


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Folders, images, .tar of webdataset, .parquet with columns id and image, or URLs of them; "
            "'{000..023}.tar' counts.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder: one .parquet for each shard.")],
    task: Annotated[Task, typer.Option(help="What to do with the images.")] = Task.LOCALIZE,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A bundled model, a folder or a Hub id.")
    ] = "earthview",
    role: Annotated[Role, typer.Option(help="Which embedding, for --task embed.")] = Role.QUERY,
    engine: Annotated[
        Engine,
        typer.Option(
            help="local: processes of this machine. ray: actors, at RAY_ADDRESS or of a new cluster."
        ),
    ] = Engine.LOCAL,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes or actors, each with its model; 0 works in this process.")
    ] = 1,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="Reserved for each actor of Ray.")] = 0.0,
    files_per_shard: Annotated[int, typer.Option(min=1, help="Single files that go together.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the network together.")] = 16,
    top_k: Annotated[int, typer.Option(min=1, help="Candidates of a prediction.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda, … of every worker.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each worker.")] = 1,
) -> None:
    """Localise or embed any number of images, shard by shard.

    A shard is done whole or not at all: killed at any moment, the same command continues with the shards that are
    missing, and a manifest.json says that all are done. Every engine writes the same bytes.
    """
    from geoloc.batch.sources import plan_shards
    from geoloc.batch.work import EmbedWork, LocalizeWork, WorkOptions

    if not output.parent.is_dir():
        raise NotFoundError(f"there is no folder {output.parent} for {output.name}; create it first")
    shards = plan_shards(inputs, files_per_shard)
    options = WorkOptions(batch_size=batch_size, top_k=top_k)
    work: LocalizeWork | EmbedWork
    if task is Task.LOCALIZE:
        work = LocalizeWork(model, options, device=device, num_threads=threads)
    else:
        work = EmbedWork(model, role.value, options=options, device=device, num_threads=threads)
    from geoloc.jobs.shards import ShardJob

    job = ShardJob(output, shards, work.identity())
    run_job(job, work, engine, workers, gpus_per_worker)
    say(f"{count(len(shards), 'shard')} of {task.value} with {model} -> {output}")


def run_job(
    job: "ShardJob",
    work: "LocalizeWork | EmbedWork",
    engine: Engine,
    workers: int,
    gpus_per_worker: float = 0.0,
) -> None:
    """Run a job under a progress bar, and finish it."""
    from tqdm import tqdm

    if not job.is_complete:
        pending = len(job.pending)
        with tqdm(
            total=len(job.shards),
            initial=len(job.shards) - pending,
            unit=" shards",
            leave=False,
            disable=None,
        ) as bar:
            job.run(
                work,
                engine=engine.value,
                num_workers=workers,
                num_gpus_per_worker=gpus_per_worker,
                on_done=lambda shard: bar.update(),
            )
    job.finish()
