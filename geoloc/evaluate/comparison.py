"""Paired comparison of two sets of predictions for the same images."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from geoloc.evaluate.matching import match
from geoloc.files import replace_folder, write_manifest
from geoloc.files.tables import PointTable
from geoloc.metrics.bootstrap import paired_differences
from geoloc.metrics.protocols import Protocol


def compare(
    truth: PointTable,
    a: PointTable,
    b: PointTable,
    protocol: Protocol,
    subset: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Differences B - A with intervals, and the unmatched rows of both tables.

    Returns:
        {"protocol", "num_images", "a", "b", "differences", "problems_a", "problems_b"}; see `paired_differences`.

    Raises:
        BadTableError: no image can be evaluated.
    """
    subset = None if subset is None else list(subset)
    matched = [match(truth, table, subset) for table in (a, b)]
    distances = [m.distance_km(protocol) for m in matched]
    return {
        "protocol": protocol.name,
        "num_images": len(matched[0]),
        "a": str(a.path),
        "b": str(b.path),
        "differences": paired_differences(distances[0], distances[1], protocol),
        "problems_a": matched[0].problems.to_dict(),
        "problems_b": matched[1].problems.to_dict(),
    }


def write_comparison(comparison: Mapping[str, Any], folder: str | Path) -> None:
    """Write comparison.json and comparison.md into a folder, which is replaced atomically.

    Raises:
        OutputMismatchError: the folder holds other files.
    """
    with replace_folder(folder) as temporary:
        text = json.dumps(comparison, indent=2, allow_nan=False, ensure_ascii=False)
        (temporary / "comparison.json").write_text(text + "\n", encoding="utf-8")
        (temporary / "comparison.md").write_text(to_markdown(comparison), encoding="utf-8")
        write_manifest(temporary, kind="comparison")


def to_markdown(comparison: Mapping[str, Any]) -> str:
    """Markdown table of a comparison."""
    lines = [
        f"Protocol `{comparison['protocol']}`, {comparison['num_images']:,} images. A: {comparison['a']}. "
        f"B: {comparison['b']}.",
        "",
        "| score | A | B | B - A | 95 % interval | B better |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in comparison["differences"].items():
        low, high = row["interval"]
        lines.append(
            f"| {name.replace('.', ' ')} | {row['a']:.4g} | {row['b']:.4g} | {row['difference']:+.4g} "
            f"| {low:+.4g} to {high:+.4g} | {row['share_better']:.1%} |"
        )
    for side in ("a", "b"):
        for name, problem in comparison[f"problems_{side}"].items():
            lines.append(
                f"\n{side.upper()}: {problem['count']:,} {name.replace('_', ' ')}: {problem['meaning']}"
            )
    return "\n".join(lines) + "\n"
