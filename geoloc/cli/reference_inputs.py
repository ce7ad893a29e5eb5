"""Inputs of `geoloc reference build` and `add`: options, checks and report."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoloc.cli.console import EXIT_INTERRUPTED, EXIT_SOME_FAILED, count, say
from geoloc.cli.model_options import ModelOption, model_options
from geoloc.cli.models import load_model
from geoloc.cli.parsing import (
    parse_numbers,
    parse_region,
    parse_renaming,
    parse_value_range,
    parse_zooms,
)
from geoloc.errors import ConfigError

if TYPE_CHECKING:
    from geoloc.localize.geolocalizer import Geolocalizer
    from geoloc.photos.positioned import Photos
    from geoloc.reference.build import BuildReport
    from geoloc.reference.database import ReferenceDatabase

_TOLD_PROBLEMS = 5  # lines printed; the report in the database has a thousand

_Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="The model that embeds the references: a bundled model, a folder, a published file or a Hub id.",
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
    typer.Option(
        metavar="S,W,N,E|LAT,LON,KM|GEOJSON|NAME",
        help="What to cover: a box, circle, polygons, country (SE) or part of one (SE/Skane); without it, wherever "
        "there is imagery.",
    ),
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


class Inputs:
    """Inputs of `build` and `add`; the fields are options of both.

    All are opened and checked first, so that a mistake is reported before anything is written.
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
        from geoloc.photos.positioned import Photos, open_photos
        from geoloc.reference.aerial import CellGrid, open_region, open_sources
        from geoloc.reference.aerial.references import AerialSettings
        from geoloc.reference.locations import read_locations

        if not aerial and not street and locations is None:
            raise ConfigError("there is nothing to add: give --aerial, --street or --locations")
        if len(street) > 1 and metadata is not None:
            raise ConfigError("one --metadata describes one --street: add the others by separate commands")
        if metadata is not None and not street:
            raise ConfigError("--metadata is about photos: add --street")
        if layout is not None and (not street or metadata is not None or columns):
            raise ConfigError(
                "--layout says where --street's photos were taken: add --street, and no --metadata"
            )
        if layout is None and (split is not None or utm_epsg is not None):
            raise ConfigError("--split and --utm-epsg need --layout")
        gsd, names = parse_numbers("--gsd-m-per-px", gsd_m_per_px), dict(map(parse_renaming, columns))
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
                zooms=parse_zooms(zooms),
                value_range=parse_value_range(value_range),
            )
            self._aerial = {
                "source": sources,
                "cell_size_m": cell_size_m,
                "gsd_m_per_px": gsd,
                "region": open_region(parse_region(region), sources),
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
        """Load the model that embeds them."""
        return load_model(*self._model)

    def fill(self, database: "ReferenceDatabase") -> None:
        """Add everything, print the counts, and exit with 1 if something could not be used."""
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


def with_inputs(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `Inputs` to a command, which gets them as its last argument."""
    *own, _ = signature(command).parameters.values()
    theirs = signature(Inputs).parameters

    def run(**options: Any) -> None:
        with _interruptible():
            inputs = Inputs(**{name: options.pop(name) for name in theirs})
            command(**options, inputs=inputs)

    run.__doc__ = command.__doc__
    run.__signature__ = Signature([*own, *theirs.values()])  # type: ignore[attr-defined]  # typer reads it
    return run


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
        if number == _TOLD_PROBLEMS:
            say(f"  … and {report.num_problems - number:,} more: builds/{report.name}.json", file=sys.stderr)
            break
        say(f"  {name}: {reason}", file=sys.stderr)


def _samples(layout: str, folder: Path, split: str | None, utm_epsg: int | None) -> "Photos":
    from geoloc.data.layouts import open_layout
    from geoloc.photos.positioned import SamplePhotos

    return SamplePhotos(open_layout(layout, folder, split, utm_epsg=utm_epsg))
