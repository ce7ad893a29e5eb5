"""Job identities: plain JSON values that decide a job's output, and their comparison in error messages."""

import json
from collections.abc import Mapping
from typing import Any

# Every command that leaves an output names these ways to continue.
REMEDY = "repeat the old values to continue it, choose another output, or start again with --overwrite"


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity as JSON reads it back: tuples become lists, keys become strings."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(identity), allow_nan=False))
    return plain


def describe_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The values in which two identities differ: "batch_size is 16 there and 8 here; …"."""
    return "; ".join(
        f"{key} is {_short(there, key)} there and {_short(here, key)} here"
        for key in sorted(there.keys() | here.keys())
        if key not in there or key not in here or there[key] != here[key]
    )


def _short(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "absent"
    value = values[key]
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
