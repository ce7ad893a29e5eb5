"""Shared by the commands: exit codes, printing, checks of output paths."""

from pathlib import Path
from typing import Any, TextIO

import typer

from geoloc.errors import ConfigError, NotFoundError, OutputMismatchError

EXIT_SOME_FAILED, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130


def new_app(**options: Any) -> typer.Typer:
    """A group of commands that prints its help if no command is given."""
    # loading rich would take longer than the rest of --help
    return typer.Typer(no_args_is_help=True, rich_markup_mode=None, **options)


def check_file(path: Path, suffixes: list[str]) -> None:
    """Raise ConfigError if a file could not be written, before the work starts."""
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{path} must end in {' or '.join(suffixes)}")
    _check_parent(path)


def check_folder(path: Path) -> None:
    """Raise ConfigError if a folder could not be created, before the work starts."""
    _check_parent(path)
    if path.is_file():
        raise OutputMismatchError(f"{path} is a file: name a folder")


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise NotFoundError(f"there is no folder {path.parent} for {path.name}; create it first")


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line without terminal control characters."""
    print(printable(line), file=file)


def printable(text: str) -> str:
    """Text without terminal control characters; file names may hold some."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def count(number: int, noun: str) -> str:
    """The number and its noun, "1 image", "1,200 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def km(distance_km: float | None) -> str:
    """A distance with its unit; empty without a distance."""
    if distance_km is None:
        return ""
    if distance_km < 1:
        return f"{1000 * distance_km:.0f} m"
    return f"{distance_km:,.1f} km" if distance_km < 10 else f"{distance_km:,.0f} km"


def radius(radius_km: float) -> str:
    """A radius as text, "25 km" or "25 m"."""
    return f"{radius_km:,g} km" if radius_km >= 1 else f"{1000 * radius_km:g} m"
