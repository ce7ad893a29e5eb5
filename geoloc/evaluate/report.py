"""Report of an evaluation: a folder with metrics.json, metrics.md, images.parquet, report.html and pictures.

    run = EvaluationRun.of(matched, evaluation)
    run.write("report/")

The folder is written atomically. Its manifest lists the files; a folder with other files is not replaced.
"""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from geoloc import __version__
from geoloc.errors import BadImageError
from geoloc.evaluate.evaluation import Evaluation
from geoloc.evaluate.matching import Matched
from geoloc.evaluate.pictures import FindImage, PredictionPicture
from geoloc.files import replace_folder, sha256_of, write_manifest
from geoloc.geo.places import load_places
from geoloc.images.decode import decode_image
from geoloc.metrics.protocols import Protocol
from geoloc.metrics.tally import image_scores
from geoloc.view.report_html import ReportImages, WorstCase, write_report_html

MAX_MAP_IMAGES: Final = 4000
NUM_CURVE_POINTS: Final = 400
NUM_WORST: Final = 12
THUMBNAIL_PX: Final = 320


@dataclass(frozen=True)
class EvaluationRun:
    """Evaluated predictions.

    Attributes:
        matched: the images.
        distance_km: (n,) errors, NaN without a prediction.
        metrics: content of metrics.json.
        find_image: file of an image by its id, for the thumbnails.
    """

    matched: Matched
    distance_km: NDArray[np.floating]
    metrics: Mapping[str, Any]
    find_image: FindImage = field(default=lambda name: None)

    @classmethod
    def of(
        cls,
        matched: Matched,
        evaluation: Evaluation,
        *,
        warnings: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        find_image: FindImage = lambda name: None,
    ) -> "EvaluationRun":
        """Evaluated predictions with all metrics.

        Args:
            matched: predictions with the truth.
            evaluation: of all images.
            warnings: sentences such as those of the leakage check.
            facts: how the predictions were made: model, gallery.
            find_image: file of an image by its id, for the thumbnails.
        """
        protocol = evaluation.protocol
        metrics = {
            "protocol": protocol.name,
            **evaluation.metrics(),
            "rules": protocol.facts(),
            "problems": matched.problems.to_dict(),
            "warnings": [*_deviations(matched, evaluation), *warnings],
            "made_with": {
                "true place names": evaluation.names_source,
                "truth": _named_file(matched.truth.path),
                "predictions": _named_file(matched.predictions.path),
                **(facts or {}),
                "versions": versions(),
            },
        }
        return cls(matched, matched.distance_km(protocol), metrics, find_image)

    def write(
        self, folder: str | Path, *, title: str = "Evaluation", pictures: Sequence[PredictionPicture] = ()
    ) -> None:
        """Write the report; an earlier report is replaced atomically.

        Args:
            folder: of the report; parent folders are created.
            title: heading.
            pictures: written into `pictures/` and linked.

        Raises:
            OutputMismatchError: the folder holds other files.
        """
        import pyarrow.parquet as pq

        with replace_folder(folder) as temporary:
            text = json.dumps(self.metrics, indent=2, allow_nan=False, ensure_ascii=False)
            (temporary / "metrics.json").write_text(text + "\n", encoding="utf-8")
            (temporary / "metrics.md").write_text(to_markdown(self.metrics, title), encoding="utf-8")
            pq.write_table(self.table(), temporary / "images.parquet", compression="zstd")
            links = _write_pictures(temporary, pictures)
            shown = replace(self._shown(), pictures=links)
            write_report_html(temporary / "report.html", self.metrics, shown, title=title)
            write_manifest(temporary, kind="evaluation")

    def table(self) -> Any:
        """Arrow table with one row per image: id, coordinates, distance_km, geoscore, city labels."""
        import pyarrow as pa

        known = np.isfinite(self.distance_km)
        protocol_score = image_scores(self.distance_km, self._protocol)
        columns: dict[str, Any] = {"id": pa.array(self.matched.ids, pa.string())}
        for prefix, latlon_deg in (
            ("truth_", self.matched.truth_latlon_deg),
            ("", self.matched.predicted_latlon_deg),
        ):
            columns[f"{prefix}latitude"] = pa.array(latlon_deg[:, 0], from_pandas=True)
            columns[f"{prefix}longitude"] = pa.array(latlon_deg[:, 1], from_pandas=True)
        columns["distance_km"] = pa.array(self.distance_km.astype(np.float64), from_pandas=True)
        columns["geoscore"] = pa.array(protocol_score, from_pandas=True)
        columns["truth_place"] = pa.array(self._labels(self.matched.truth_latlon_deg), pa.string())
        columns["place"] = pa.array(self._labels(self.matched.predicted_latlon_deg, known), pa.string())
        return pa.table(columns)

    @property
    def _protocol(self) -> Protocol:
        from geoloc.metrics.protocols import get_protocol

        return get_protocol(self.metrics["protocol"])

    def _labels(
        self, latlon_deg: NDArray[np.float64], known: NDArray[np.bool_] | None = None
    ) -> NDArray[np.object_]:
        """Labels of points such as "Lund, Skane, SE"; None for unknown ones."""
        labels = np.full(len(latlon_deg), None, dtype=np.object_)
        where = np.arange(len(latlon_deg)) if known is None else np.flatnonzero(known)
        found = load_places().nearest(latlon_deg[where])
        rows, first, index = np.unique(found.place_id, return_index=True, return_inverse=True)
        made = (
            np.array([found[int(i)].label for i in first], dtype=np.object_)
            if len(rows)
            else np.empty(0, object)
        )
        labels[where] = made[index]
        return labels

    def _shown(self) -> ReportImages:
        num = len(self.matched)
        sample = np.unique(np.linspace(0, num - 1, min(num, MAX_MAP_IMAGES)).round().astype(np.int64))
        ordered = np.sort(self.distance_km[np.isfinite(self.distance_km)].astype(np.float64))
        ranks = np.unique(np.linspace(0, max(len(ordered) - 1, 0), NUM_CURVE_POINTS).round().astype(np.int64))
        drop = self._protocol.missing == "drop"
        total = len(ordered) if drop else num
        return ReportImages(
            latlon_deg=self.matched.truth_latlon_deg[sample],
            distance_km=self.distance_km[sample].astype(np.float64),
            tips=[f"{self.matched.ids[i]}: {_off(self.distance_km[i])}" for i in sample],
            cdf_km=ordered[ranks].tolist() if len(ordered) else [],
            cdf_share=((ranks + 1) / total).tolist() if len(ordered) else [],
            worst=[self._worst_case(int(row)) for row in self._worst_rows()],
            num_images=num,
        )

    def _worst_rows(self) -> NDArray[np.int64]:
        """Rows of the largest errors; images without a prediction come last."""
        as_number = np.nan_to_num(self.distance_km.astype(np.float64), nan=-1.0)
        return np.argsort(-as_number, kind="stable")[:NUM_WORST]

    def _worst_case(self, row: int) -> WorstCase:
        truth = self.matched.truth_latlon_deg[row]
        predicted = self.matched.predicted_latlon_deg[row]
        has_prediction = bool(np.isfinite(predicted).all())
        (true_place,) = self._labels(truth[None])
        (place,) = self._labels(predicted[None]) if has_prediction else ("",)
        path = self.find_image(self.matched.ids[row])
        return WorstCase(
            name=self.matched.ids[row],
            distance_km=float(self.distance_km[row]),
            true_latlon_deg=(float(truth[0]), float(truth[1])),
            predicted_latlon_deg=(float(predicted[0]), float(predicted[1])) if has_prediction else None,
            true_place=true_place,
            predicted_place=place,
            thumbnail_jpeg=None if path is None else _thumbnail_jpeg(path),
        )


