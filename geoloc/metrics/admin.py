"""Accuracy of place names at four levels: country, region, sub-region, city.

The names themselves come from elsewhere (a nearest city, a column of the truth); here they are joined into keys and
compared. A key names its whole path, so that Springfield in Ohio is not Springfield in Oregon.
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
    """OSV-5M's keys of n places: `cc`, `admin1_cc`, `admin2_admin1_cc`, `name_admin2_admin1_cc`, each (n,).

    OSV-5M, metrics/utils.py: parts are joined with "_", an empty part stays as an empty part.
    """
    keys = {"country": country, "region": region + "_" + country}
    keys["sub_region"] = sub_region + "_" + keys["region"]
    keys["city"] = city + "_" + keys["sub_region"]
    return keys


@dataclass
class NameTally:
    """How many images have the right name at each level; mergeable.

    Attributes:
        num_known: level -> images whose true name is known.
        num_right: level -> those among them whose prediction has that name.
    """

    num_known: dict[str, int] = field(default_factory=dict)
    num_right: dict[str, int] = field(default_factory=dict)

    def add(self, level: str, num_known: int, num_right: int) -> None:
        """Add counts of one level."""
        self.num_known[level] = self.num_known.get(level, 0) + num_known
        self.num_right[level] = self.num_right.get(level, 0) + num_right

    def merge(self, other: "NameTally") -> None:
        """Add all that another one holds."""
        for level, num_known in other.num_known.items():
            self.add(level, num_known, other.num_right[level])

    def state(self) -> dict[str, Any]:
        """Plain JSON values from which `from_state` makes the same tally."""
        return {"num_known": self.num_known, "num_right": self.num_right}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "NameTally":
        """The inverse of `state`."""
        return cls(dict(state["num_known"]), dict(state["num_right"]))

    def summary(self) -> dict[str, float]:
        """`accuracy_by_admin` of metrics.json: fractions; a level of which no true name is known is left out."""
        return {level: self.num_right[level] / num for level, num in self.num_known.items() if num}


def confusion(predicted: Strings, true: Strings) -> dict[tuple[str, str], int]:
    """How often each pair (true, predicted) appears, of n names each."""
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
    """The most frequent names against each other; all others are "other".

    Returns:
        {"names": [...], "counts": [[...]]}: row = true, column = predicted, the most frequent true name first.
    """
    totals: dict[str, int] = {}
    for (true, _), num in pairs.items():
        totals[true] = totals.get(true, 0) + num
    names = sorted(totals, key=lambda name: (-totals[name], name))[:num_names]
    place = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names) + 1, len(names) + 1), np.int64)
    for (true, predicted), num in pairs.items():
        counts[place.get(true, len(names)), place.get(predicted, len(names))] += num
    return {"names": [*names, "other"], "counts": counts.tolist()}
