"""Strict conversion between dataclasses of settings and JSON values.

An unknown key, a missing key or a value of the wrong type is a ConfigError that names the key.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar

from geoloc.errors import ConfigError

T = TypeVar("T")

# Metadata of fields that the first checkpoints lack: at its default such a field is left out of the plain form, so that
# digests in existing reference databases stay valid.
LATER = {"left out at its default": True}


def to_plain(value: Any) -> Any:
    """A dataclass as JSON values (tuples become lists)."""
    if is_dataclass(value) and not isinstance(value, type):
        items = {item: getattr(value, item.name) for item in fields(value)}
        value = {
            item.name: kept
            for item, kept in items.items()
            if not (item.metadata == LATER and kept == item.default)
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[T], value: Any, where: str = "config") -> T:
    """A dataclass of type `kind` from JSON values.

    Args:
        kind: a dataclass whose fields are dataclasses, plain types, tuples, mappings or literals, or one of
            these or None.
        value: result of a JSON reader.
        where: name of the file or key, for error messages.

    Raises:
        ConfigError: an unknown key, a missing key, or a value of the wrong type.
    """
    return typing.cast(T, _convert(kind, value, where))


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (present,) = (argument for argument in arguments if argument is not type(None))
        return _convert(present, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {value!r}; expected one of {', '.join(map(repr, arguments))}")
        return value
    if is_dataclass(kind):
        return _convert_dataclass(kind, value, where)
    if origin is not None and issubclass(origin, Mapping):
        _expect(value, Mapping, "a mapping", where)
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        _expect(value, (list, tuple), "a list", where)
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"{where} has {len(value)} values; expected {len(arguments)}")
        pairs = zip(arguments, value, strict=True)
        return tuple(_convert(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(pairs))
    if isinstance(value, bool) and kind is not bool:  # bool is a subclass of int
        raise ConfigError(f"{where} is {value!r}; expected {_WORDS[kind]}")
    if kind is float:
        _expect(value, (int, float), _WORDS[kind], where)
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value!r}; expected a finite number")
        return float(value)
    _expect(value, kind, _WORDS[kind], where)
    return value


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _convert_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(value, Mapping, "a mapping", where)
    hints = typing.get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}
    if unknown := sorted(set(value) - set(known), key=str):
        raise ConfigError(
            f"{where} has the unknown key {unknown[0]!r}; known keys are {', '.join(sorted(known))}. "
            "A checkpoint from a newer geoloc needs a newer geoloc; in your own file, check the spelling"
        )
    required = [n for n, item in known.items() if item.default is MISSING and item.default_factory is MISSING]
    if missing := [name for name in required if name not in value]:
        raise ConfigError(f"{where} lacks the key {missing[0]!r}; add it")
    converted = {name: _convert(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return kind(**converted)
    except ConfigError as error:  # from __post_init__, which does not know the key
        raise ConfigError(f"{where}: {error}") from None


def _expect(value: Any, kind: Any, words: str, where: str) -> None:
    if not isinstance(value, kind):
        raise ConfigError(f"{where} is {value!r}; expected {words}")
