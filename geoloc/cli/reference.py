"""`geoloc reference`: build databases of references, change them, look at them."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoloc.cli.console import EXIT_INTERRUPTED, EXIT_SOME_FAILED, count, new_app, say
from geoloc.cli.model_options import ModelOption, model_options
from geoloc.cli.models import load_model
from geoloc.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from geoloc.localize.geolocalizer import Geolocalizer
    from geoloc.reference.build import BuildReport
    from geoloc.reference.database import ReferenceDatabase
    from geoloc.reference.photos import Photos

TOLD_PROBLEMS = 5  # on the screen; the report in the database has a thousand

reference_app = new_app(help="Build databases of references, change them, look at them.")


class _Dtype(str, Enum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The database.")]
_Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="What embeds the references: a bundled model, a folder, a file of others or a Hub id.",
    ),
]
_Aerial = Annotated[
    list[str],
    typer.Option(
        metavar="SOURCE",
        help="Imagery from above: a folder of tiles, a .tif or a folder of them, an .mbtiles, the address of a "
        "server with {z}, {x} and {y}, or 'WMTS:https://…/WMTSCapabilities.xml,layer=…'. Given several times, each "
        "fills what those before it leave open.",
    ),
]
_Street = Annotated[
    list[Path], typer.Option(metavar="PHOTOS", help="A folder of photos, or of webdataset tars, or a tar.")
]
_Locations = Annotated[
    Path | None,
    typer.Option(
        metavar="TABLE", help="A .parquet of coordinates with their vectors: latitude, longitude, embedding."
    ),
]
_Cell = Annotated[float, typer.Option(help="Side of a cell, the same at every latitude.")]
_Gsd = Annotated[
    str, typer.Option(metavar="M,M,…", help="Ground resolutions of a cell's views, metres per pixel.")
]
_Region = Annotated[
    str | None,
    typer.Option(metavar="S,W,N,E|GEOJSON", help="What to cover; without it, wherever there is imagery."),
]
_Mercator = Annotated[bool, typer.Option("--mercator", help="Cells of a fixed side in Web Mercator instead.")]
_Coverage = Annotated[float, typer.Option(help="Share of a cell's finest view that must have imagery.")]
_Cache = Annotated[Path | None, typer.Option(help="Folder for the tiles of servers.")]
_Zooms = Annotated[str | None, typer.Option(metavar="MIN-MAX", help="Coarsest and finest zoom of servers.")]
_ValueRange = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="What becomes black and white in GeoTIFFs. Without it, 8-bit values are taken as they are, and "
        "others from 2 to 98 % of each file's.",
    ),
]
_Metadata = Annotated[
    Path | None,
    typer.Option(
        help="Table of the photos, .csv or .parquet: id, latitude, longitude, heading_deg, provenance, licence. "
        "Without it, the JSON in tars or the photos' EXIF counts."
    ),
]
_Layout = Annotated[
    str | None,
    typer.Option(
        help="How the data set of --street lies on the disk, as of `geoloc data verify`: vg, gsv_cities, … Keys are "
        "those of its samples."
    ),
]
_Split = Annotated[
    str | None, typer.Option(help="Of a data set with a --layout: of vg a folder, such as test/database.")
]
_Utm = Annotated[
    int | None,
    typer.Option("--utm-epsg", help="--layout vg: EPSG code of the zone of images that do not say theirs."),
]
_Columns = Annotated[
    list[str],
    typer.Option("--column", metavar="OURS=THEIRS", help="A column with another name, latitude=lat."),
]
_Licence = Annotated[str, typer.Option(help="Of references that do not say it themselves.")]
_Batch = Annotated[int, typer.Option(min=1, help="Cells or photos that go through the network together.")]
_Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, …")]
_Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the network.")]
_Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Drop the work of an unfinished build with other settings.")
]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar; only the summary.")]
BoundsOption = Annotated[
    str | None,
    typer.Option(metavar="S,W,N,E", help="A box in degrees; west > east crosses the antimeridian."),
]
PathsOption = Annotated[
    list[str], typer.Option("--path", help="A cell of the quadtree over the whole Earth, such as 0312.")
]


class _Inputs:
    """What `build` and `add` put into a database; the arguments are options of both.

    Everything is opened and checked here, so that a mistake is told before anything is made or embedded.
    """

    def __init__(
        self,
        model: _Model = "earthview",
        model_option: ModelOption = [],  # noqa: B006  typer copies it
        aerial: _Aerial = [],  # noqa: B006
        street: _Street = [],  # noqa: B006
        locations: _Locations = None,
        cell_size_m: _Cell = 30.0,
        gsd_m_per_px: _Gsd = "0.2,0.4,0.8,1.6",
        region: _Region = None,
        mercator: _Mercator = False,
        min_coverage: _Coverage = 0.5,
        cache: _Cache = None,
        zooms: _Zooms = None,
        value_range: _ValueRange = None,
        metadata: _Metadata = None,
        columns: _Columns = [],  # noqa: B006
        layout: _Layout = None,
        split: _Split = None,
        utm_epsg: _Utm = None,
        licence: _Licence = "",
        batch_size: _Batch = 16,
        device: _Device = "cpu",
        threads: _Threads = None,
        overwrite: _Overwrite = False,
        quiet: _Quiet = False,
    ) -> None:
        from geoloc.reference.aerial import CellGrid, open_region, open_sources
        from geoloc.reference.aerial.references import AerialSettings
        from geoloc.reference.locations import read_locations
        from geoloc.reference.photos import Photos, open_photos

        if not aerial and not street and locations is None:
            raise ConfigError("there is nothing to add: give --aerial, --street or --locations")
        if len(street) > 1 and metadata is not None:
            raise ConfigError(
                "one --metadata describes one --street: add the others by commands of their own"
            )
        if metadata is not None and not street:
            raise ConfigError("--metadata is about photos: add --street")
        if layout is not None and (not street or metadata is not None or columns):
            raise ConfigError(
                "--layout says where --street's photos were taken: add --street, and no --metadata"
            )
        if layout is None and (split is not None or utm_epsg is not None):
            raise ConfigError("--split and --utm-epsg are about a data set: say how it lies by --layout")
        gsd, names = _numbers("--gsd-m-per-px", gsd_m_per_px), dict(map(_renaming, columns))
        self._model = model, device, threads, model_options(model_option)
        self._batch_size = batch_size
        self._shared: dict[str, Any] = {"licence": licence, "overwrite": overwrite, "progress": not quiet}
        self._aerial: dict[str, Any] | None = None
        if aerial:
            CellGrid(cell_size_m, mercator)
            AerialSettings(gsd, min_coverage=min_coverage)
            sources = open_sources(
                aerial,
                licence=licence,
                cache=cache,
                zooms=_zooms(zooms),
                value_range=_range(value_range),
            )
            self._aerial = {
                "source": sources,
                "cell_size_m": cell_size_m,
                "gsd_m_per_px": gsd,
                "region": open_region(_region(region), sources),
                "mercator": mercator,
                "min_coverage": min_coverage,
            }
        self._photos: list[Photos]
        if layout is None:
            self._photos = [open_photos(photos, metadata, names) for photos in street]
        else:
            self._photos = [_samples(layout, folder, split, utm_epsg) for folder in street]
        self._locations: dict[str, Any] | None = None
        if locations is not None:
            latlon_deg, vectors, keys = read_locations(locations)
            if vectors is None:
                raise ConfigError(
                    f"{locations} has no column 'embedding': from Python, add_locations takes an encoder"
                )
            self._locations = {"latlon_deg": latlon_deg, "vectors": vectors, "keys": keys}

    def load_model(self) -> "Geolocalizer":
        """What embeds them."""
        return load_model(*self._model)

    def fill(self, database: "ReferenceDatabase") -> None:
        """Add everything, say what came of it, and exit with 1 if something could not be used."""
        reports = list(self._reports(database))
        for report in reports:
            _tell(report)
        say(f"{count(len(database), 'row')} in {database.folder}")
        if any(report.num_problems for report in reports):
            raise typer.Exit(EXIT_SOME_FAILED)

    def _reports(self, database: "ReferenceDatabase") -> "Iterator[BuildReport]":
        if self._aerial is not None:
            yield database.add_aerial(**self._aerial, batch_size=self._batch_size, **self._shared)
        for photos in self._photos:
            yield database.add_street(photos, batch_size=self._batch_size, **self._shared)
        if self._locations is not None:
            yield database.add_locations(**self._locations, **self._shared)


def _with_inputs(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `_Inputs` behind its own; it is handed them as its last argument."""
    *own, _ = signature(command).parameters.values()
    theirs = signature(_Inputs).parameters

    def run(**options: Any) -> None:
        with _interruptible():
            inputs = _Inputs(**{name: options.pop(name) for name in theirs})
            command(**options, inputs=inputs)

    run.__doc__ = command.__doc__
    run.__signature__ = Signature([*own, *theirs.values()])  # type: ignore[attr-defined]  # typer reads it
    return run