def versions() -> str:
    """Versions of geoloc, Python and the packages that compute the metrics."""
    packages = ("numpy", "pyproj", "scipy", "reverse_geocoder")
    found = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return ", ".join([f"geoloc {__version__}", f"Python {platform.python_version()}", *found])


def to_markdown(metrics: Mapping[str, Any], title: str = "Evaluation") -> str:
    """Main scores as a Markdown table, with protocol, problems and warnings."""
    columns = {"GeoScore": f"{metrics['geoscore']:.1f}"}
    columns |= {"mean km": _number(metrics["mean_km"]), "median km": _number(metrics["median_km"])}
    columns |= {f"@{radius} km": f"{share:.2%}" for radius, share in metrics["accuracy_within_km"].items()}
    columns |= {
        level.replace("_", "-"): f"{share:.2%}" for level, share in metrics["accuracy_by_admin"].items()
    }
    for radius, shares in metrics["recall_at"].items():
        columns |= {f"R@{k}, {radius} m": f"{share:.2%}" for k, share in shares.items()}
    rules = metrics["rules"]
    lines = [
        f"# {title}",
        "",
        f"Protocol `{metrics['protocol']}`: {rules['description']}",
        "",
        f"{metrics['num_images']:,} images, {metrics['num_missing']:,} without a prediction ({rules['missing']}). "
        f"Distance: {rules['distance']}; threshold {rules['threshold']}; GeoScore: {rules['geoscore']}.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'--:|' * len(columns)}",
        f"| {' | '.join(columns.values())} |",
        "",
    ]
    if interval := metrics["intervals"].get("geoscore"):
        lines += [f"95 % interval of the GeoScore (bootstrap): {interval[0]:.1f} to {interval[1]:.1f}.", ""]
    for name, problem in metrics["problems"].items():
        examples = ", ".join(f"`{example}`" for example in problem["examples"][:3])
        lines.append(f"- {problem['count']:,} {name.replace('_', ' ')}: {problem['meaning']} ({examples})")
    lines += [f"- **{warning}**" for warning in metrics["warnings"]]
    lines += ["", *(f"- {name}: {value}" for name, value in metrics["made_with"].items()), ""]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"


