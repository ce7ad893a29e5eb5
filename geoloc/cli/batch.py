"""`geoloc batch`: localise or embed any number of images as shards, on this machine or a Ray cluster."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from geoloc.cli.console import check_folder, count, say
from geoloc.cli.model_options import ModelOption, model_options
from geoloc.cli.models import (
    BatchSizeOption,
    DeviceOption,
    MaxPrecisionOption,
    QueryOption,
    ReferenceOption,
    TopKOption,
)
from geoloc.cli.shards import Crew, Engine, EngineOption, GpusOption, ThreadsOption, WorkersOption
from geoloc.errors import ConfigError

if TYPE_CHECKING:
    from geoloc.images.query import QueryMode


class Task(str, Enum):
    """What is done with the images."""

    LOCALIZE = "localize"
    EMBED = "embed"


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
        str, typer.Option("--model", "-m", help="A bundled model, a folder, a file of others or a Hub id.")
    ] = "earthview",
    model_option: ModelOption = [],  # noqa: B006  typer copies it
    reference: ReferenceOption = "own",
    query: QueryOption = "central_crop",
    role: Annotated[Role, typer.Option(help="Which embedding, for --task embed.")] = Role.QUERY,
    engine: EngineOption = Engine.LOCAL,
    workers: WorkersOption = 1,
    gpus_per_worker: GpusOption = 0.0,
    files_per_shard: Annotated[int, typer.Option(min=1, help="Single files that go together.")] = 512,
    batch_size: BatchSizeOption = 16,
    top_k: TopKOption = 5,
    max_precision_km: MaxPrecisionOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
) -> None:
    """Localise or embed any number of images, shard by shard.

    A shard is done whole or not at all: killed at any moment, the same command continues with the shards that are
    missing, and a manifest.json says that all are done. Every engine writes the same bytes.
    """
    from geoloc.batch.sources import plan_shards
    from geoloc.batch.work import EmbedWork, LocalizeWork, WorkOptions
    from geoloc.jobs.shards import ShardJob

    check_folder(output)
    crew = Crew(engine, workers, gpus_per_worker)
    crew.check_device(device)
    options = WorkOptions(
        query=cast("QueryMode", query), batch_size=batch_size, device=device, num_threads=threads
    )
    said = model_options(model_option)
    work: LocalizeWork | EmbedWork
    if task is Task.LOCALIZE:
        work = LocalizeWork(
            model,
            options,
            reference=reference,
            top_k=top_k,
            max_precision_km=max_precision_km,
            model_options=said,
        )
    elif max_precision_km is not None:
        raise ConfigError("--max-precision-km is about places: leave it out, or say --task localize")
    elif reference != "own":
        raise ConfigError("--reference is searched to localise: leave it out, or say --task localize")
    else:
        work = EmbedWork(model, role.value, options, model_options=said)
    shards = plan_shards(inputs, files_per_shard)
    crew.run(ShardJob(output, shards, work.identity()), work)
    say(f"{count(len(shards), 'shard')} of {task.value} with {model} -> {output}")
