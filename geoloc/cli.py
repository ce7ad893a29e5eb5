"""The command `geoloc`. It parses, calls the library and prints; heavy packages are loaded by the commands.

Exit codes: 0 all is well, 1 some images failed (their rows say why), 2 the command could not be carried out,
130 it was interrupted.
"""

import statistics
import sys
import time
import traceback
from array import array
from collections.abc import Iterable, Iterator
from enum import Enum
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from geoloc import __version__
from geoloc.errors import BadImageError, ConfigError, GeolocError, NotFoundError, OutputMismatchError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geoloc.localize.batch import LocalizeJob
    from geoloc.localize.geolocalizer import Geolocalizer
    from geoloc.localize.output import Row
    from geoloc.view.map_html import MapPoint
    from quadtree import Quadtree

EXIT_SOME_FAILED, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130

FEW_IMAGES = 20  # for a table on the screen, where the predictions are also saved
MAX_MAP_IMAGES = 20_000  # a browser copes with so many
THUMBNAIL_PX = 160

app = typer.Typer(
    name="geoloc",
    help="Image geolocation: a photo goes in, coordinates with a calibrated uncertainty come out.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would take longer to load than all the rest of --help
    pretty_exceptions_enable=False,
)
quadtree_app = typer.Typer(
    help="Build, inspect and draw quadtrees.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(quadtree_app, name="quadtree")


class _Root(str, Enum):
    WORLD = "world"
    DATA = "data"


class _Settings:
    """What the options before the command have set."""

    debug = False


def main() -> None:
    """Run the command; a deliberate error is one line on stderr, any other is a bug with its traceback."""
    try:
        app()
    except Exception as error:
        if _Settings.debug or not _is_deliberate(error):
            traceback.print_exc()
        else:
            _say(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_ERROR)


def _is_deliberate(error: Exception) -> bool:
    from quadtree.errors import QuadtreeError

    return isinstance(error, GeolocError | QuadtreeError | OSError)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        named = "" if error.filename is None else f": {error.filename}"
        return f"{error.strerror}{named}"
    return str(error)


def _printable(text: str) -> str:
    """Text that cannot steer a terminal, whatever a file is called."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"geoloc {__version__}")
        raise typer.Exit


@app.callback()
def _geoloc(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    _Settings.debug = debug


# --- localize ---------------------------------------------------------------------------------------------


@app.command()
def localize(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Images, folders (searched with all below them), quoted patterns such as 'photos/**/*.jpg', "
            "or - for a list of paths on standard input.",
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A bundled model, a folder or a Hub id.")
    ] = "earthview",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Table of predictions: .csv, .geojson or .parquet."),
    ] = None,
    map_path: Annotated[
        Path | None,
        typer.Option(
            "--map",
            help="Map of the predictions: one .html file that needs no network; replaced if it exists.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the job of this output where it was stopped.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the network together.")] = 16,
    top_k: Annotated[int, typer.Option(min=1, help="Number of candidates for each image.")] = 5,
    utility: Annotated[
        str,
        typer.Option(
            metavar="geoscore|median|within:25km",
            help="What the point shall maximise: the expected GeoScore, closeness to the truth, or the "
            "chance to lie within so many km of it.",
        ),
    ] = "geoscore",
    abstain_above_km: Annotated[
        float | None,
        typer.Option(metavar="KM", help="Mark predictions with a larger 90 % radius as abstained."),
    ] = None,
    truth_from_exif: Annotated[
        bool,
        typer.Option(
            "--truth-from-exif",
            help="Compare with the GPS position in the photos' EXIF. The model never sees it.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, …")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the network, and as many that decode images.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar and no table; only the summary.")
    ] = False,
) -> None:
    """Say where images were taken.

    An image that cannot be read gets a row with its error and stops nothing. The id in a table is the image's
    path inside the folder if PATH is one folder, and else the path as given; rows are in the order of the
    arguments, inside a folder sorted by path. Exit code: 0 all localised, 1 some images failed, 2 error,
    130 interrupted.
    """
    from geoloc.localize.batch import LocalizeJob, LocalizeOptions, check_output
    from geoloc.localize.inputs import find_images

    # All that can be refused is refused before a model is loaded.
    options = LocalizeOptions(
        batch_size=batch_size,
        top_k=top_k,
        utility=utility,
        abstain_above_km=abstain_above_km,
        truth_from_exif=truth_from_exif,
    )
    if output is not None:
        check_output(output, resume=resume, overwrite=overwrite)
    elif resume or overwrite:
        raise ConfigError(f"{'--resume' if resume else '--overwrite'} is about an output: add --output")
    if map_path is not None:
        _check_file(map_path, [".html"])
    images = find_images(paths, sys.stdin.buffer if "-" in paths else ())
    job: LocalizeJob | None = None
    try:
        geolocalizer = _load_model(model, device, threads)
        with LocalizeJob(
            geolocalizer, images, output, options, resume=resume, overwrite=overwrite, num_threads=threads
        ) as job:
            was_complete, num_before = job.is_complete, job.num_done
            took_s = _run(job, quiet)
            summary = _Summary(job.rows())
            if map_path is not None:
                _write_map(map_path, job, geolocalizer, summary)
            job.finish()
            if not quiet and (len(images) <= FEW_IMAGES or (output is None and map_path is None)):
                _print_table(job.rows(), truth=truth_from_exif)
    except KeyboardInterrupt:
        _say(f"interrupted{_ways_on(job, output)}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    facts = [f"{_count(len(images), 'image')} localised with {geolocalizer.name}"]
    if was_complete:
        facts = [f"already complete: {_count(len(images), 'image')}"]
    elif num_before:
        facts.append(f"{len(images) - num_before:,} of them now")
    if not was_complete:
        facts.append(f"{took_s:.1f} s")
    _say(", ".join([*facts, *summary.facts()]) + _arrow_to(output, map_path))
    if summary.num_failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _load_model(name: str, device: str, num_threads: int | None) -> "Geolocalizer":
    import torch

    from geoloc import Geolocalizer

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # no such device, or torch was built without its kind
        reason = str(error).split(". ")[0]
        raise ConfigError(
            f"the device {device!r} cannot be used: {reason}; --device cpu always can"
        ) from error
    return Geolocalizer.from_pretrained(name, device=device)


def _run(job: "LocalizeJob", quiet: bool) -> float:
    """Run a job under a progress bar; returns how many seconds it took."""
    from tqdm import tqdm

    start_s = time.monotonic()
    # On a terminal only: in a log file a bar is thousands of lines.
    disable = True if quiet or job.num_done == len(job.images) else None
    with tqdm(
        total=len(job.images),
        initial=job.num_done,
        unit=" images",
        smoothing=0.1,
        leave=False,
        disable=disable,
    ) as bar:
        job.run(bar.update)
    return time.monotonic() - start_s


class _Summary:
    """What one line says about a table."""

    def __init__(self, rows: "Iterable[Row]") -> None:
        self.num_failed = self.num_abstained = 0
        self.distances_km = array("d")
        for row in rows:
            self.num_failed += row["error"] is not None
            self.num_abstained += row["abstained"] is True
            if row.get("distance_km") is not None:
                self.distances_km.append(row["distance_km"])

    def facts(self) -> Iterator[str]:
        """Short phrases."""
        if self.num_failed:
            yield f"{self.num_failed:,} failed"
        if self.num_abstained:
            yield f"{self.num_abstained:,} abstained"
        if self.distances_km:
            median = statistics.median(self.distances_km)
            yield (
                f"median error {_km(median)} over {_count(len(self.distances_km), 'image')} with a position "
                "in EXIF (for evaluation only, the model does not see it)"
            )


def _ways_on(job: "LocalizeJob | None", output: Path | None) -> str:
    if job is None or output is None or not job.num_done:
        return ": nothing was saved"
    return (
        f": {job.num_done:,} of {_count(len(job.images), 'image')} are done; the same command with --resume "
        "continues"
    )


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
        name = Text(_printable(row["id"]))
        if row["error"] is not None:
            table.add_row(name, "", "", Text(f"error: {_printable(row['error'])}", style="red"))
            continue
        numbers = [f"{row['latitude']:.4f}", f"{row['longitude']:.4f}"]
        radii = [_km(row[column]) for column in ("radius_50_km", "radius_90_km")]
        errors = [_km(row["distance_km"])] if truth else []
        place = Text(("(abstained) " if row["abstained"] else "") + (row["place"] or ""))
        table.add_row(name, *numbers, place, f"{row['probability']:.0%}", *radii, *errors)
    # What is piped into a file is not cut to the width of a terminal that nobody looks at.
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def _write_map(path: Path, job: "LocalizeJob", model: "Geolocalizer", summary: _Summary) -> None:
    from geoloc.view.map_html import write_map

    num_shown = min(len(job.images), MAX_MAP_IMAGES)
    note = f"Model {model.name} ({model.identity[:12]})."
    if num_shown < len(job.images):
        note += f" The first {num_shown:,} of {len(job.images):,} images."
    if summary.distances_km:
        note += " Truth: the position in the photos' EXIF, which the model does not see."
    title = f"Predicted places of {_count(num_shown, 'image')}"
    write_map(path, islice(_map_points(job), num_shown), title=title, note=note)


def _map_points(job: "LocalizeJob") -> "Iterator[MapPoint]":
    from geoloc.view.map_html import MAX_THUMBNAILS, MapPoint

    num_thumbnails = 0
    for image, row in zip(job.images, job.rows(), strict=True):
        if row["error"] is not None:
            yield MapPoint(row["id"], None, error=row["error"])
            continue
        thumbnail = _thumbnail_jpeg(image.path) if num_thumbnails < MAX_THUMBNAILS else None
        num_thumbnails += thumbnail is not None
        radii = {50: row["radius_50_km"], 90: row["radius_90_km"]}
        has_truth = row.get("truth_latitude") is not None
        yield MapPoint(
            row["id"],
            (row["latitude"], row["longitude"]),
            radius_km={percent: radius for percent, radius in radii.items() if radius is not None},
            place=row["place"],
            probability=row["probability"],
            candidates=[(c["lat"], c["lon"], c["probability"]) for c in row["candidates"]],
            thumbnail_jpeg=thumbnail,
            truth_latlon_deg=(row["truth_latitude"], row["truth_longitude"]) if has_truth else None,
        )


def _thumbnail_jpeg(path: Path) -> bytes | None:
    """A small picture of an image; None if it can no longer be read."""
    from PIL import Image

    from geoloc.images import decode_image

    try:
        image = Image.fromarray(decode_image(path, min_side_px=THUMBNAIL_PX))
    except BadImageError:
        return None
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    data = BytesIO()
    image.save(data, "JPEG", quality=80)
    return data.getvalue()


# --- quadtree ---------------------------------------------------------------------------------------------


@quadtree_app.command("build")
def build_quadtree_command(
    points: Annotated[
        Path, typer.Argument(metavar="POINTS", help="Table of points: .csv, .csv.gz or .parquet.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Where the tree goes: a .parquet file.")],
    max_points_per_cell: Annotated[
        int, typer.Option(min=1, help="A cell with so many points is split.")
    ] = 1000,
    max_depth: Annotated[int, typer.Option(min=0, max=24, help="No cell is deeper; the root is 0.")] = 10,
    root: Annotated[
        _Root, typer.Option(help="world covers the Earth; data is OSV-5M's box around the points.")
    ] = _Root.WORLD,
    latitude_column: Annotated[str, typer.Option(help="Column of latitudes, degrees.")] = "latitude",
    longitude_column: Annotated[str, typer.Option(help="Column of longitudes, degrees.")] = "longitude",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Build a quadtree whose cells hold about equally many points.

    The points are read in pieces, so that a table may be larger than the memory.
    """
    from quadtree import build_quadtree_from_batches
    from quadtree.points import PointTable

    _check_file(output, [".parquet"])
    if output.exists() and not overwrite:
        raise OutputMismatchError(
            f"{output} exists already: choose another name, or replace it with --overwrite"
        )
    tree = build_quadtree_from_batches(
        PointTable(points, latitude_column, longitude_column),
        max_points_per_cell=max_points_per_cell,
        max_depth=max_depth,
        root=root.value,
    )
    tree.write(output)
    _say(
        f"{_count(tree.num_cells, 'cell')}, depth {tree.depths.min()} to {tree.max_depth}, "
        f"fingerprint {tree.fingerprint[:12]} -> {output}"
    )


_TREE_ARGUMENT = typer.Argument(
    metavar="TREE", help="A .parquet that was built here, or OSV-5M's cell table .csv."
)


@quadtree_app.command("info")
def quadtree_info(tree: Annotated[Path, _TREE_ARGUMENT]) -> None:
    """Say what a quadtree is made of."""
    import numpy as np

    found = _read_tree(tree)
    areas_km2, empty_km2 = _areas_km2(found.bounds_deg), _areas_km2(found.empty_bounds_deg).sum()
    south, west, north, east = found.root_deg
    facts = {
        "root": "the whole Earth"
        if found.is_world
        else f"{south:.4f} to {north:.4f} N, {west:.4f} to {east:.4f} E",
        "cells": f"{found.num_cells:,}",
        "points": "unknown" if found.num_points is None else f"{found.num_points.sum():,}",
    }
    if found.num_points is not None:
        facts["points in a cell"] = _spread(found.num_points)
    facts |= {
        "area of a cell": f"{_spread(areas_km2)} km²",
        "side of the median cell": f"{np.sqrt(np.median(areas_km2)):,.1f} km",
        "empty leaves": f"{len(found.empty_paths):,}",
        "empty share of the area": f"{empty_km2 / (empty_km2 + areas_km2.sum()):.1%}",
        "fingerprint": found.fingerprint,
    }
    for name, value in facts.items():
        _say(f"{name:<25}{value}")
    _say("cells by depth")
    num_by_depth = np.bincount(found.depths)
    for depth in range(found.depths.min(), found.max_depth + 1):
        share = num_by_depth[depth] / num_by_depth.max()
        _say(f"  {depth:>2} {num_by_depth[depth]:>9,}  {'#' * round(40 * share)}".rstrip())


@quadtree_app.command("map")
def quadtree_map(
    tree: Annotated[Path, _TREE_ARGUMENT],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The map: .html to pan and zoom, .png to print.")
    ],
) -> None:
    """Draw a quadtree's cells on the map of the world; an existing map is replaced."""
    _check_file(output, [".html", ".png"])
    found = _read_tree(tree)
    title = f"Quadtree {tree.name}"
    if output.suffix.lower() == ".html":
        from geoloc.view.map_html import write_quadtree_map

        write_quadtree_map(found, output, title=title, note=f"Fingerprint {found.fingerprint[:12]}.")
    else:
        from geoloc.view.figures import save_quadtree_png

        save_quadtree_png(found, output, title=title)
    _say(f"{_count(found.num_cells, 'cell')} -> {output}")


