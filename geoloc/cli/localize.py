"""`geoloc localize`: predicted locations of images, as a table, a map and a summary."""

import statistics
import sys
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from geoloc.cli.console import EXIT_INTERRUPTED, EXIT_SOME_FAILED, check_file, count, km, printable, say
from geoloc.cli.jobs import Engine, EngineOption, GpusOption, Workers, WorkersOption
from geoloc.cli.model_options import ModelOption, model_options
from geoloc.cli.models import (
    BatchSizeOption,
    DeviceOption,
    MaxPrecisionOption,
    QueryOption,
    ReferenceOption,
    StructureOption,
    TopKOption,
    reference_names,
)
from geoloc.errors import BadImageError, ConfigError

if TYPE_CHECKING:
    from geoloc.images.query import QueryMode
    from geoloc.localize.job import LocalizeJob
    from geoloc.localize.rows import LocalizeWork
    from geoloc.localize.table import Row
    from geoloc.search.structures import Structure
    from geoloc.view.map_html import MapPoint

FEW_IMAGES = 20  # rows of a printed table when the predictions are also saved
MAX_MAP_IMAGES = 20_000  # points that a browser can draw


def localize(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Images, folders (searched with all below them), quoted patterns such as 'photos/**/*.jpg', .tar of "
            "webdataset, .parquet with columns id and image, URLs of any of these, or - for a list of paths on "
            "standard input.",
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A bundled model, a folder, a published file or a Hub id.")
    ] = "earthview",
    model_option: ModelOption = [],  # noqa: B006  typer copies it
    reference: ReferenceOption = None,
    structure: StructureOption = "exact",
    query: QueryOption = "central_crop",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Table of predictions: .csv, .geojson or .parquet."),
    ] = None,
    map_path: Annotated[
        Path | None,
        typer.Option(
            "--map",
            help="Map of the predictions: one .html file that needs no network; replaced if it exists. Made again "
            "from a finished table, it has no heatmaps of the posteriors.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the job of this output where it was stopped.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    batch_size: BatchSizeOption = 16,
    top_k: TopKOption = 5,
    utility: Annotated[
        str | None,
        typer.Option(
            metavar="geoscore|median|within:25km",
            help="What the point shall maximise: the expected GeoScore, closeness to the truth, or the "
            "chance to lie within so many km of it. The model's own if none is named: geoscore, or within:0.025km "
            "where its answers are places of references alone.",
        ),
    ] = None,
    abstain_above_km: Annotated[
        float | None,
        typer.Option(metavar="KM", help="Mark predictions with a larger 90 % radius as abstained."),
    ] = None,
    max_precision_km: MaxPrecisionOption = None,
    truth_from_exif: Annotated[
        bool,
        typer.Option(
            "--truth-from-exif",
            help="Compare with the GPS position in the photos' EXIF. The model never sees it.",
        ),
    ] = False,
    engine: EngineOption = Engine.LOCAL,
    workers: WorkersOption = 0,
    gpus_per_worker: GpusOption = 0.0,
    device: DeviceOption = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="CPU threads of the network, and as many that decode images; of each worker, 1 if not given.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar and no table; only the summary.")
    ] = False,
) -> None:
    """Predict where images were taken.

    An image that cannot be read gets a row with its error; the others are localised. The id in a table is the image's
    path inside the folder if PATH is one folder, and else the path as given; in a tar, the sample's key. Rows are in
    the order of the arguments, inside a folder sorted by path. Exit code: 0 all localised, 1 some images failed,
    2 error, 130 interrupted.
    """
    from geoloc.localize.job import LocalizeJob, check_output, images_per_shard
    from geoloc.localize.rows import LocalizeWork
    from geoloc.localize.session import SessionOptions
    from geoloc.photos.sources import plan_shards

    # Options are checked before a model is loaded.
    options = SessionOptions(
        query=cast("QueryMode", query),
        reference=reference_names(reference),
        structure=cast("Structure", structure),
        top_k=top_k,
        utility=utility,
        abstain_above_km=abstain_above_km,
        max_precision_km=max_precision_km,
    )
    crew = Workers(engine, workers, gpus_per_worker)
    in_this_process = engine is Engine.LOCAL and workers == 0
    work = LocalizeWork(
        model,
        options,
        batch_size=batch_size,
        truth_from_exif=truth_from_exif,
        device=device,
        num_threads=threads if in_this_process else threads or 1,
        model_options=model_options(model_option),
    )
    if output is not None:
        check_output(output, resume=resume, overwrite=overwrite)
    elif resume or overwrite:
        raise ConfigError(f"{'--resume' if resume else '--overwrite'} is about an output: add --output")
    if map_path is not None:
        check_file(map_path, [".html"])
    listed = sys.stdin.buffer if "-" in paths else ()
    shards = plan_shards(paths, images_per_shard(batch_size), listed=listed, cut_tars=True)
    job: LocalizeJob | None = None
    try:
        if device != "cpu":  # an exported model on the CPU runs without torch
            crew.check_device(device)
        with LocalizeJob(work, shards, output, resume=resume, overwrite=overwrite) as job:
            was_complete, num_before = job.is_complete, job.num_done
            took_s = crew.run_localize(job, num_before, quiet=quiet)
            summary = _Summary(job.rows())
            if map_path is not None:
                _write_map(map_path, job, work, summary)
            job.finish()
            if not quiet and (summary.num_rows <= FEW_IMAGES or (output is None and map_path is None)):
                _print_table(job.rows(), truth=truth_from_exif)
    except KeyboardInterrupt:
        say(f"interrupted{_ways_on(job, output)}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    total = count(summary.num_rows, "image")
    found = f"{summary.num_rows - summary.num_failed:,} of " if summary.num_failed else ""
    facts = [f"{found}{total} localised with {work.driver_session.name}"]
    if was_complete:
        facts = [f"already complete: {total}"]
    elif num_before:
        facts.append(f"{summary.num_rows - num_before:,} of them now")
    if not was_complete:
        facts.append(f"{took_s:.1f} s")
    say(", ".join([*facts, *summary.facts()]) + _arrow_to(output, map_path))
    if summary.num_failed:
        raise typer.Exit(EXIT_SOME_FAILED)


class _Summary:
    """Summary of a table in one line."""

    def __init__(self, rows: "Iterable[Row]") -> None:
        self.num_failed = self.num_abstained = self.num_with_radii = self.num_rows = 0
        self.distances_km = array("d")
        for row in rows:
            self.num_failed += row["error"] is not None
            self.num_abstained += row["abstained"] is True
            self.num_with_radii += row["radius_90_km"] is not None
            self.num_rows += 1
            if row.get("distance_km") is not None:
                self.distances_km.append(row["distance_km"])

    def facts(self) -> Iterator[str]:
        """Short phrases."""
        if self.num_failed:
            yield f"{self.num_failed:,} failed"
        if self.num_abstained:
            yield f"{self.num_abstained:,} abstained"
        if self.num_rows > self.num_failed and not self.num_with_radii:
            yield "no radii (nothing was calibrated)"
        if self.distances_km:
            median = statistics.median(self.distances_km)
            yield (
                f"median error {km(median)} over {count(len(self.distances_km), 'image')} with a position "
                "in EXIF (for evaluation only, the model does not see it)"
            )


def _ways_on(job: "LocalizeJob | None", output: Path | None) -> str:
    from geoloc.localize.job import num_done_on_disk

    num_done = 0 if output is None else num_done_on_disk(output)
    if not num_done:
        return ": nothing was saved"
    total = "" if job is None or job.num_images is None else f" of {job.num_images:,}"
    return f": {num_done:,}{total} images are done; the same command with --resume continues"


def _arrow_to(*paths: Path | None) -> str:
    written = ", ".join(str(path) for path in paths if path is not None)
    return f" -> {written}" if written else ""


def _print_table(rows: "Iterable[Row]", *, truth: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("image", overflow="fold", max_width=60)
    for heading in ("latitude", "longitude"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("place", overflow="fold", max_width=44)
    for heading in ("probability", "50 % within", "90 % within", *(["off by"] if truth else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name = Text(printable(row["id"]))
        if row["error"] is not None:
            table.add_row(name, "", "", Text(f"error: {printable(row['error'])}", style="red"))
            continue
        numbers = [f"{row['latitude']:.4f}", f"{row['longitude']:.4f}"]
        radii = [km(row[column]) for column in ("radius_50_km", "radius_90_km")]
        errors = [km(row["distance_km"])] if truth else []
        place = Text(("(abstained) " if row["abstained"] else "") + (row["place"] or ""))
        table.add_row(name, *numbers, place, f"{row['probability']:.0%}", *radii, *errors)
    # What is piped into a file is not cut to the width of a terminal that nobody looks at.
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def _write_map(path: Path, job: "LocalizeJob", work: "LocalizeWork", summary: _Summary) -> None:
    from geoloc.view.map_html import write_map

    num_shown = min(summary.num_rows, MAX_MAP_IMAGES)
    session = work.driver_session
    note = f"Model {session.name} ({session.fingerprint[:12]})."
    if num_shown < summary.num_rows:
        note += f" The first {num_shown:,} of {summary.num_rows:,} images."
    if summary.distances_km:
        note += " Truth: the position in the photos' EXIF, which the model does not see."
    title = f"Predicted places of {count(num_shown, 'image')}"
    write_map(path, islice(_map_points(job), num_shown), title=title, note=note)


def _map_points(job: "LocalizeJob") -> "Iterator[MapPoint]":
    from geoloc.view.map_html import MAX_THUMBNAILS
    from geoloc.view.prediction_map import point_of_row, thumbnail_jpeg

    num_thumbnails = 0
    for image, row in zip(job.images(), job.rows(), strict=True):
        thumbnail = None
        if row["error"] is None and num_thumbnails < MAX_THUMBNAILS:
            with suppress(BadImageError):  # it can no longer be read
                thumbnail = thumbnail_jpeg(image.read())
        num_thumbnails += thumbnail is not None
        yield point_of_row(row, thumbnail)
