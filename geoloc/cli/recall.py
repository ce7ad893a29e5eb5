"""`geoloc recall`: recall@k of place recognition, every query against every photo of the database."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from geoloc.cli.console import check_folder, count, say
from geoloc.cli.jobs import Engine, EngineOption, GpusOption, ThreadsOption, Workers, WorkersOption
from geoloc.cli.model_options import ModelOption, model_options
from geoloc.cli.models import BatchSizeOption, DeviceOption, QueryOption, StructureOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geoloc.images.query import QueryMode
    from geoloc.localize.embed import EmbedWork

IMAGES_PER_SHARD = 256


class WithoutPositive(str, Enum):
    """Handling of a query that has no positive in the database."""

    LEFT_OUT = "left-out"
    MISS = "miss"


def recall(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder with images/test/queries and database of @UTM@ names; or, with --set, of .npy files.",
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A bundled model, a folder, a published file or a Hub id.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the report: metrics.json, metrics.md, queries.parquet."
        ),
    ],
    model_option: ModelOption = [],  # noqa: B006  typer copies it
    name: Annotated[
        str | None,
        typer.Option(
            "--set",
            metavar="NAME",
            help="A set that says itself what is right: pitts30k_test, msls_val, SPED, ….",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="With --set, the folder of the photos; DATA by default.")
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Without --set, the folder of the queries; database is beside it.")
    ] = "test/queries",
    radius_m: Annotated[
        float, typer.Option("--radius-m", help="Without --set, within which a photo is right.")
    ] = 25.0,
    utm_epsg: Annotated[
        int | None,
        typer.Option("--utm-epsg", help="Without --set, the zone of images that do not say theirs."),
    ] = None,
    at: Annotated[
        list[int] | None, typer.Option("--at", help="k of recall@k; repeatable; 1, 5, 10, 20.")
    ] = None,
    without_positive: Annotated[
        WithoutPositive,
        typer.Option(
            "--without-positive",
            help="Queries without any right photo are left out (Deep VG benchmark), or a miss (CosPlace).",
        ),
    ] = WithoutPositive.LEFT_OUT,
    structure: StructureOption = "exact",
    query: QueryOption = "central_crop",
    batch_size: BatchSizeOption = 16,
    engine: EngineOption = Engine.LOCAL,
    workers: WorkersOption = 0,
    gpus_per_worker: GpusOption = 0.0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
) -> None:
    """Recall@k of a model's embeddings: every query against every photo of the database.

    Embeddings are kept beside the report, in OUTPUT.embeddings/: an interrupted run continues, and a run
    with other counting options reuses them.
    """
    from geoloc.evaluate.recall_set import RecallRules, open_recall_set, score_recall_set, write_recall_report
    from geoloc.localize.embed import EmbedOptions, EmbedWork
    from geoloc.search.structures import check_structure

    check_folder(output)
    searched_by = check_structure(structure)
    rules = RecallRules(
        tuple(at or RecallRules.at), "miss" if without_positive is WithoutPositive.MISS else "left_out"
    )
    crew = Workers(engine, workers, gpus_per_worker)
    crew.check_device(device)
    found = open_recall_set(data, name, images=images, split=split, radius_m=radius_m, utm_epsg=utm_epsg)
    options = EmbedOptions(
        query=cast("QueryMode", query),
        batch_size=batch_size,
        dtype="float32",
        device=device,
        num_threads=threads,
    )
    work = EmbedWork(model, options, model_options(model_option))
    vectors, problems = _embed(work, [*found.database, *found.queries], output, crew)
    report = score_recall_set(
        found, vectors[: len(found.database)], vectors[len(found.database) :], rules, searched_by
    )
    known = work.on_cpu.embedder
    facts = {
        "model": f"{known.name} ({known.identity[:12]})",
        "embedding": f"{known.embedding_dim:,} numbers",
        "preprocessing": str(known.preprocess),
        "query mode": query,
    }
    write_recall_report(report, found, output, facts)
    for path, reason in problems[:3]:
        say(f"{path}: {reason}")
    if len(problems) > 3:
        say(f"{len(problems) - 3:,} more could not be read")
    metrics = report.metrics
    shares = [f"recall@{k} {share:.1%}" for k, share in metrics["recall_at"].items()]
    say(
        f"{metrics['set']}: {', '.join(shares)} of {metrics['num_queries']:,} queries, "
        f"{count(metrics['num_database'], 'photo')} in the database, {metrics['num_without_positive']:,} queries "
        f"without a right one ({rules.without_positive.replace('_', ' ')})"
    )
    say(f"-> {output / 'metrics.md'}")


def _embed(
    work: "EmbedWork", paths: list[str], output: Path, crew: Workers
) -> "tuple[NDArray[np.float32], list[tuple[str, str]]]":
    """Unit vectors (n, D), NaN for photos that cannot be read; and these photos with their errors."""
    import numpy as np
    import pyarrow.parquet as pq

    from geoloc.jobs.shards import ShardJob
    from geoloc.photos.sources import file_payloads, name_shards

    payloads = file_payloads(((path, path) for path in paths), IMAGES_PER_SHARD)
    job = ShardJob(output.with_name(f"{output.name}.embeddings"), name_shards(payloads), work.identity())
    crew.run(job, work)
    vectors = np.full((len(paths), work.on_cpu.embedder.embedding_dim), np.nan, np.float32)
    problems: list[tuple[str, str]] = []
    start = 0
    for shard in job.shards:
        table = pq.read_table(job.output(shard))
        rows = start + np.flatnonzero(table["embedding"].is_valid())
        flat = table["embedding"].combine_chunks().drop_null().flatten().to_numpy(zero_copy_only=False)
        vectors[rows] = flat.reshape(len(rows), vectors.shape[1])
        failed = table.filter(table["error"].is_valid())
        problems += zip(failed["id"].to_pylist(), failed["error"].to_pylist(), strict=True)
        start += len(table)
    return vectors, problems
