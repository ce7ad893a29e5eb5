"""`geoloc evaluate`: score predictions, or a model on a benchmark, under a named protocol."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from geoloc.cli.console import check_folder, count, km, say
from geoloc.cli.model_options import ModelOption, model_options
from geoloc.cli.models import BatchSizeOption, DeviceOption, QueryOption, ReferenceOption
from geoloc.cli.shards import Crew, Engine, EngineOption, GpusOption, ThreadsOption, WorkersOption
from geoloc.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geoloc.batch.work import LocalizeWork
    from geoloc.data.tables import PointTable
    from geoloc.evaluate.benchmarks import Benchmark
    from geoloc.evaluate.pictures import PredictionPicture
    from geoloc.evaluate.report import EvaluationRun
    from geoloc.images.query import QueryMode
    from geoloc.metrics.protocols import Protocol

IMAGES_PER_SHARD = 256
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
    from geoloc.data.tables import Columns, read_points
    from geoloc.evaluate.leakage import RADII_M, leakage_warnings
    from geoloc.evaluate.matching import match
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
        _compare(
            read_points(truth, true_columns, remedy=TRUTH_REMEDY),
            tables,
            rules or get_protocol("geodesic"),
            wanted,
            output,
        )
        return
    crew = Crew(engine, workers, gpus_per_worker)
    facts: dict[str, Any] = {}
    warnings: list[str] = []
    database: NDArray[np.float64] | None = None
    if benchmark is not None:
        assert model is not None
        assert data is not None
        assert output is not None
        from geoloc.batch.work import LocalizeWork, WorkOptions
        from geoloc.evaluate.benchmarks import load_benchmark

        crew.check_device(device)
        options = WorkOptions(
            query=cast("QueryMode", query), batch_size=batch_size, device=device, num_threads=threads
        )
        found = load_benchmark(benchmark, data, split, utm_epsg=utm_epsg)
        rules = rules or get_protocol(found.protocol)
        warnings += found.warnings
        true_table, find_image = found.truth, found.find_image
        database = found.gallery_latlon_deg if rules.needs_positive else None
        top_k = top_k or (max(rules.recall_at) if rules.retrieval else 10)
        work = LocalizeWork(model, options, reference=reference, top_k=top_k, model_options=said)
        table = _localize(work, found, output, crew)
        facts = _facts_of(work)
        if found.gallery_latlon_deg is not None:
            facts["gallery"] = (
                f"database of {found.truth.path.name}, {len(found.gallery_latlon_deg):,} images"
            )
    else:
        assert predictions is not None
        assert truth is not None
        rules = rules or get_protocol("geodesic")
        true_table = read_points(truth, true_columns, remedy=TRUTH_REMEDY)
        table = read_points(predictions, columns, remedy=REMEDY)
        find_image = _finder(images)
    if rules.needs_positive and database is None:
        warnings.append(
            f"The protocol {rules.name} leaves out queries without a positive; where the database's images are is not "
            "known here, so they are misses."
        )
    radius_m = min(rules.recall_within_m)
    matched = match(true_table, table, wanted, database_latlon_deg=database, within_m=radius_m)
    for path in gallery or ():
        facts.setdefault("gallery", "")
        facts["gallery"] = ", ".join(filter(None, [facts["gallery"], path.name]))
        known = read_points(path, true_columns, remedy=TRUTH_REMEDY)
        warnings += leakage_warnings(
            matched.truth_latlon_deg, known.latlon_deg, path.name, leakage_within_m or RADII_M
        )

    shown: list[PredictionPicture] = []
    if photos is not None:  # before the scoring: it may have to be refused
        from geoloc.evaluate.pictures import prediction_pictures

        finders = {"find_image": find_image, "find_reference": _finder(photos)}
        shown = prediction_pictures(matched, rules, pictures, only_wrong=only_wrong, **finders)

    from geoloc.evaluate.evaluation import BUILT_IN_BREAKDOWNS
    from geoloc.evaluate.report import EvaluationRun
    from geoloc.evaluate.scoring import score

    facts.setdefault("gallery", "not stated: add --gallery to check for leakage")
    with _scores_folder(output) as scores:
        evaluation = score(
            matched,
            rules,
            list(dict.fromkeys([*BUILT_IN_BREAKDOWNS, *(breakdowns or ())])),
            folder=scores,
            engine=engine.value,
            num_workers=workers,
        )
        run = EvaluationRun.of(matched, evaluation, warnings=warnings, facts=facts, find_image=find_image)
        if output is not None:
            title = title or f"{table.path.name} against {true_table.path.name}"
            run.write(output, title=title, pictures=shown)
    _print(run, output)


@contextmanager
def _scores_folder(output: Path | None) -> Iterator[Path]:
    """Where the shards of the scoring lie until the report is there."""
    if output is None:
        with TemporaryDirectory(prefix="geoloc-") as name:
            yield Path(name)
    else:
        folder = output.with_name(f".{output.name}.scores")
        yield folder
        shutil.rmtree(folder)


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


def _finder(folder: Path | None) -> Any:
    """Images of a folder by ids that are names with or without the suffix, or paths in the folder."""
    if folder is None:
        return lambda image_id: None
    from geoloc.localize.inputs import IMAGE_SUFFIXES

    def find(image_id: str) -> Path | None:
        for suffix in ("", *IMAGE_SUFFIXES):
            path = folder / f"{image_id}{suffix}"
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                return path
        return None

    return find


def _localize(work: "LocalizeWork", benchmark: "Benchmark", output: Path, crew: Crew) -> "PointTable":
    """Predictions of a model for a benchmark's images; what an earlier run has done is not done again."""
    from geoloc.batch.sources import file_payloads, name_shards
    from geoloc.data.tables import read_shards
    from geoloc.jobs.shards import ShardJob

    if not benchmark.images:
        raise NotFoundError(f"no image of {benchmark.name} was found in {benchmark.truth.path}; check --data")
    payloads = file_payloads(((image.id, str(image.path)) for image in benchmark.images), IMAGES_PER_SHARD)
    folder = output.with_name(f"{output.name}.predictions")
    job = ShardJob(folder, name_shards(payloads), work.identity())
    crew.run(job, work)
    return read_shards(folder, [job.output(shard) for shard in job.shards])


