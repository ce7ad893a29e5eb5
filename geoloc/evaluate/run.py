"""Evaluation in one call: match predictions with the truth, check leakage, score, write the report.

result = evaluate(read_points("truth.csv"), read_points("predictions.csv"), output="report/")
result.metrics["geoscore"]

benchmark = load_benchmark("im2gps3k", "datasets/im2gps3k")
evaluate_model(LocalizeWork("earthview", SessionOptions(), batch_size=16), benchmark, "report/")
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from geoloc.errors import ConfigError, NotFoundError
from geoloc.evaluate.benchmarks import Benchmark
from geoloc.evaluate.evaluation import BUILT_IN_BREAKDOWNS
from geoloc.evaluate.leakage import RADII_M, leakage_warnings
from geoloc.evaluate.matching import Matched, match
from geoloc.evaluate.pictures import FindImage, PredictionPicture, prediction_pictures
from geoloc.evaluate.report import EvaluationRun
from geoloc.evaluate.scoring import score
from geoloc.files.tables import PointTable, read_points
from geoloc.images.decode import IMAGE_SUFFIXES
from geoloc.jobs.shards import Engine
from geoloc.localize.job import LocalizeJob, images_per_shard
from geoloc.localize.rows import LocalizeWork
from geoloc.metrics.protocols import Protocol, get_protocol
from geoloc.photos.sources import file_payloads, name_shards

_IMAGES_PER_SHARD: Final = 256


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of an evaluation.

    Attributes:
        protocol: name of a protocol; None is the benchmark's own, or "geodesic".
        breakdowns: columns of the truth to break down by, besides country, continent and density.
        subset: ids to evaluate; None evaluates all.
        galleries: tables of training or gallery points to check for leakage.
        leakage_radii_m: radii of the leakage check.
        title: heading of the report.
        num_pictures: number of queries to draw beside their best candidates.
        only_wrong: draw only queries whose best candidate is wrong.
        reference_images: folder below which the keys of street references are files, for the pictures.
        engine: see `ShardJob.run`.
        num_workers: see `ShardJob.run`.

    Raises:
        ConfigError: an option of the pictures is set without `num_pictures`.
    """

    protocol: str | None = None
    breakdowns: Sequence[str] = ()
    subset: Sequence[str] | None = None
    galleries: Sequence[PointTable] = ()
    leakage_radii_m: Sequence[float] = RADII_M
    title: str | None = None
    num_pictures: int = 0
    only_wrong: bool = False
    reference_images: Path | None = None
    engine: Engine = "local"
    num_workers: int = 0

    def __post_init__(self) -> None:
        if not self.num_pictures and (self.only_wrong or self.reference_images is not None):
            raise ConfigError("--only-wrong and --reference-images need --pictures")

    def protocol_for(self, benchmark: Benchmark | None = None) -> Protocol:
        """The protocol to score by.

        Raises:
            ConfigError: no protocol has that name.
        """
        return get_protocol(self.protocol or (benchmark.protocol if benchmark else "geodesic"))

    def check_pictures(self, output: str | Path | None) -> None:
        """Check the options of the pictures before the work.

        Raises:
            ConfigError: there is no output or no folder of reference images.
            NotFoundError: the folder of reference images does not exist.
        """
        if self.num_pictures and (output is None or self.reference_images is None):
            raise ConfigError("--pictures needs --output and --reference-images")
        if self.reference_images is not None and not self.reference_images.is_dir():
            raise NotFoundError(
                f"there is no folder {self.reference_images} of reference images; check --reference-images"
            )


