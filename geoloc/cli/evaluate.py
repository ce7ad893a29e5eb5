"""`geoloc evaluate`: score predictions, or a model on a benchmark, under a named protocol."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from geoloc.cli.console import check_folder
from geoloc.cli.evaluate_ways import Case, compare_tables, finder, localized_case, say_scores, scores_folder
from geoloc.cli.jobs import Engine, EngineOption, GpusOption, ThreadsOption, Workers, WorkersOption
from geoloc.cli.model_options import ModelOption, model_options
from geoloc.cli.models import BatchSizeOption, DeviceOption, QueryOption, ReferenceOption
from geoloc.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from geoloc.evaluate.pictures import PredictionPicture
    from geoloc.images.query import QueryMode

REMEDY, TRUTH_REMEDY = (f"name the right one with --{of}{{}}-column" for of in ("", "truth-"))


def evaluate(
    predictions: Annotated[
        Path | None, typer.Option("--predictions", "-p", help="Table of predictions: .csv, .tsv or .parquet.")
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option("--truth", "-t", help="Table of the truth; it may have columns of place names."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Evaluate a model: a bundled one, a folder, a file of others or a Hub id."
        ),
    ] = None,
    model_option: ModelOption = [],  # noqa: B006  typer copies it
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            "-b",
            help="osv5m, im2gps, im2gps3k, yfcc4k, yfcc26k, vg, msls-740, statewide, csv or folder.",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Where the benchmark lies.")] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="vg, msls-740: the folder of the queries; test/queries by default."),
    ] = None,
    utm_epsg: Annotated[
        int | None,
        typer.Option(
            "--utm-epsg", help="vg, msls-740: EPSG code of the zone of images that do not say theirs."
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Two tables of predictions: what B gains over A."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="geodesic, osv5m, plonk, pigeon, geoclip, im2gps, yfcc, vpr-25m, cosplace, msls-740 or "
            "statewide; geodesic, or the benchmark's own, if none is named.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the report: metrics.json, metrics.md, images.parquet, report.html.",
        ),
    ] = None,
    breakdowns: Annotated[
        list[str] | None,
        typer.Option(
            "--by", help="Break down by country, continent, density or a column of the truth; repeatable."
        ),
    ] = None,
    subset: Annotated[
        Path | None, typer.Option("--subset", help="Evaluate only the ids in this file, one a line.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Folder of the images, for the pictures of the worst cases."),
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(
            "--pictures",
            min=0,
            metavar="N",
            help="Write pictures of the first N queries beside their best candidates, right ones framed green, wrong "
            "ones red; they are in the report's folder.",
        ),
    ] = 0,
    only_wrong: Annotated[
        bool, typer.Option("--only-wrong", help="Pictures only of queries whose best candidate is wrong.")
    ] = False,
    reference_images: Annotated[
        Path | None,
        typer.Option(
            "--reference-images",
            metavar="DIR",
            help="Folder below which the keys of street references are files, for --pictures; --data by default.",
        ),
    ] = None,
    gallery: Annotated[
        list[Path] | None,
        typer.Option(
            "--gallery", help="Table of training or gallery points to check for leakage; repeatable."
        ),
    ] = None,
    leakage_within_m: Annotated[
        list[float] | None, typer.Option(help="Radii of the leakage check in metres; 1, 25 and 1000 if none.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="Column of ids.")] = "id",
    latitude_column: Annotated[str, typer.Option(help="Column of latitudes, degrees.")] = "latitude",
    longitude_column: Annotated[str, typer.Option(help="Column of longitudes, degrees.")] = "longitude",
    truth_id_column: Annotated[str | None, typer.Option(help="The same in the truth, if it differs.")] = None,
    truth_latitude_column: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    truth_longitude_column: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the report.")] = None,
    reference: ReferenceOption = "own",
    query: QueryOption = "central_crop",
    batch_size: BatchSizeOption = 16,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            help="Candidates of each image; as many as the protocol's recall asks for, or 10.",
        ),
    ] = None,
    engine: EngineOption = Engine.LOCAL,
    workers: WorkersOption = 0,
    gpus_per_worker: GpusOption = 0.0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
) -> None:
    """Score predictions under a named protocol, and say everything that a reader of the numbers must know.

    Three ways: --predictions with --truth; --model with --benchmark and --data; --compare A B with --truth.
    Rows that do not fit (no position, out of range, doubled, missing, unknown) are counted and named. Localising
    and scoring are shard jobs; an interrupted run continues. A model's predictions are kept beside the report, in
    OUTPUT.predictions/.
    """
    from geoloc.files.tables import Columns, read_points
    from geoloc.metrics.protocols import get_protocol

    _check_ways(predictions, truth, model, benchmark, data, compare, output)
    if not pictures and (only_wrong or reference_images is not None):
        raise ConfigError(
            "--only-wrong and --reference-images are about pictures: say how many by --pictures"
        )
    photos = _photos_folder(reference_images or data, output) if pictures else None
    if benchmark is None and (reference, query) != ("own", "central_crop"):
        raise ConfigError(
            "--reference and --query are about a model: name one with --model, and a --benchmark"
        )
    said = model_options(model_option)
    if benchmark is None and said:
        raise ConfigError("--model-option is about a model: name one with --model, and a --benchmark")
    if benchmark is None and (split is not None or utm_epsg is not None):
        raise ConfigError("--split and --utm-epsg are about a --benchmark")
    rules = get_protocol(protocol) if protocol else None
    columns = Columns(id=id_column, latitude=latitude_column, longitude=longitude_column)
    true_columns = Columns(
        id=truth_id_column or id_column,
        latitude=truth_latitude_column or latitude_column,
        longitude=truth_longitude_column or longitude_column,
    )
    wanted = _read_subset(subset)
    if compare is not None:
        assert truth is not None
        tables = [read_points(path, columns, remedy=REMEDY) for path in compare]
        compare_tables(
            read_points(truth, true_columns, remedy=TRUTH_REMEDY),
            tables,
            rules or get_protocol("geodesic"),
            wanted,
            output,
        )
        return
    crew = Workers(engine, workers, gpus_per_worker)
    if benchmark is not None:
        assert model is not None
        assert data is not None
        assert output is not None
        from geoloc.evaluate.benchmarks import load_benchmark
        from geoloc.localize.rows import LocalizeWork
        from geoloc.localize.session import SessionOptions

        crew.check_device(device)
        found = load_benchmark(benchmark, data, split, utm_epsg=utm_epsg)
        rules = rules or get_protocol(found.protocol)
        top_k = top_k or (max(rules.recall_at) if rules.retrieval else 10)
        options = SessionOptions(query=cast("QueryMode", query), reference=reference, top_k=top_k)
        work = LocalizeWork(
            model, options, batch_size=batch_size, device=device, num_threads=threads, model_options=said
        )
        case = localized_case(work, found, rules, output, crew)
    else:
        assert predictions is not None
        assert truth is not None
        case = Case(
            read_points(truth, true_columns, remedy=TRUTH_REMEDY),
            read_points(predictions, columns, remedy=REMEDY),
            rules or get_protocol("geodesic"),
            finder(images),
        )
    matched = case.match(wanted)
    for path in gallery or ():
        case.check_leakage(matched, read_points(path, true_columns, remedy=TRUTH_REMEDY), leakage_within_m)

    shown: list[PredictionPicture] = []
    if photos is not None:  # before the scoring: it may have to be refused
        from geoloc.evaluate.pictures import prediction_pictures

        finders = {"find_image": case.find_image, "find_reference": finder(photos)}
        shown = prediction_pictures(matched, case.protocol, pictures, only_wrong=only_wrong, **finders)

    with scores_folder(output) as folder:
        run = case.score(matched, breakdowns or (), folder, engine.value, workers)
        if output is not None:
            title = title or f"{case.predictions.path.name} against {case.truth.path.name}"
            run.write(output, title=title, pictures=shown)
    say_scores(run, output)


def _check_ways(
    predictions: Path | None,
    truth: Path | None,
    model: str | None,
    benchmark: str | None,
    data: Path | None,
    compare: tuple[Path, Path] | None,
    output: Path | None,
) -> None:
    ways = {
        "--predictions": predictions is not None,
        "--benchmark": benchmark is not None,
        "--compare": compare is not None,
    }
    if sum(ways.values()) != 1:
        given = ", ".join(name for name, is_given in ways.items() if is_given) or "none of them"
        raise ConfigError(
            "say what to evaluate, by one of --predictions P --truth T, --model M --benchmark B --data DIR, and "
            f"--compare A B --truth T; found {given}"
        )
    if benchmark is None and truth is None:
        raise ConfigError("predictions are compared with a truth: add --truth")
    if benchmark is not None and (model is None or data is None or output is None):
        raise ConfigError(
            "--benchmark needs --model, --data (where it lies) and --output (where the report goes)"
        )
    if output is not None:
        check_folder(output)


def _read_subset(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    if not path.is_file():
        raise NotFoundError(f"there is no file {path} of ids; check the path")
    return [line for line in path.read_text("utf-8").splitlines() if line]


def _photos_folder(folder: Path | None, output: Path | None) -> Path:
    """Where photos of references are, for pictures in the report."""
    if output is None or folder is None:
        raise ConfigError(
            "--pictures needs --output, where the report goes, and --reference-images, the folder of the photos"
        )
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder} of references' photos; check --reference-images")
    return folder