@reference_app.command("build")
@_with_inputs
def build(
    folder: _Folder,
    dtype: Annotated[_Dtype, typer.Option(help="How vectors are stored.")] = _Dtype.FLOAT32,
    *,
    inputs: _Inputs,
) -> None:
    """Make a database and fill it; the same command continues it where it was stopped.

    What is in a database already is not done again. Photos and tiles that cannot be read stop nothing. Exit code:
    0 all is well, 1 some inputs could not be used, 2 error, 130 interrupted.
    """
    from geoloc.reference.database import ReferenceDatabase

    embedder = inputs.load_model()
    if folder.exists() and any(folder.iterdir()):
        database = ReferenceDatabase.open(folder, model=embedder)
        if database.vector_format.dtype != dtype.value:
            raise ConfigError(
                f"{folder} stores {database.vector_format.dtype}, and --dtype is {dtype.value}: repeat what it "
                "has, or choose another folder"
            )
    else:
        database = ReferenceDatabase.create(folder, model=embedder, dtype=dtype.value)
    inputs.fill(database)


@reference_app.command("add")
@_with_inputs
def add(folder: _Folder, *, inputs: _Inputs) -> None:
    """Add references to a database that is there; otherwise as `build`."""
    _open(folder)  # a mistake is told before a model is loaded
    from geoloc.reference.database import ReferenceDatabase

    inputs.fill(ReferenceDatabase.open(folder, model=inputs.load_model()))


