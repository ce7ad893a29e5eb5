"""`geoloc embed`: embeddings of any number of images, as Parquet files."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from geoloc.cli.console import check_folder, count, say
from geoloc.cli.jobs import Engine, EngineOption, GpusOption, ThreadsOption, Workers, WorkersOption
from geoloc.cli.model_options import ModelOption, model_options
from geoloc.cli.models import BatchSizeOption, DeviceOption, QueryOption

if TYPE_CHECKING:
    from geoloc.images.query import QueryMode


class Role(str, Enum):
    """Which embedding of a model."""

    QUERY = "query"
    AERIAL = "aerial"
    STREET = "street"


class Dtype(str, Enum):
    """Type of the numbers in the table."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Folders, images, .tar of webdataset, .parquet with columns id and image, or URLs of them; "
            "'{000..023}.tar' counts.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder: one .parquet for each shard.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A bundled model, a folder, a published file or a Hub id.")
    ] = "earthview",
    model_option: ModelOption = [],  # noqa: B006  typer copies it
    role: Annotated[Role, typer.Option(help="Which embedding.")] = Role.QUERY,
    query: QueryOption = "central_crop",
    dtype: Annotated[Dtype, typer.Option(help="Type of the numbers.")] = Dtype.FLOAT16,
    engine: EngineOption = Engine.LOCAL,
    workers: WorkersOption = 1,
    gpus_per_worker: GpusOption = 0.0,
    files_per_shard: Annotated[int, typer.Option(min=1, help="Single files that go together.")] = 512,
    batch_size: BatchSizeOption = 16,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
) -> None:
    """Embed any number of images, shard by shard.

    A shard is done whole or not at all: killed at any moment, the same command continues with the missing shards, and a
    manifest.json marks the job as complete. Every engine writes the same bytes. An image that cannot be read has its
    error in its row.
    """
    from geoloc.jobs.shards import ShardJob
    from geoloc.localize.embed import EmbedOptions, EmbedWork
    from geoloc.photos.sources import plan_shards

    check_folder(output)
    crew = Workers(engine, workers, gpus_per_worker)
    crew.check_device(device)
    options = EmbedOptions(
        role=role.value,
        query=cast("QueryMode", query),
        batch_size=batch_size,
        dtype=dtype.value,
        device=device,
        num_threads=threads,
    )
    work = EmbedWork(model, options, model_options(model_option))
    shards = plan_shards(inputs, files_per_shard)
    crew.run(ShardJob(output, shards, work.identity()), work)
    say(f"{count(len(shards), 'shard')} of {role.value} embeddings with {model} -> {output}")