def _read_tree(path: Path) -> "Quadtree":
    from quadtree import Quadtree

    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise ConfigError(
            f"{path} is no quadtree: it must end in .parquet, or in .csv for OSV-5M's cell table"
        )
    if not path.is_file():
        raise NotFoundError(f"there is no quadtree at {path}: build one with `geoloc quadtree build`")
    return Quadtree.read(path) if suffix == ".parquet" else Quadtree.read_osv5m_csv(path)


def _areas_km2(bounds_deg: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Areas of boxes on the sphere, (n, 4) south, west, north, east -> (n,)."""
    import numpy as np

    from quadtree import EARTH_MEAN_RADIUS_KM

    south, west, north, east = np.radians(bounds_deg).T
    area: NDArray[np.float64] = EARTH_MEAN_RADIUS_KM**2 * (east - west) * (np.sin(north) - np.sin(south))
    return area


def _spread(values: "NDArray[Any]") -> str:
    import numpy as np

    low, middle, high = np.quantile(values, [0, 0.5, 1]).tolist()
    return f"{low:,.0f} to {high:,.0f}, median {middle:,.0f}"


# --- What the commands share ------------------------------------------------------------------------------


def _check_file(path: Path, suffixes: list[str]) -> None:
    """Refuse a file that could not be written, before the work that it is to hold."""
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{path} must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise NotFoundError(f"there is no folder {path.parent} for {path.name}; create it first")


def _say(line: str, file: TextIO | None = None) -> None:
    print(_printable(line), file=file)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _km(distance_km: float | None) -> str:
    if distance_km is None:
        return ""
    return f"{distance_km:,.1f} km" if distance_km < 10 else f"{distance_km:,.0f} km"
