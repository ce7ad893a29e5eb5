"""Problems of a data set, counted and located by file and row."""

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
    """One problem.

    Attributes:
        kind: kind of the problem.
        text: location and problem: "train.csv line 17: (95.0, 3.0) is no place on Earth".
    """

    kind: Kind
    text: str


class Findings:
    """Counted problems; the first ones of each kind are kept.

    Attributes:
        counts: number of problems of each kind.
        named: the first `num_named` problems of each kind.
    """

    def __init__(self, num_named: int = 20) -> None:
        self.num_named = num_named
        self.counts: Counter[str] = Counter()
        self.named: list[Finding] = []

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, kind: Kind, text: str) -> None:
        """Add one problem."""
        if self.counts[kind] < self.num_named:
            self.named.append(Finding(kind, text))
        self.counts[kind] += 1

    def add_rows(self, kind: Kind, rows: NDArray[np.int64], where: Where, what: Callable[[int], str]) -> None:
        """Add a problem per row, (m,) ascending; `what` describes the problem of a row."""
        left = max(0, self.num_named - self.counts[kind])
        named = rows[:left].tolist()
        texts = where(named) if named else []
        self.named += [Finding(kind, f"{at}: {what(row)}") for at, row in zip(texts, named, strict=True)]
        if len(rows):
            self.counts[kind] += len(rows)