@reference_app.command("delete")
def delete(
    folder: _Folder,
    bounds: BoundsOption = None,
    paths: PathsOption = [],  # noqa: B006
    keys: Annotated[list[str], typer.Option("--key", help="All rows with this key.")] = [],  # noqa: B006
    row_ids: Annotated[list[int], typer.Option("--row-id", help="A row's id.")] = [],  # noqa: B006
) -> None:
    """Delete the rows in a box, in cells, with keys or with ids; their bytes go with `compact`."""
    database = _open(folder)
    num_rows = database.delete(
        bounds_deg=parse_bounds(bounds), paths=paths or None, keys=keys or None, row_ids=row_ids or None
    )
    say(f"{count(num_rows, 'row')} deleted, {len(database):,} left in {folder}")


@reference_app.command("compact")
def compact(
    folder: _Folder,
    segment_rows: Annotated[
        int | None,
        typer.Option(
            min=1, help="Several segments of about so many rows, so that a region can be pulled alone."
        ),
    ] = None,
) -> None:
    """Merge all segments into one, without the deleted rows."""
    database = _open(folder)
    before = database.info()
    database.compact(segment_rows=segment_rows)
    after = database.info()
    say(
        f"{count(before['num_segments'], 'segment')} -> {after['num_segments']}, "
        f"{_size(before['num_bytes'])} -> {_size(after['num_bytes'])}, {count(after['num_rows'], 'row')} in {folder}"
    )


