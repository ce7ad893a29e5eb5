"""`geoloc reference`: build, change and inspect reference databases."""

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoloc.cli.console import count, new_app, say
from geoloc.cli.parsing import BoundsOption, PathsOption, parse_bounds
from geoloc.cli.reference_inputs import Inputs, with_inputs
from geoloc.errors import ConfigError

if TYPE_CHECKING:
    from geoloc.reference.database import ReferenceDatabase

reference_app = new_app(help="Build databases of references, change them, look at them.")


class _Dtype(str, Enum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The database.")]


@reference_app.command("build")
@with_inputs
def build(
    folder: _Folder,
    dtype: Annotated[_Dtype, typer.Option(help="How vectors are stored.")] = _Dtype.FLOAT32,
    *,
    inputs: Inputs,
) -> None:
    """Create a reference database; the same command continues it where it was stopped.

    Inputs already in the database are not embedded again; inputs that cannot be read are reported. Exit code:
    0 success, 1 some inputs could not be used, 2 error, 130 interrupted.
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
@with_inputs
def add(folder: _Folder, *, inputs: Inputs) -> None:
    """Add references to an existing database; otherwise as `build`."""
    _open(folder)  # report a mistake before a model is loaded
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
    """Print the contents of a database."""
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


def _open(folder: Path) -> "ReferenceDatabase":
    from geoloc.reference.database import ReferenceDatabase

    return ReferenceDatabase.open(folder)


def _size(num_bytes: int) -> str:
    number = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"
