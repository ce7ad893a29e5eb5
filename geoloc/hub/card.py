"""Cards: generated README.md files of models and databases.

render_card(…)           a model's card, from what its recipe knows
card_for_repository(…)   a card completed for a repository: how to load it, measurements and their protocols,
                         licences, and uses that are not allowed
database_card(…)         a database's card
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from geoloc import __version__
from geoloc.errors import ConfigError, NotFoundError

USES: Final = (
    "Saying roughly where on Earth a picture of the kind that it was trained on was taken, with an uncertainty: "
    "sorting archives, finding lost captions, research.",
    "Checking what is said about a place, together with other evidence, by someone who looks at the picture.",
)

MISUSE: Final = (
    "Finding out where a person lives, works or is, without that person's consent; following or watching people; "
    "decisions about people, such as on asylum, visas or insurance; or proof of anything in court.",
    "Publishing where a photo was taken when whoever took or is in it has not agreed. Ask for coarse answers instead: "
    "a country or a region is enough for most honest purposes.",
    "Anything where a wrong place does harm. A point is a guess: read its radius, and let it abstain.",
)

_LOADING, _MEASURED = "How to load it", "Measured"
_USED, _MISUSED = "What it is for", "What it must not be used for"
_CONFIDENCE, _FACTS, _LEDGER = "Confidence", "Facts", "Data and licences"
_LOADS: Final = re.compile(r'(?<=Geolocalizer\.from_pretrained\()"[^"]*"(?:, revision="[^"]*")?')

_TAGS: Final = ("image-geolocation", "geocells", "retrieval")
_NEEDED: Final = (
    "protocol",
    "num_images",
    "num_missing",
    "geoscore",
    "mean_km",
    "median_km",
    "accuracy_within_km",
)
_NEEDED_OF_RECALL: Final = (
    "set",
    "num_queries",
    "num_database",
    "num_without_positive",
    "recall_at",
    "rules",
    "unreadable",
)


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
    """A model's card: Markdown with the Hub's YAML header.

    Args:
        name: as `from_pretrained` takes it.
        licence: of the weights, by the Hub's names, such as "apache-2.0".
        summary: what it is for: its intended use.
        ledger: what it was made from.
        metrics_markdown: a table that an evaluation wrote; metrics_command: the command that writes it again.
        calibration: what the radii were fitted on.
        limits: what the model cannot do, one sentence each.
        facts: sizes and settings, name -> value.
    """
    measured = metrics_markdown
    if metrics_command:
        measured += f"\n\n`{metrics_command}` measures this table again."
    sections = {
        _MEASURED: measured,
        _CONFIDENCE: calibration,
        "What it cannot do": _bullets(limits),
        _MISUSED: _bullets(MISUSE),
        _FACTS: _facts(facts),
        _LEDGER: _table(ledger),
    }
    header = _header(licence, ("library_name: geoloc", "pipeline_tag: image-classification"), _TAGS)
    return f"{header}\n# {name}\n\n{summary}\n\n{_model_snippet(name)}\n" + "".join(_sections(sections))


def card_for_repository(
    card: str,
    repo_id: str,
    *,
    calibration: str,
    facts: Mapping[str, str],
    ledger: Sequence[Source] = (),
    gallery: Sequence[Source] = (),
    licence: str | None = None,
    reports: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Complete a model's card for a repository; existing text is kept, and missing parts are added.

    Args:
        card: Markdown, with or without the Hub's YAML header; "" if there is no card yet.
        repo_id: "org/name", where it will be loaded from.
        calibration: what the radii were fitted on.
        facts: sizes and settings, name -> value.
        ledger: what it was made from, in addition to the code and the weights; if given, it replaces the card's table.
        gallery: the reference database that it contains.
        licence: of the weights; None keeps the card's, or states that it is unknown.
        reports: results of `read_metrics`; they become the header's model-index and a table.

    Raises:
        ConfigError: the card's YAML header cannot be read.
    """
    from huggingface_hub import ModelCard

    text = card if card.startswith("---\n") else _header("unknown", (), _TAGS) + "\n" + card
    try:
        parsed = ModelCard(text, ignore_metadata_errors=True)
    except Exception as error:  # of the YAML parser, or about what it has read
        reason = " ".join(str(error).split())
        raise ConfigError(f"the card's YAML header cannot be read ({reason}); correct README.md") from error
    data: Any = parsed.data  # its attributes are the header's keys
    body = parsed.text.strip() or f"# {repo_id.partition('/')[2]}"
    data.library_name = data.library_name or "geoloc"
    data.pipeline_tag = data.pipeline_tag or "image-classification"
    data.license = licence or data.license or "unknown"
    data.tags = list(dict.fromkeys([*(data.tags or []), *_TAGS]))
    data.model_name = repo_id.partition("/")[2]
    if reports:
        data.eval_results = [result for report in reports for result in _eval_results(report)]
        # An older table of the same section is replaced.
        body = _with_section(body, _MEASURED, "\n\n".join(map(_measured, reports)), replace=True)
    own = (
        Source("code", f"geoloc {__version__}", "apache-2.0", "training and running it"),
        Source("weights", repo_id, str(data.license), "this model"),
    )
    if _LOADS.search(body):
        body = _LOADS.sub(f'"{repo_id}"', body)
    else:
        body = _with_section(body, _LOADING, _model_snippet(repo_id))
    body = _with_section(body, _CONFIDENCE, calibration)
    body = _with_section(body, _USED, _bullets(USES))
    body = _with_section(body, _MISUSED, _bullets(MISUSE))
    body = _with_section(body, _FACTS, _facts(facts))
    body = _with_section(body, _LEDGER, _table([*own, *ledger, *gallery]), replace=bool(ledger))
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


