"""The receipt of a finished job: which job made a file, kept beside it as `.NAME.receipt`.

A table has no place for that itself (a comment would break a CSV), and without it nobody could tell a
finished output from one that another model or other options made. Knows nothing about what the file contains.
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
    """Where the receipt of an output lies."""
    output = Path(output)
    return output.with_name(f".{output.name}.receipt")


def write_receipt(output: str | Path, identity: Mapping[str, Any]) -> None:
    """State that a job, described by plain JSON values, has made the file `output` as it is now."""
    facts = {"identity": dict(identity), "num_bytes": os.path.getsize(output), "sha256": sha256_of(output)}
    with atomic_write(receipt_path(output), "w") as file:
        file.write(json.dumps(facts, indent=2, sort_keys=True, allow_nan=False) + "\n")


def check_receipt(output: str | Path, identity: Mapping[str, Any]) -> None:
    """Check that this job made `output`, and that nobody has changed the file since.

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
            "start anew with --overwrite"
        ) from None
    identity = as_json(identity)
    if found != identity:
        raise OutputMismatchError(
            f"another job made {output}: {describe_differences(found, identity)}; {REMEDY}"
        )
    if num_bytes != os.path.getsize(output) or sha256 != sha256_of(output):
        raise OutputMismatchError(
            f"{output} was changed after the job had finished it: move it away, or start anew with --overwrite"
        )