@reference_app.command("slice")
def slice_(
    folder: _Folder,
    destination: Annotated[Path, typer.Argument(help="A new folder.")],
    bounds: BoundsOption = None,
    paths: PathsOption = [],  # noqa: B006
) -> None:
    """Copy the rows of a region into a new database."""
    cut = _open(folder).slice(destination, bounds_deg=parse_bounds(bounds), paths=paths or None)
    say(f"{count(len(cut), 'row')} -> {destination}")


@reference_app.command("merge")
def merge(
    first: Annotated[Path, typer.Argument(metavar="A", help="A database.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same model.")],
    destination: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Write the rows of two databases into a new one."""
    merged = _open(first).merge(_open(second), destination)
    say(f"{count(len(merged), 'row')} -> {destination}")


@reference_app.command("info")
def info(
    folder: _Folder, as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False
) -> None:
    """Say what is in a database."""
    facts = _open(folder).info()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    facts["num_bytes"] = _size(facts["num_bytes"])
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key or 'unknown'} {number:,}" for key, number in value.items()) or "none"
        elif isinstance(value, int):
            value = f"{value:,}"
        say(f"{name.removeprefix('num_').replace('_', ' '):<22}{'none' if value is None else value}")


@reference_app.command("verify")
def verify(folder: _Folder) -> None:
    """Check every byte of a database: checksums, order, row ids."""
    database = _open(folder)
    database.verify()
    say(f"all is well: {count(len(database), 'row')}, {count(len(database.segments), 'segment')} in {folder}")


# --- What is typed, and what is told ------------------------------------------------------------------------


def _open(folder: Path) -> "ReferenceDatabase":
    from geoloc.reference.database import ReferenceDatabase

    return ReferenceDatabase.open(folder)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted: what is embedded is kept, and the same command continues", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _tell(report: "BuildReport") -> None:
    facts = [f"{report.name.partition('-')[0]}: {count(report.num_rows, 'row')}"]
    if report.was_complete:
        facts[0] += " (already there)"
    facts += [f"{number:,} left out ({reason})" for reason, number in report.skipped.items()]
    if report.num_problems:
        facts.append(f"{report.num_problems:,} unusable")
    say(", ".join(facts))
    for number, (name, reason) in enumerate(report.problems.items()):
        if number == TOLD_PROBLEMS:
            say(f"  … and {report.num_problems - number:,} more: builds/{report.name}.json", file=sys.stderr)
            break
        say(f"  {name}: {reason}", file=sys.stderr)


def _samples(layout: str, folder: Path, split: str | None, utm_epsg: int | None) -> "Photos":
    from geoloc.data.layouts import open_layout
    from geoloc.reference.photos import SamplePhotos

    return SamplePhotos(open_layout(layout, folder, split, utm_epsg=utm_epsg))


def _size(num_bytes: int) -> str:
    number = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; expected numbers with commas between them") from None


def parse_bounds(text: str | None) -> Sequence[float] | None:
    """What `--bounds` says: south, west, north, east; None without it.

    Raises:
        ConfigError: it is not four numbers.
    """
    if text is None:
        return None
    numbers = _numbers("--bounds", text)
    if len(numbers) != 4:
        raise ConfigError(f"--bounds is {text!r}; expected south, west, north and east")
    return numbers


def _range(text: str | None) -> Sequence[float] | None:
    if text is None:
        return None
    numbers = _numbers("--value-range", text)
    if len(numbers) != 2:
        raise ConfigError(f"--value-range is {text!r}; expected what becomes black and what becomes white")
    return numbers


def _region(text: str | None) -> Any:
    if text is None or Path(text).suffix.lower() in (".geojson", ".json"):
        return text
    if re.fullmatch(r"[-+.\d,\seE]+", text):
        return _numbers("--region", text)
    raise NotFoundError(f"--region is {text!r}; expected south, west, north, east with commas, or a .geojson")


def _zooms(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", text)
    if match is None:
        raise ConfigError(f"--zooms is {text!r}; expected the coarsest and the finest, such as 14-19")
    return int(match[1]), int(match[2] or match[1])


def _renaming(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not equals or not theirs:
        raise ConfigError(f"--column is {text!r}; expected our name = the table's, such as latitude=lat")
    return ours, theirs
