"""What `geoloc evaluate` does once its options are understood: tables or a model, their scores, a comparison."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from geoloc.cli.console import count, km, radius, say
from geoloc.cli.jobs import Workers
from geoloc.errors import NotFoundError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geoloc.evaluate.benchmarks import Benchmark
    from geoloc.evaluate.matching import Matched
    from geoloc.evaluate.report import EvaluationRun
    from geoloc.files.tables import PointTable
    from geoloc.localize.rows import LocalizeWork
    from geoloc.metrics.protocols import Protocol

_IMAGES_PER_SHARD = 256


@dataclass(frozen=True)
class Case:
    """Predictions beside a truth, before they are matched.

    Attributes:
        truth: ids and positions; perhaps names of places.
        predictions: of the same ids.
        protocol: by which they are scored.
        find_image: the file of an image by its id.
        database_latlon_deg: (m, 2) where the database's images are, for a protocol that asks; None if unknown.
        galleries: what is known of training or gallery points, in words.
        facts: how the predictions were made.
        warnings: what a reader must know first.
    """

    truth: PointTable
    predictions: PointTable
    protocol: Protocol
    find_image: Callable[[str], Path | None]
    database_latlon_deg: NDArray[np.float64] | None = None
    galleries: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def match(self, subset: Sequence[str] | None) -> Matched:
        """Each prediction with its truth; of the ids in a subset, if there is one."""
        from geoloc.evaluate.matching import match

        if self.protocol.needs_positive and self.database_latlon_deg is None:
            self.warnings.append(
                f"The protocol {self.protocol.name} leaves out queries without a positive; where the database's images "
                "are is not known here, so they are misses."
            )
        return match(
            self.truth,
            self.predictions,
            subset,
            database_latlon_deg=self.database_latlon_deg,
            within_m=min(self.protocol.recall_within_m),
        )

    def check_leakage(self, matched: Matched, known: PointTable, radii_m: Sequence[float] | None) -> None:
        """Warn of images that lie close to known points, within the usual radii if none are given."""
        from geoloc.evaluate.leakage import RADII_M, leakage_warnings

        name = known.path.name
        self.galleries.append(name)
        self.warnings.extend(
            leakage_warnings(matched.truth_latlon_deg, known.latlon_deg, name, radii_m or RADII_M)
        )

    def score(
        self,
        matched: Matched,
        breakdowns: Sequence[str],
        folder: Path,
        engine: Literal["local", "ray"],
        num_workers: int,
    ) -> EvaluationRun:
        """All scores and what the report says of them.

        Args:
            matched: this case's images.
            breakdowns: beside those that are always there.
            folder: for the shards.
            engine: that they run on.
            num_workers: of the engine.
        """
        from geoloc.evaluate.evaluation import BUILT_IN_BREAKDOWNS
        from geoloc.evaluate.report import EvaluationRun
        from geoloc.evaluate.scoring import score

        evaluation = score(
            matched,
            self.protocol,
            list(dict.fromkeys([*BUILT_IN_BREAKDOWNS, *breakdowns])),
            folder=folder,
            engine=engine,
            num_workers=num_workers,
        )
        gallery = ", ".join(self.galleries) or "not stated: add --gallery to check for leakage"
        return EvaluationRun.of(
            matched,
            evaluation,
            warnings=self.warnings,
            facts={**self.facts, "gallery": gallery},
            find_image=self.find_image,
        )


def localized_case(
    work: LocalizeWork, benchmark: Benchmark, protocol: Protocol, output: Path, crew: Workers
) -> Case:
    """A benchmark's images localised by a model; the predictions stay beside the output."""
    gallery = benchmark.gallery_latlon_deg
    case = Case(
        benchmark.truth,
        _localize(work, benchmark, output, crew),
        protocol,
        benchmark.find_image,
        gallery if protocol.needs_positive else None,
        facts=_facts_of(work),
        warnings=list(benchmark.warnings),
    )
    if gallery is not None:
        case.galleries.append(f"database of {benchmark.truth.path.name}, {len(gallery):,} images")
    return case


