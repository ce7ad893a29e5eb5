"""`--model-option NAME=VALUE`: options of a published model, parsed.

Names and kinds are those of `geoloc.adapters.options.Options`.
"""

from collections.abc import Sequence
from dataclasses import fields
from math import isfinite
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from geoloc.errors import ConfigError

ModelOption = Annotated[
    list[str],
    typer.Option(
        "--model-option",
        metavar="NAME=VALUE",
        help="Options of a published file, such as image_size_px=480,640 or quadtree=cells.csv; repeatable.",
    ),
]


def model_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of `Geolocalizer.from_pretrained` by name.

    Raises:
        ConfigError: a text is not NAME=VALUE, an option is unknown or given twice, or a value has the wrong type.
    """
    from geoloc.adapters.options import Options

    hints = get_type_hints(Options)
    kinds = {field.name: _kinds(hints[field.name]) for field in fields(Options)}
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in kinds:
            known = ", ".join(f"{option}={_words(kinds[option])}" for option in kinds)
            raise ConfigError(
                f"--model-option {text!r} is not an option of a published model; options: {known}"
            )
        if name in found:
            raise ConfigError(f"--model-option {name} was given twice: give it once")
        found[name] = _value(name, value, kinds[name])
    return found


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Types a value may have: int, float, str, Path and a pair of integers."""
    return tuple(kind for kind in get_args(hint) or (hint,) if kind is not NoneType)


def _is_pair(kinds: tuple[Any, ...]) -> bool:
    return any(get_origin(kind) is tuple for kind in kinds)


def _words(kinds: tuple[Any, ...]) -> str:
    if str in kinds:
        return "TEXT" if kinds == (str,) else "PATH"
    if float in kinds:
        return "NUMBER"
    return " or ".join((["N"] if int in kinds else []) + (["N,N"] if _is_pair(kinds) else []))


def _value(name: str, text: str, kinds: tuple[Any, ...]) -> Any:
    try:
        if str in kinds and text:
            return text
        if float in kinds and isfinite(number := float(text)):
            return number
        numbers = [int(part) for part in text.split(",") if part.isascii() and part.isdigit() and int(part)]
        if len(numbers) == text.count(",") + 1:
            if len(numbers) == 1 and int in kinds:
                return numbers[0]
            if len(numbers) == 2 and _is_pair(kinds):
                return (numbers[0], numbers[1])
    except ValueError:
        pass
    raise ConfigError(
        f"--model-option {name}={text} has the wrong kind of value: expected {name}={_words(kinds)}"
    )