def database_card(
    repo_id: str, facts: Mapping[str, str], rows_by_licence: Mapping[str, int], licence: str
) -> str:
    """A database's card.

    Args:
        repo_id: "org/name", where it will be pulled from.
        facts: sizes and settings, name -> value.
        rows_by_licence: licence -> number of rows, "" where none was given.
        licence: of the database, by the Hub's names.
    """
    name = repo_id.partition("/")[2]
    snippet = (
        "```python\nfrom geoloc import ReferenceDatabase\n\n"
        f'database = ReferenceDatabase.from_hub("{repo_id}", "{name}/")\n'
        f'part = ReferenceDatabase.from_hub("{repo_id}", "{name}-part/", bounds_deg=(south, west, north, east))\n```'
    )
    ledger = [
        Source(f"{num:,} references", repo_id, kind or "not stated", "places to compare a photo with")
        for kind, num in rows_by_licence.items()
    ]
    sections = {_FACTS: _facts(facts), _MISUSED: _bullets(MISUSE), _LEDGER: _table(ledger)}
    header = _header(licence, (), ("image-geolocation", "geoloc-references"))
    summary = "Places with the embeddings of what is seen there, in which a geoloc model searches."
    return f"{header}\n# {name}\n\n{summary}\n\n{snippet}\n" + "".join(_sections(sections))


def read_metrics(path: str | Path) -> dict[str, Any]:
    """The `metrics.json` that `geoloc evaluate` or `geoloc recall` has written.

    Args:
        path: of the file, or of the report's folder.

    Raises:
        NotFoundError: the file does not exist.
        ConfigError: the file was not written by an evaluation.
    """
    path = Path(path)
    file = path / "metrics.json" if path.is_dir() else path
    try:
        metrics = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no {file}: `geoloc evaluate --output` and `geoloc recall --output` write one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not a readable JSON file: {error}") from error
    complaint = "is no JSON object"
    if isinstance(metrics, dict):
        needed = _NEEDED_OF_RECALL if _is_of_recall(metrics) else _NEEDED
        if not (missing := [key for key in needed if key not in metrics]):
            return metrics
        complaint = f"has no {missing[0]!r}"
    raise ConfigError(f"{file} {complaint}: give the metrics.json of `geoloc evaluate` or `geoloc recall`")


# --- Metrics ----------------------------------------------------------------------------------------------


def _is_of_recall(report: Mapping[str, Any]) -> bool:
    return "set" in report