def _localize(work: LocalizeWork, benchmark: Benchmark, output: Path, crew: Workers) -> PointTable:
    """Predictions of a model for a benchmark's images; what an earlier run has done is not done again."""
    from geoloc.files.tables import read_points
    from geoloc.localize.job import LocalizeJob, images_per_shard
    from geoloc.photos.sources import file_payloads, name_shards

    if not benchmark.images:
        raise NotFoundError(f"no image of {benchmark.name} was found in {benchmark.truth.path}; check --data")
    images = ((image.id, str(image.path)) for image in benchmark.images)
    shards = name_shards(file_payloads(images, images_per_shard(work.batch_size, _IMAGES_PER_SHARD)))
    predictions = output.with_name(f"{output.name}.predictions.parquet")
    with LocalizeJob(work, shards, predictions, resume=True) as job:
        crew.run_localize(job)
        job.finish()
    return read_points(predictions)


def _facts_of(work: LocalizeWork) -> dict[str, Any]:
    """Facts of the model and its options, for the report."""
    session = work.driver_session
    digest = session.database_identity
    return {
        "model": f"{session.name} ({session.model_identity[:12]})",
        "preprocessing of the model": str(session.preprocess),
        "query mode": session.options.query,
        "references": "none" if digest == "none" else f"{session.options.reference} ({digest[:12]})",
    }


def finder(folder: Path | None) -> Any:
    """Images of a folder by ids that are names with or without the suffix, or paths in the folder."""
    if folder is None:
        return lambda image_id: None
    from geoloc.images.decode import IMAGE_SUFFIXES

    def find(image_id: str) -> Path | None:
        for suffix in ("", *IMAGE_SUFFIXES):
            path = folder / f"{image_id}{suffix}"
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                return path
        return None

    return find


@contextmanager
def scores_folder(output: Path | None) -> Iterator[Path]:
    """Where the shards of the scoring lie until the report is there."""
    if output is None:
        with TemporaryDirectory(prefix="geoloc-") as name:
            yield Path(name)
    else:
        folder = output.with_name(f".{output.name}.scores")
        yield folder
        shutil.rmtree(folder)


def compare_tables(
    truth: PointTable,
    tables: Sequence[PointTable],
    protocol: Protocol,
    subset: Sequence[str] | None,
    output: Path | None,
) -> None:
    """Say what the second of two tables gains over the first, and write it to the output."""
    from geoloc.evaluate.comparison import compare, to_markdown
    from geoloc.files import replace_folder, write_manifest

    compared = compare(truth, tables[0], tables[1], protocol, subset)
    text = to_markdown(compared)
    if output is not None:
        with replace_folder(output) as folder:
            (folder / "comparison.json").write_text(
                json.dumps(compared, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            (folder / "comparison.md").write_text(text, encoding="utf-8")
            write_manifest(folder, kind="comparison")
    for line in text.splitlines():
        say(line)


def say_scores(run: EvaluationRun, output: Path | None) -> None:
    """The scores in a few lines, with what a reader must know of them."""
    metrics = run.metrics
    low, high = metrics["intervals"]["geoscore"]
    facts = [
        f"protocol {metrics['protocol']}",
        count(metrics["num_images"], "image"),
        f"GeoScore {metrics['geoscore']:,.1f} ({low:,.0f} to {high:,.0f})",
        f"median {km(metrics['median_km']) or 'none'}",
        f"mean {km(metrics['mean_km']) or 'none'}",
    ]
    say(", ".join(facts))
    shares = [f"{share:.1%} within {radius(float(r))}" for r, share in metrics["accuracy_within_km"].items()]
    shares += [
        f"{share:.1%} right {level.replace('_', '-')}"
        for level, share in metrics["accuracy_by_admin"].items()
    ]
    shares += [
        f"recall@{k} within {radius(float(r) / 1000)} {share:.1%}"
        for r, by_k in metrics["recall_at"].items()
        for k, share in by_k.items()
    ]
    say(", ".join(shares))
    for name, problem in metrics["problems"].items():
        examples = ", ".join(problem["examples"][:3])
        say(f"{problem['count']:,} {name.replace('_', ' ')}: {problem['meaning']} (for example {examples})")
    for warning in metrics["warnings"]:
        say(f"warning: {warning}")
    if output is not None:
        say(f"-> {output / 'report.html'}")
