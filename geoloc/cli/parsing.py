"""Parse boxes, ranges, pairs and regions of command-line options."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from geoloc.errors import ConfigError

if TYPE_CHECKING:
    from geoloc.geo.regions import Region

BoundsOption = Annotated[
    str | None,
    typer.Option(metavar="S,W,N,E", help="A box in degrees; west > east crosses the antimeridian."),
]
PathsOption = Annotated[
    list[str], typer.Option("--path", help="A cell of the quadtree over the whole Earth, such as 0312.")
]


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas.

    Args:
        option: name of the option, for the error.
        text: value of the option.

    Raises:
        ConfigError: the text is anything else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; expected numbers separated by commas") from None


def parse_bounds(text: str | None) -> Sequence[float] | None:
    """Parse `--bounds`: south, west, north, east; None without it.

    Raises:
        ConfigError: it is not four numbers.
    """
    return _as_many("--bounds", text, 4, "south, west, north and east")


def parse_value_range(text: str | None) -> Sequence[float] | None:
    """Parse `--value-range`: the values that become black and white; None without it.

    Raises:
        ConfigError: it is not two numbers.
    """
    return _as_many("--value-range", text, 2, "what becomes black and what becomes white")


def _as_many(option: str, text: str | None, num: int, meant: str) -> Sequence[float] | None:
    if text is None:
        return None
    numbers = parse_numbers(option, text)
    if len(numbers) != num:
        raise ConfigError(f"{option} is {text!r}; expected {meant}")
    return numbers


def parse_region(text: str | None) -> "Region | None":
    """Parse `--region` as `geoloc.geo.regions.parse_region` does; None without it.

    Raises:
        ConfigError: it is not a region, or a name with several meanings.
        NotFoundError: there is no such file or name.
    """
    if text is None:
        return None
    from geoloc.geo.regions import parse_region as parse

    return parse(text)


def parse_zooms(text: str | None) -> tuple[int, int] | None:
    """Parse `--zooms`: the coarsest and the finest, which may be equal; None without it.

    Raises:
        ConfigError: it is neither one number nor two.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", text)
    if match is None:
        raise ConfigError(f"--zooms is {text!r}; expected the coarsest and the finest, such as 14-19")
    return int(match[1]), int(match[2] or match[1])


def parse_renaming(text: str) -> tuple[str, str]:
    """Parse `--column`: geoloc's name of a column, and the table's.

    Raises:
        ConfigError: it is not such a pair.
    """
    ours, equals, theirs = text.partition("=")
    if not equals or not theirs:
        raise ConfigError(
            f"--column is {text!r}; expected geoloc's name = the table's name, such as latitude=lat"
        )
    return ours, theirs