def _named_metrics(report: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None]]:
    """The identifier, name and value of each headline number; shares stay fractions, distances kilometres."""
    if _is_of_recall(report):
        for k, share in report["recall_at"].items():
            yield f"recall_at_{k}", f"recall@{k}", share
        return
    yield "geoscore", "GeoScore", report["geoscore"]
    yield "mean_km", "mean error, km", report["mean_km"]
    yield "median_km", "median error, km", report["median_km"]
    for radius, share in report["accuracy_within_km"].items():
        yield f"accuracy_within_{radius}_km", f"share within {radius} km", share
    for level, share in report.get("accuracy_by_admin", {}).items():
        yield f"accuracy_{level}", f"share in the right {level.replace('_', '-')}", share
    for radius, shares in report.get("recall_at", {}).items():
        for k, share in shares.items():
            yield f"recall_at_{k}_within_{radius}_m", f"recall@{k} within {radius} m", share


def _eval_results(report: Mapping[str, Any]) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    if _is_of_recall(report):
        task, kind = "image-retrieval", "place-recognition"
        data_set = (
            f"{report['set']}, {report['num_queries']:,.0f} queries among {report['num_database']:,} photos"
        )
    else:
        task, kind = "image-geolocation", report["protocol"]
        data_set = f"protocol {report['protocol']}, {report['num_images']:,} images"
    for identifier, name, value in _named_metrics(report):
        if value is not None:
            yield EvalResult(
                task_type=task,
                dataset_type=kind,
                dataset_name=data_set,
                metric_type=identifier,
                metric_name=name,
                metric_value=value,
            )


def _measured(report: Mapping[str, Any]) -> str:
    if _is_of_recall(report):
        said = (
            f"`{report['set']}`: {report['num_queries']:,.0f} queries among {report['num_database']:,} photos, "
            f"{report['num_without_positive']:,.0f} without a right one. "
            + "; ".join(f"{name}: {rule}" for name, rule in report["rules"].items())
            + "."
        )
    else:
        rules = report.get("rules", {}).get("description", "")
        said = (
            f"Protocol `{report['protocol']}`: {report['num_images']:,} images, {report['num_missing']:,} without a "
            f"prediction. {rules}".rstrip()
        )
    lines = [
        said,
        "",
        "| measured | value |",
        "|---|--:|",
        *(f"| {name} | {_number(value)} |" for _, name, value in _named_metrics(report)),
        "",
        *(f"- **{warning}**" for warning in report.get("warnings", ())),
    ]
    return "\n".join(lines).rstrip()


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}" if 0 <= value <= 1 else f"{value:,.1f}"


# --- Markdown ---------------------------------------------------------------------------------------------


def _header(licence: str, lines: Sequence[str], tags: Sequence[str]) -> str:
    return "\n".join(["---", f"license: {licence}", *lines, f"tags: [{', '.join(tags)}]", "---", ""])


def _model_snippet(name: str) -> str:
    return (
        "```python\nfrom geoloc import Geolocalizer\n\n"
        f'model = Geolocalizer.from_pretrained("{name}")\nprint(model.localize("image.jpg"))\n```'
    )


def _sections(sections: Mapping[str, str]) -> Iterator[str]:
    for heading, text in sections.items():
        yield f"\n## {heading}\n\n{text}\n"


def _with_section(body: str, heading: str, text: str, *, replace: bool = False) -> str:
    """The body with a section: added at its end; an existing section is kept or, on request, replaced."""
    section = f"## {heading}\n\n{text}"
    there = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", body, re.MULTILINE | re.DOTALL)
    if there is None:
        return f"{body.rstrip()}\n\n{section}"
    if not replace:
        return body
    return f"{body[: there.start()]}{section}\n\n{body[there.end() :]}".rstrip()


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _facts(facts: Mapping[str, str]) -> str:
    return _bullets([f"{key}: {value}" for key, value in facts.items()])


def _table(ledger: Sequence[Source]) -> str:
    rows = [f"| {s.what} | {s.origin} | {s.licence} | {s.used_for} |" for s in ledger]
    return "\n".join(["| what | from | licence | used for |", "|---|---|---|---|", *rows])