def evaluate(
    truth: PointTable | Benchmark,
    predictions: PointTable,
    options: EvaluateOptions | None = None,
    *,
    output: str | Path | None = None,
    images: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> EvaluationRun:
    """Score predictions against the truth and write the report.

    Args:
        truth: a table, or a benchmark with its images and database.
        predictions: rows for the same ids.
        options: see `EvaluateOptions`.
        output: folder of the report; None writes none.
        images: folder of the images of a table, for thumbnails of the largest errors.
        facts: lines for the report about how the predictions were made.

    Raises:
        ConfigError: an option is invalid, or a breakdown is no column of the truth.
        BadTableError: no image can be evaluated.
        OutputMismatchError: `output` holds other files.
        JobError: a shard could not be scored.
    """
    options, output = options or EvaluateOptions(), None if output is None else Path(output)
    options.check_pictures(output)
    benchmark = truth if isinstance(truth, Benchmark) else None
    table = benchmark.truth if benchmark else truth
    assert isinstance(table, PointTable)
    find_image = benchmark.find_image if benchmark else image_finder(images)
    protocol = options.protocol_for(benchmark)
    warnings, galleries = list(benchmark.warnings) if benchmark else [], []
    database_latlon_deg = benchmark.gallery_latlon_deg if benchmark else None
    if database_latlon_deg is not None:
        galleries.append(f"database of {table.path.name}, {len(database_latlon_deg):,} images")
    elif protocol.needs_positive:
        warnings.append(
            f"The protocol {protocol.name} leaves out queries without a positive; the locations of the database are "
            "not known here, so such queries count as misses."
        )
    matched = match(
        table,
        predictions,
        options.subset,
        database_latlon_deg=database_latlon_deg if protocol.needs_positive else None,
        within_m=min(protocol.recall_within_m),
    )
    for gallery in options.galleries:
        name = gallery.path.name
        galleries.append(name)
        warnings += leakage_warnings(
            matched.truth_latlon_deg, gallery.latlon_deg, name, options.leakage_radii_m
        )
    # Before the scoring, because missing photos are an error.
    pictures = _pictures(matched, protocol, options, find_image)
    with _scores_folder(output) as folder:
        evaluation = score(
            matched,
            protocol,
            list(dict.fromkeys([*BUILT_IN_BREAKDOWNS, *options.breakdowns])),
            folder=folder,
            engine=options.engine,
            num_workers=options.num_workers,
        )
        stated = ", ".join(galleries) or "not stated: add --gallery to check for leakage"
        run = EvaluationRun.of(
            matched,
            evaluation,
            warnings=warnings,
            facts={**(facts or {}), "gallery": stated},
            find_image=find_image,
        )
        if output is not None:
            title = options.title or f"{predictions.path.name} against {table.path.name}"
            run.write(output, title=title, pictures=pictures)
    return run


def evaluate_model(
    work: LocalizeWork,
    benchmark: Benchmark,
    output: str | Path,
    options: EvaluateOptions | None = None,
    *,
    run_job: Callable[[LocalizeJob], object] | None = None,
) -> EvaluationRun:
    """Localize a benchmark's images, then `evaluate` the predictions.

    The predictions stay in OUTPUT.predictions.parquet; finished images are not localized again.

    Args:
        work: the model and its options.
        benchmark: see `load_benchmark`.
        output: folder of the report.
        options: see `EvaluateOptions`; the benchmark's folder is the default of `reference_images`.
        run_job: runs the localization job; None runs it on the engine of the options.

    Raises:
        GeolocError: as `evaluate`, `LocalizeJob` and `LocalizeWork`.
        NotFoundError: the benchmark has no image.
    """
    options, output = options or EvaluateOptions(), Path(output)
    if options.num_pictures and options.reference_images is None:
        options = replace(options, reference_images=benchmark.folder)
    options.check_pictures(output)
    if not benchmark.images:
        raise NotFoundError(f"no image of {benchmark.name} was found in {benchmark.folder}")
    images = ((image.id, str(image.path)) for image in benchmark.images)
    shards = name_shards(file_payloads(images, images_per_shard(work.batch_size, _IMAGES_PER_SHARD)))
    path = output.with_name(f"{output.name}.predictions.parquet")
    with LocalizeJob(work, shards, path, resume=True) as job:
        if run_job is None:
            job.run(engine=options.engine, num_workers=options.num_workers)
        else:
            run_job(job)
        job.finish()
    return evaluate(benchmark, read_points(path), options, output=output, facts=_model_facts(work))


def image_finder(folder: str | Path | None) -> FindImage:
    """Function from an image id (a file name or relative path, with or without suffix) to its file below a folder."""
    if folder is None:
        return lambda image_id: None
    root = Path(folder)

    def find(image_id: str) -> Path | None:
        for suffix in ("", *IMAGE_SUFFIXES):
            path = root / f"{image_id}{suffix}"
            if path.is_file() and path.resolve().is_relative_to(root.resolve()):
                return path
        return None

    return find


def _pictures(
    matched: Matched, protocol: Protocol, options: EvaluateOptions, find_image: FindImage
) -> list[PredictionPicture]:
    if not options.num_pictures:
        return []
    return prediction_pictures(
        matched,
        protocol,
        options.num_pictures,
        only_wrong=options.only_wrong,
        find_image=find_image,
        find_reference=image_finder(options.reference_images),
    )


def _model_facts(work: LocalizeWork) -> dict[str, Any]:
    session = work.driver_session
    digest = session.database_identity
    return {
        "model": f"{session.name} ({session.model_identity[:12]})",
        "preprocessing of the model": str(session.preprocess),
        "query mode": session.options.query,
        "references": "none"
        if digest == "none"
        else f"{', '.join(session.options.reference)} ({digest[:12]})",
    }


@contextmanager
def _scores_folder(output: Path | None) -> Iterator[Path]:
    """Folder of the scoring job; it is kept if the block fails, so that the next call resumes."""
    if output is None:
        with TemporaryDirectory(prefix="geoloc-") as name:
            yield Path(name)
    else:
        folder = output.with_name(f".{output.name}.scores")
        yield folder
        shutil.rmtree(folder)
