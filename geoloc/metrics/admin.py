"""Accuracy of administrative names at four levels: country, region, sub-region, city.

Names are joined into keys with all levels above, so that Springfield in Ohio is not Springfield in Oregon.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Strings = NDArray[np.object_]

LEVELS: Final = ("country", "region", "sub_region", "city")
UNKNOWN: Final = ("", "nan", "NaN")


def joined_keys(country: Strings, region: Strings, sub_region: Strings, city: Strings) -> dict[str, Strings]:
    """OSV-5M's keys of n locations: `cc`, `admin1_cc`, `admin2_admin1_cc`, `name_admin2_admin1_cc`, each (n,).

    Parts are joined with "_", empty ones included (OSV-5M, metrics/utils.py).
    """
    keys = {"country": country, "region": region + "_" + country}
    keys["sub_region"] = sub_region + "_" + keys["region"]
    keys["city"] = city + "_" + keys["sub_region"]
    return keys


@dataclass
class NameTally:
    """Numbers of images with the right name at each level; mergeable.

    Attributes:
        num_known: level -> number of images whose true name is known.
        num_right: level -> number of them whose prediction has that name.
    """

    num_known: dict[str, int] = field(default_factory=dict)
    num_right: dict[str, int] = field(default_factory=dict)

    def add(self, level: str, num_known: int, num_right: int) -> None:
        """Add counts of one level."""
        self.num_known[level] = self.num_known.get(level, 0) + num_known
        self.num_right[level] = self.num_right.get(level, 0) + num_right

    def merge(self, other: "NameTally") -> None:
        """Add another tally."""
        for level, num_known in other.num_known.items():
            self.add(level, num_known, other.num_right[level])

    def state(self) -> dict[str, Any]:
        """JSON values for `from_state`."""
        return {"num_known": self.num_known, "num_right": self.num_right}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "NameTally":
        """The inverse of `state`."""
        return cls(dict(state["num_known"]), dict(state["num_right"]))

    def summary(self) -> dict[str, float]:
        """`accuracy_by_admin` of metrics.json: fractions of the levels with known true names."""
        return {level: self.num_right[level] / num for level, num in self.num_known.items() if num}


def confusion(predicted: Strings, true: Strings) -> dict[tuple[str, str], int]:
    """Count of each pair (true, predicted), from n names each."""
    import pyarrow as pa

    codes = pa.array(np.concatenate([true, predicted]), pa.string()).dictionary_encode()
    names = codes.dictionary.to_pylist()
    numbers = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    pairs, counts = np.unique(numbers[: len(true)] * len(names) + numbers[len(true) :], return_counts=True)
    return {
        (names[pair // len(names)], names[pair % len(names)]): num
        for pair, num in zip(pairs.tolist(), counts.tolist(), strict=True)
    }


def confusion_table(pairs: Mapping[tuple[str, str], int], num_names: int) -> dict[str, Any]:
    """Confusion matrix of the most frequent true names; all other names are "other".

    Returns:
        {"names": [...], "counts": [[...]]}: row = true, column = predicted, by descending frequency.
    """
    totals: dict[str, int] = {}
    for (true, _), num in pairs.items():
        totals[true] = totals.get(true, 0) + num
    names = sorted(totals, key=lambda name: (-totals[name], name))[:num_names]
    index_of = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names) + 1, len(names) + 1), np.int64)
    for (true, predicted), num in pairs.items():
        counts[index_of.get(true, len(names)), index_of.get(predicted, len(names))] += num
    return {"names": [*names, "other"], "counts": counts.tolist()}
