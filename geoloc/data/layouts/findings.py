"""What is wrong with a data set, counted and named by file and row."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Kind: TypeAlias = Literal["bad coordinate", "duplicate id", "missing image", "bad image", "bad metadata"]
Where: TypeAlias = Callable[[Sequence[int]], list[str]]  # rows -> "train.csv line 17", …


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: what sort of thing.
        text: where, and what: "train.csv line 17: (95.0, 3.0) is no place on Earth".
    """

    kind: Kind
    text: str


class Findings:
    """A list of findings: all are counted, the first ones of each kind are named.

    Attributes:
        counts: of each kind that there is.
        named: at most `num_named` of each kind.
    """

    def __init__(self, num_named: int = 20) -> None:
        self.num_named = num_named
        self.counts: Counter[str] = Counter()
        self.named: list[Finding] = []

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, kind: Kind, text: str) -> None:
        """Note one."""
        if self.counts[kind] < self.num_named:
            self.named.append(Finding(kind, text))
        self.counts[kind] += 1

    def add_rows(self, kind: Kind, rows: NDArray[np.int64], where: Where, what: Callable[[int], str]) -> None:
        """Note many rows, (m,) ascending; `what` says of a row what is wrong with it."""
        left = max(0, self.num_named - self.counts[kind])
        named = rows[:left].tolist()
        texts = where(named) if named else []
        self.named += [
            Finding(kind, f"{place}: {what(row)}") for place, row in zip(texts, named, strict=True)
        ]
        if len(rows):
            self.counts[kind] += len(rows)
