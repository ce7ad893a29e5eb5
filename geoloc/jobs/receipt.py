"""Receipts of finished jobs: the identity of the job that made a file, kept beside it as `.NAME.receipt`.

It tells a finished output from one that another model or other options made.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoloc.errors import OutputMismatchError
from geoloc.files import atomic_write, sha256_of
from geoloc.jobs.identity import REMEDY, as_json, describe_differences


def receipt_path(output: str | Path) -> Path:
    """Path of an output's receipt."""
    output = Path(output)
    return output.with_name(f".{output.name}.receipt")


def write_receipt(output: str | Path, identity: Mapping[str, Any]) -> None:
    """Write the receipt of a file: the job's identity, and the file's size and digest."""
    facts = {"identity": dict(identity), "num_bytes": os.path.getsize(output), "sha256": sha256_of(output)}
    with atomic_write(receipt_path(output), "w") as file:
        file.write(json.dumps(facts, indent=2, sort_keys=True, allow_nan=False) + "\n")


def check_receipt(output: str | Path, identity: Mapping[str, Any]) -> None:
    """Check that this job made a file, and that it was not changed since.

    Raises:
        OutputMismatchError: another job made it, it was changed, or there is no receipt; says which.
    """
    path = receipt_path(output)
    try:
        facts = json.loads(path.read_bytes())
        found, num_bytes, sha256 = facts["identity"], facts["num_bytes"], facts["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputMismatchError(
            f"{output} exists, and no receipt ({path}) says which job made it: choose another output, or "
            "start again with --overwrite"
        ) from None
    identity = as_json(identity)
    if found != identity:
        raise OutputMismatchError(
            f"another job made {output}: {describe_differences(found, identity)}; {REMEDY}"
        )
    if num_bytes != os.path.getsize(output) or sha256 != sha256_of(output):
        raise OutputMismatchError(
            f"{output} was changed after the job had finished it: move it away, or start again with --overwrite"
        )