def _facts_of(work: "LocalizeWork") -> dict[str, Any]:
    """What a report says of the model and of how it was asked."""
    asking = work.in_driver.asking
    return {
        "model": f"{asking.name} ({asking.model_identity[:12]})",
        "preprocessing of the model": str(asking.preprocess),
        "query mode": work.options.query,
        "references": "none" if asking.database == "none" else f"{work.reference} ({asking.database[:12]})",
    }


def _compare(
    truth: "PointTable",
    tables: "Sequence[PointTable]",
    protocol: "Protocol",
    subset: Sequence[str] | None,
    output: Path | None,
) -> None:
    from geoloc.evaluate.comparison import compare, to_markdown
    from geoloc.files import replace_folder, write_manifest

    compared = compare(truth, tables[0], tables[1], protocol, subset)
    text = to_markdown(compared)
    if output is not None:
        with replace_folder(output) as folder:
            (folder / "comparison.json").write_text(
                json.dumps(compared, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            (folder / "comparison.md").write_text(text, encoding="utf-8")
            write_manifest(folder, kind="comparison")
    for line in text.splitlines():
        say(line)


def _print(run: "EvaluationRun", output: Path | None) -> None:
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
    shares = [f"{share:.1%} within {radius} km" for radius, share in metrics["accuracy_within_km"].items()]
    shares += [
        f"{share:.1%} right {level.replace('_', '-')}"
        for level, share in metrics["accuracy_by_admin"].items()
    ]
    shares += [
        f"recall@{k} within {radius} m {share:.1%}"
        for radius, by_k in metrics["recall_at"].items()
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
