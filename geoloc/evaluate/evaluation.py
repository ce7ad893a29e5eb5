"""All metrics of a set of predictions, mergeable over shards in any order.

evaluation = Evaluation(get_protocol("geodesic"), breakdowns=["country"])
evaluation.add(match(truth, predictions))
evaluation.metrics()               # metrics.json
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError
from geoloc.evaluate.matching import Matched
from geoloc.evaluate.place_names import Names, name_places
from geoloc.files.tables import Strings
from geoloc.geo.continents import CONTINENT_OF, DENSITY_CLASSES, density_class
from geoloc.metrics.admin import NameTally, confusion, confusion_table
from geoloc.metrics.bootstrap import intervals
from geoloc.metrics.cells import DepthTally
from geoloc.metrics.protocols import Protocol
from geoloc.metrics.regions import RegionTally, RiskCoverage
from geoloc.metrics.tally import Tally

MAX_DEPTH: Final = 12  # cells of 4.9 km x 9.8 km at the equator
MAX_GROUPS: Final = 1000  # per breakdown in a report, the largest
PERCENTS: Final = (50, 80, 90, 95)
BUILT_IN_BREAKDOWNS: Final = ("country", "continent", "density")
CONFUSION_NAMES: Final = 20


class Evaluation:
    """Tallies of a set of images under one protocol.

    Attributes:
        protocol: rules of the scores.
        tally: point scores of all images.
        groups: breakdown -> group -> tally.
        regions: percent -> tally of the column `radius_P_km`.
        names_source: description of the source of the true names.

    Args:
        protocol: rules of the scores.
        breakdowns: "country", "continent", "density" or columns of the truth.
    """

    def __init__(self, protocol: Protocol, breakdowns: Sequence[str] = BUILT_IN_BREAKDOWNS) -> None:
        self.protocol = protocol
        self.tally = Tally(protocol)
        self.groups: dict[str, dict[str, Tally]] = {name: {} for name in breakdowns}
        self.names = NameTally()
        self.depths = DepthTally(MAX_DEPTH)
        self.regions: dict[int, RegionTally] = {}
        self.risk = RiskCoverage(protocol)
        self.recall_hits: dict[str, NDArray[np.int64]] = {}
        self.num_candidates = 0  # length of the longest list
        self.num_abstained = 0
        self.confusion: dict[tuple[str, str], int] = {}
        self.names_source = ""

    def add(self, matched: Matched) -> None:
        """Add images.

        Raises:
            ConfigError, BadTableError: as `check_columns`.
        """
        check_columns(matched, list(self.groups))
        distance_km = matched.distance_km(self.protocol)
        names = name_places(matched, self.protocol.admin)
        self.tally.add(distance_km)
        self.depths.add(matched.predicted_latlon_deg, matched.truth_latlon_deg)
        self._add_names(names)
        self._add_groups(matched, names, distance_km)
        self._add_confidence(matched, distance_km)
        self._add_candidates(matched, distance_km)

    def _add_names(self, names: Names) -> None:
        self.names_source = names.source
        if self.protocol.admin in ("nearest-city", "osv5m"):
            for level, true in names.true.items():
                known = names.known[level]
                counted = known if self.protocol.missing == "miss" else known & (names.predicted[level] != "")
                right = (names.predicted[level] == true) & counted
                self.names.add(level, int(counted.sum()), int(right.sum()))
        for pair, num in confusion(names.predicted_country, names.true_country).items():
            self.confusion[pair] = self.confusion.get(pair, 0) + num

    def _add_groups(self, matched: Matched, names: Names, distance_km: NDArray[np.floating]) -> None:
        columns: dict[str, Callable[[], Strings]] = {
            "country": lambda: names.true_country,
            "continent": lambda: _continents(names.true_country),
            "density": lambda: density_class(matched.truth_latlon_deg),
        }
        for breakdown, tallies in self.groups.items():
            values = columns[breakdown]() if breakdown in columns else matched.truth_text(breakdown)
            for group, distances in _grouped(values, distance_km):
                tallies.setdefault(group, Tally(self.protocol)).add(distances)

    def _add_confidence(self, matched: Matched, distance_km: NDArray[np.floating]) -> None:
        others = matched.predictions.others
        for percent in PERCENTS:
            if (column := f"radius_{percent}_km") in others:
                radius_km = matched.predicted_numbers(column)
                self.regions.setdefault(percent, RegionTally(percent)).add(distance_km, radius_km)
                if percent == 90:
                    self.risk.add(distance_km, radius_km)
        if "abstained" in others:
            self.num_abstained += int(
                (np.char.lower(matched.predicted_text("abstained").astype(str)) == "true").sum()
            )

    def _add_candidates(self, matched: Matched, distance_km: NDArray[np.floating]) -> None:
        """Rank of the first right candidate per radius; without candidates the prediction is the only one."""
        lists: list[list[dict[str, Any]]] | None = None
        if "candidates" in matched.predictions.others:
            lists = [json.loads(text) if text else [] for text in matched.predicted_text("candidates")]
            distances_km = self._candidate_km(matched, lists)
        elif self.protocol.retrieval:
            distances_km = np.asarray(distance_km, np.float64)[:, None]
        else:
            return
        width = distances_km.shape[1]
        self.num_candidates = max(self.num_candidates, width)
        compare = np.less if self.protocol.strict else np.less_equal
        for radius in self.protocol.recall_within_m:
            if radius > 0:
                self._add_hits(radius, compare(distances_km * 1000, radius))
            elif lists is not None and "cell" in matched.truth.others:
                # Statewide's "<0 m": the candidate is the truth's cell.
                cells = matched.truth_text("cell")
                keys = np.full((len(matched), width), None, dtype=np.object_)
                for row, candidates in enumerate(lists):
                    for rank, candidate in enumerate(candidates[:width]):
                        keys[row, rank] = candidate.get("key")
                self._add_hits(radius, np.asarray(keys == cells[:, None], bool))

    def _add_hits(self, radius_m: float, is_hit: NDArray[np.bool_]) -> None:
        deepest = max(self.protocol.recall_at)
        first = np.where(is_hit.any(axis=1), is_hit.argmax(axis=1), deepest) if is_hit.size else deepest
        hits = np.bincount(np.broadcast_to(first, len(is_hit)), minlength=deepest + 1)
        self.recall_hits[f"{radius_m:g}"] = self.recall_hits.get(f"{radius_m:g}", 0) + hits

    def _candidate_km(self, matched: Matched, lists: list[list[dict[str, Any]]]) -> NDArray[np.float64]:
        """Distances of the candidates, best first, (n, k) for the protocol's largest k; NaN for none."""
        deepest = min(max(self.protocol.recall_at), max(map(len, lists), default=0))
        points = np.full((len(matched), deepest, 2), np.nan)
        for row, candidates in enumerate(lists):
            for rank, candidate in enumerate(candidates[:deepest]):
                points[row, rank] = candidate["lat"], candidate["lon"]
        truth = np.repeat(matched.truth_latlon_deg, deepest, axis=0)
        distance_km = self.protocol.distance.km(points.reshape(-1, 2), truth)
        return np.asarray(distance_km, np.float64).reshape(len(matched), deepest)

    def merge(self, other: "Evaluation") -> None:
        """Add another evaluation of the same protocol and breakdowns."""
        self.tally.merge(other.tally)
        self.names.merge(other.names)
        self.depths.merge(other.depths)
        self.risk.merge(other.risk)
        for breakdown, tallies in other.groups.items():
            for group, tally in tallies.items():
                self.groups[breakdown].setdefault(group, Tally(self.protocol)).merge(tally)
        for percent, region in other.regions.items():
            self.regions.setdefault(percent, RegionTally(percent)).merge(region)
        for radius, hits in other.recall_hits.items():
            self.recall_hits[radius] = self.recall_hits.get(radius, 0) + hits
        for pair, num in other.confusion.items():
            self.confusion[pair] = self.confusion.get(pair, 0) + num
        self.num_abstained += other.num_abstained
        self.num_candidates = max(self.num_candidates, other.num_candidates)
        self.names_source = self.names_source or other.names_source

    def state(self) -> dict[str, Any]:
        """JSON values for `from_state`."""
        return {
            "tally": self.tally.state(),
            "groups": {
                breakdown: {group: tally.state() for group, tally in tallies.items()}
                for breakdown, tallies in self.groups.items()
            },
            "names": self.names.state(),
            "names_source": self.names_source,
            "depths": self.depths.state(),
            "regions": [region.state() for region in self.regions.values()],
            "risk": self.risk.state(),
            "recall_hits": {radius: hits.tolist() for radius, hits in self.recall_hits.items()},
            "num_candidates": self.num_candidates,
            "num_abstained": self.num_abstained,
            "confusion": [[*pair, num] for pair, num in self.confusion.items()],
        }

    @classmethod
    def from_state(cls, protocol: Protocol, state: Mapping[str, Any]) -> "Evaluation":
        """The inverse of `state`.

        Raises:
            ValueError: the state is of another protocol.
        """
        found = cls(protocol)
        found.tally = Tally.from_state(protocol, state["tally"])
        found.groups = {
            breakdown: {group: Tally.from_state(protocol, tally) for group, tally in tallies.items()}
            for breakdown, tallies in state["groups"].items()
        }
        found.names = NameTally.from_state(state["names"])
        found.names_source = state["names_source"]
        found.depths = DepthTally.from_state(state["depths"])
        found.regions = {region["percent"]: RegionTally.from_state(region) for region in state["regions"]}
        found.risk = RiskCoverage.from_state(protocol, state["risk"])
        found.recall_hits = {
            radius: np.array(hits, np.int64) for radius, hits in state["recall_hits"].items()
        }
        found.num_candidates, found.num_abstained = state["num_candidates"], state["num_abstained"]
        found.confusion = {(true, predicted): num for true, predicted, num in state["confusion"]}
        return found

    def metrics(self) -> dict[str, Any]:
        """The numeric part of metrics.json."""
        count_missing = self.protocol.missing == "miss"
        found = {
            **self.tally.summary(),
            "intervals": intervals(self.tally),
            "accuracy_by_admin": self.names.summary(),
            "accuracy_by_cell_depth": self.depths.summary(count_missing=count_missing),
            "recall_at": self._recall(),
            "regions": {
                str(percent): region.summary()
                for percent, region in sorted(self.regions.items())
                if region.num
            },
            "risk_coverage": self.risk.curve(),
            "num_abstained": self.num_abstained,
            "country_confusion": confusion_table(self.confusion, CONFUSION_NAMES),
            "breakdowns": {name: _breakdown(tallies) for name, tallies in self.groups.items()},
        }
        return found

    def _recall(self) -> dict[str, dict[str, float]]:
        found = {}
        for radius, hits in self.recall_hits.items():
            # Missing predictions are in the last bin and so in the denominator.
            total = int(hits.sum()) - (0 if self.protocol.missing == "miss" else self.tally.num_missing)
            if total:
                # With five candidates, recall@10 would equal recall@5.
                depths = [k for k in self.protocol.recall_at if k <= self.num_candidates]
                found[radius] = {str(k): int(hits[:k].sum()) / total for k in depths}
        return found


