"""`geoloc evaluate score|benchmark|compare`: scores under a named protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from geoloc.cli.console import check_folder, count, km, new_app, radius, say
from geoloc.cli.jobs import Engine, EngineOption, GpusOption, ThreadsOption, Workers, WorkersOption
from geoloc.cli.model_options import ModelOption, model_options
from geoloc.cli.models import (
    BatchSizeOption,
    DeviceOption,
    QueryOption,
    ReferenceOption,
    StructureOption,
    reference_names,
)
from geoloc.cli.parsing import parse_renaming
from geoloc.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from geoloc.evaluate.report import EvaluationRun
    from geoloc.files.tables import PointTable
    from geoloc.images.query import QueryMode
    from geoloc.search.structures import Structure

evaluate_app = new_app(help="Score predictions, or a model on a benchmark, under a named protocol.")

ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="geodesic, osv5m, plonk, pigeon, geoclip, im2gps, yfcc, vpr-25m, cosplace, msls-740 or statewide; by "
        "default the benchmark's own, else geodesic.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Folder of the report: metrics.json, metrics.md, images.parquet, report.html."
    ),
]
ByOption = Annotated[
    list[str],
    typer.Option("--by", metavar="COLUMN", help="Break down by a column of the truth, too; repeatable."),
]
SubsetOption = Annotated[
    Path | None, typer.Option("--subset", help="Evaluate only the ids in this file, one a line.")
]
GalleryOption = Annotated[
    list[Path],
    typer.Option("--gallery", help="Table of training or gallery points to check for leakage; repeatable."),
]
LeakageOption = Annotated[
    list[float],
    typer.Option(
        "--leakage-within-m", help="Radius of the leakage check; repeatable; default 1, 25 and 1000."
    ),
]
PicturesOption = Annotated[
    int,
    typer.Option(
        "--pictures",
        min=0,
        metavar="N",
        help="Draw the first N queries beside their best candidates into the report; right ones framed green, wrong "
        "ones red.",
    ),
]
OnlyWrongOption = Annotated[
    bool, typer.Option("--only-wrong", help="Pictures only of queries whose best candidate is wrong.")
]
ReferenceImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--reference-images",
        metavar="DIR",
        help="Folder below which the keys of street references are files, for --pictures.",
    ),
]
ColumnOption = Annotated[
    list[str],
    typer.Option(
        "--column", metavar="OURS=THEIRS", help="Column name of a table, such as latitude=lat; repeatable."
    ),
]
TruthColumnOption = Annotated[
    list[str], typer.Option("--truth-column", metavar="OURS=THEIRS", help="The same for the truth.")
]
TruthOption = Annotated[
    Path, typer.Option("--truth", "-t", help="Table of the truth, perhaps with columns of place names.")
]
TitleOption = Annotated[str | None, typer.Option("--title", help="Heading of the report.")]


@evaluate_app.command("score")
def evaluate_score(
    predictions: Annotated[
        Path, typer.Option("--predictions", "-p", help="Table of predictions: .csv, .tsv or .parquet.")
    ],
    truth: TruthOption,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of the images, for thumbnails of the worst cases.")
    ] = None,
    column: ColumnOption = [],  # noqa: B006  typer copies it
    truth_column: TruthColumnOption = [],  # noqa: B006
    protocol: ProtocolOption = None,
    output: OutputOption = None,
    by: ByOption = [],  # noqa: B006
    subset: SubsetOption = None,
    gallery: GalleryOption = [],  # noqa: B006
    leakage_within_m: LeakageOption = [],  # noqa: B006
    pictures: PicturesOption = 0,
    only_wrong: OnlyWrongOption = False,
    reference_images: ReferenceImagesOption = None,
    title: TitleOption = None,
    engine: EngineOption = Engine.LOCAL,
    workers: WorkersOption = 0,
) -> None:
    """Score a table of predictions against a table of the truth.

    Rows without a valid position, doubled, missing and unknown rows are counted and listed.
    """
    from geoloc.evaluate.run import EvaluateOptions, evaluate

    if output is not None:
        check_folder(output)
    truth_columns = (truth_column, "--truth-column") if truth_column else (column, "--column")
    options = EvaluateOptions(
        protocol=protocol,
        breakdowns=by,
        subset=_read_subset(subset),
        galleries=[_read(path, *truth_columns) for path in gallery],
        num_pictures=pictures,
        only_wrong=only_wrong,
        reference_images=reference_images,
        title=title,
        engine=engine.value,
        num_workers=workers,
        **_leakage(leakage_within_m),
    )
    options.protocol_for()
    options.check_pictures(output)
    tables = _read(truth, *truth_columns), _read(predictions, column)
    _say_scores(evaluate(*tables, options, output=output, images=images), output)


@evaluate_app.command("benchmark")
def evaluate_benchmark(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A bundled model, a folder, a published file or a Hub id.")
    ],
    benchmark: Annotated[
        str,
        typer.Option(
            "--benchmark",
            "-b",
            help="osv5m, im2gps, im2gps3k, yfcc4k, yfcc26k, vg, msls-740, statewide, csv or folder.",
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Folder of the benchmark.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report.")],
    model_option: ModelOption = [],  # noqa: B006
    split: Annotated[
        str | None,
        typer.Option("--split", help="vg, msls-740: folder of the queries; test/queries by default."),
    ] = None,
    utm_epsg: Annotated[
        int | None,
        typer.Option("--utm-epsg", help="vg, msls-740: EPSG code for images whose names have no zone."),
    ] = None,
    reference: ReferenceOption = None,
    structure: StructureOption = "exact",
    query: QueryOption = "central_crop",
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Candidates per image; by default the protocol's recall, or 10."),
    ] = None,
    batch_size: BatchSizeOption = 16,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
    gpus_per_worker: GpusOption = 0.0,
    column: ColumnOption = [],  # noqa: B006
    protocol: ProtocolOption = None,
    by: ByOption = [],  # noqa: B006
    subset: SubsetOption = None,
    gallery: GalleryOption = [],  # noqa: B006
    leakage_within_m: LeakageOption = [],  # noqa: B006
    pictures: PicturesOption = 0,
    only_wrong: OnlyWrongOption = False,
    reference_images: ReferenceImagesOption = None,
    title: TitleOption = None,
    engine: EngineOption = Engine.LOCAL,
    workers: WorkersOption = 0,
) -> None:
    """Localize the images of a benchmark with a model and score the predictions.

    An interrupted run continues. The predictions are kept in OUTPUT.predictions.parquet. --column names the columns
    of --gallery; --reference-images is --data by default.
    """
    from geoloc.evaluate.benchmarks import load_benchmark
    from geoloc.evaluate.run import EvaluateOptions, evaluate_model
    from geoloc.localize.rows import LocalizeWork
    from geoloc.localize.session import SessionOptions

    check_folder(output)
    options = EvaluateOptions(
        protocol=protocol,
        breakdowns=by,
        subset=_read_subset(subset),
        galleries=[_read(path, column) for path in gallery],
        num_pictures=pictures,
        only_wrong=only_wrong,
        reference_images=reference_images,
        title=title,
        engine=engine.value,
        num_workers=workers,
        **_leakage(leakage_within_m),
    )
    crew = Workers(engine, workers, gpus_per_worker)
    crew.check_device(device)
    found = load_benchmark(benchmark, data, split, utm_epsg=utm_epsg)
    rules = options.protocol_for(found)
    work = LocalizeWork(
        model,
        SessionOptions(
            query=cast("QueryMode", query),
            reference=reference_names(reference),
            structure=cast("Structure", structure),
            top_k=top_k or (max(rules.recall_at) if rules.retrieval else 10),
        ),
        batch_size=batch_size,
        device=device,
        num_threads=threads,
        model_options=model_options(model_option),
    )
    _say_scores(evaluate_model(work, found, output, options, run_job=crew.run_localize), output)


@evaluate_app.command("compare")
def evaluate_compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Table of predictions.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Table of predictions for the same images.")],
    truth: TruthOption,
    column: ColumnOption = [],  # noqa: B006
    truth_column: TruthColumnOption = [],  # noqa: B006
    protocol: ProtocolOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for comparison.json and comparison.md.")
    ] = None,
    subset: SubsetOption = None,
) -> None:
    """Compare two tables of predictions: differences B - A with paired bootstrap intervals."""
    from geoloc.evaluate.comparison import compare, to_markdown, write_comparison
    from geoloc.metrics.protocols import get_protocol

    if output is not None:
        check_folder(output)
    rules, ids = get_protocol(protocol or "geodesic"), _read_subset(subset)
    tables = _read(a, column), _read(b, column)
    truth_columns = (truth_column, "--truth-column") if truth_column else (column, "--column")
    compared = compare(_read(truth, *truth_columns), *tables, rules, ids)
    if output is not None:
        write_comparison(compared, output)
    for line in to_markdown(compared).splitlines():
        say(line)


def _leakage(radii_m: Sequence[float]) -> dict[str, Any]:
    return {"leakage_radii_m": radii_m} if radii_m else {}


def _read(path: Path, renamed: Sequence[str], option: str = "--column") -> "PointTable":
    """A table of points whose columns were renamed by OURS=THEIRS texts."""
    from geoloc.files.tables import Columns, read_points

    names = dict(map(parse_renaming, renamed))
    if unknown := names.keys() - {"id", "latitude", "longitude"}:
        raise ConfigError(f"{option} names {min(unknown)!r}; expected id, latitude or longitude")
    return read_points(path, Columns(**names), remedy=f"name the right one with {option} {{}}=NAME")


def _read_subset(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    if not path.is_file():
        raise NotFoundError(f"there is no file {path} of ids; check the path")
    return [line for line in path.read_text("utf-8").splitlines() if line]


def _say_scores(run: "EvaluationRun", output: Path | None) -> None:
    """Print the scores, problems and warnings."""
    metrics = run.metrics
    low, high = metrics["intervals"]["geoscore"]
    facts = [
        f"protocol {metrics['protocol']}",
        count(metrics["num_images"], "image"),
        f"GeoScore {metrics['geoscore']:,.1f} ({low:,.0f} to {high:,.0f})",
        f"median {km(metrics['median_km']) or 'none'}",
        f"mean {km(metrics['mean_km']) or 'none'}",
    ]
    say(", ".join(facts))
    shares = [f"{share:.1%} within {radius(float(r))}" for r, share in metrics["accuracy_within_km"].items()]
    shares += [
        f"{share:.1%} right {level.replace('_', '-')}"
        for level, share in metrics["accuracy_by_admin"].items()
    ]
    shares += [
        f"recall@{k} within {radius(float(r) / 1000)} {share:.1%}"
        for r, by_k in metrics["recall_at"].items()
        for k, share in by_k.items()
    ]
    say(", ".join(shares))
    for name, problem in metrics["problems"].items():
        examples = ", ".join(problem["examples"][:3])
        say(f"{problem['count']:,} {name.replace('_', ' ')}: {problem['meaning']} (for example {examples})")
    for warning in metrics["warnings"]:
        say(f"warning: {warning}")
    if output is not None:
        say(f"-> {output / 'report.html'}")
