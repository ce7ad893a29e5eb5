"""The model card: README.md of a checkpoint, generated, never typed by hand. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One line of the data and licence ledger.

    Attributes:
        what: the artefact: weights, imagery, place names.
        origin: package or repository and version.
        licence: its licence, or "public domain".
        used_for: what the model took from it.
    """

    what: str
    origin: str
    licence: str
    used_for: str


def render_card(
    *,
    name: str,
    licence: str,
    summary: str,
    ledger: Sequence[Source],
    metrics_markdown: str,
    metrics_command: str,
    calibration: str,
    limits: Sequence[str],
    facts: Mapping[str, str],
) -> str:
    """The card's Markdown with the Hub's YAML header.

    Args:
        name: as `from_pretrained` takes it.
        metrics_markdown: a table that an evaluation wrote; metrics_command: the command that writes it again.
        calibration: what the radii were fitted on.
        limits: what the model cannot do, one sentence each.
        facts: sizes and settings, name -> value.
    """
    lines = [
        "---",
        f"license: {licence}",
        "library_name: geoloc",
        "pipeline_tag: image-classification",
        "tags: [image-geolocation, geocells, retrieval]",
        "---",
        "",
        f"# {name}",
        "",
        summary,
        "",
        "```python",
        "from geoloc import Geolocalizer",
        "",
        f'model = Geolocalizer.from_pretrained("{name}")',
        'print(model.localize("image.jpg"))',
        "```",
        "",
        "## Measured",
        "",
        metrics_markdown,
        "",
        f"`{metrics_command}` measures this table again.",
        "",
        "## Confidence",
        "",
        calibration,
        "",
        "## What it cannot do",
        "",
        *[f"- {limit}" for limit in limits],
        "",
        "## Facts",
        "",
        *[f"- {key}: {value}" for key, value in facts.items()],
        "",
        "## Data and licences",
        "",
        "| what | from | licence | used for |",
        "|---|---|---|---|",
        *[f"| {s.what} | {s.origin} | {s.licence} | {s.used_for} |" for s in ledger],
        "",
    ]
    return "\n".join(lines)