def check_columns(matched: Matched, breakdowns: Sequence[str]) -> None:
    """Check breakdowns and columns before the work.

    Raises:
        ConfigError: a breakdown is neither built in nor a column of the truth.
        BadTableError: a column of radii holds text.
    """
    for breakdown in breakdowns:
        if breakdown not in BUILT_IN_BREAKDOWNS and breakdown not in matched.truth.others:
            raise ConfigError(
                f"there is no breakdown {breakdown!r}: {matched.truth.path} has the columns "
                f"{', '.join(matched.truth.others) or 'only id, latitude and longitude'}, and built in are "
                f"{', '.join(BUILT_IN_BREAKDOWNS)}"
            )
    for percent in PERCENTS:
        if (column := f"radius_{percent}_km") in matched.predictions.others:
            matched.predictions.numbers(column)


def _grouped(
    values: Strings, distance_km: NDArray[np.floating]
) -> Iterable[tuple[str, NDArray[np.floating]]]:
    import pyarrow as pa

    encoded = pa.array(values, pa.string()).dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
    for code, name in enumerate(encoded.dictionary.to_pylist()):
        yield name or "(unknown)", distance_km[order[edges[code] : edges[code + 1]]]


def _continents(countries: Strings) -> Strings:
    return np.array([CONTINENT_OF.get(code, "") for code in countries], dtype=np.object_)


def _breakdown(tallies: dict[str, Tally]) -> dict[str, Any]:
    """Summaries of the groups, the largest first; density classes in their own order."""
    names = sorted(tallies, key=lambda name: (-tallies[name].num_images, name))
    if tallies.keys() <= {*DENSITY_CLASSES}:
        names = [name for name in DENSITY_CLASSES if name in tallies]
    return {
        name: {key: value for key, value in tallies[name].summary().items() if key != "quantiles_km"}
        for name in names[:MAX_GROUPS]
        if tallies[name].num_counted
    }