def _deviations(matched: Matched, evaluation: Evaluation) -> list[str]:
    """Deviations of this evaluation from the protocol."""
    protocol, found = evaluation.protocol, []
    if protocol.num_images is not None and len(matched) != protocol.num_images:
        found.append(
            f"The protocol {protocol.name} is defined on {protocol.num_images:,} images, and these are "
            f"{len(matched):,}: do not print the numbers as its results."
        )
    if protocol.admin == "polygon":
        found.append(
            f"The protocol {protocol.name} decides countries by polygons, which are not shipped: place-name accuracies "
            "are not computed."
        )
    if protocol.missing == "drop" and evaluation.tally.num_missing:
        found.append(
            f"{evaluation.tally.num_missing:,} images without a prediction are left out of every mean, as the protocol "
            f"{protocol.name} does."
        )
    return found


def _named_file(path: Path) -> str:
    if not path.is_file():
        return path.name
    return f"{path.name}, sha256 {sha256_of(path)[:16]}"


def _off(distance_km: float) -> str:
    return "no prediction" if np.isnan(distance_km) else f"{distance_km:,.1f} km off"


def _write_pictures(folder: Path, pictures: Sequence[PredictionPicture]) -> list[tuple[str, str]]:
    """Written files, relative to the folder, with their captions."""
    if pictures:
        (folder / "pictures").mkdir()
    links = []
    for number, picture in enumerate(pictures, 1):
        name = f"pictures/{number:04}.jpg"
        (folder / name).write_bytes(picture.jpeg())
        links.append((name, picture.line))
    return links


def _thumbnail_jpeg(path: Path) -> bytes | None:
    from PIL import Image

    try:
        image = Image.fromarray(decode_image(path, min_side_px=THUMBNAIL_PX))
    except BadImageError:
        return None
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    data = BytesIO()
    image.save(data, "JPEG", quality=80)
    return data.getvalue()
