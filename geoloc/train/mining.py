"""Queries with a positive and hard negatives, mined with the features that the model has now (Deep VG benchmark).

Three ways (Berton et al., CVPR 2022), by which photos have to be embedded for Q queries:

    random     the queries and their positives; negatives are any
    full       these and the whole database; negatives are the hardest of a pool and of those found before
    partial    these and a pool of the database; negatives are the hardest of the pool

A positive is the most similar photo of the database within 10 m; nothing within 25 m is a negative. Metres are those of
the ellipsoid, so no border of UTM zones hides a neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from geoloc.data.sample import SampleTable
from geoloc.data.samplers import InOrder
from geoloc.data.stream import Batch, Load, SampleStream
from geoloc.errors import ConfigError
from geoloc.geo.near import rows_within_m
from geoloc.train.ranks import Predict, seed_of

IntArray = NDArray[np.int64]
Embed: TypeAlias = Callable[[IntArray], NDArray[np.float32]]


@dataclass(frozen=True)
class MiningConfig:
    """How tuples are mined; defaults are the benchmark's.

    Attributes:
        kind: see the module.
        queries_per_refresh: tuples that are mined at once.
        negatives: of a tuple.
        pool: photos of the database among which hard negatives are sought.
        positive_radius_m: of a query; one without a photo in it is left out.
        negative_radius_m: negatives are farther away.
        weigh_by: names of columns of 0 and 1; the queries that have a 1 are drawn the more often the rarer they are,
            such as "is_night" and "is_sideways" of MSLS.
    """

    kind: Literal["random", "full", "partial"] = "partial"
    queries_per_refresh: int = 1000
    negatives: int = 10
    pool: int = 1000
    positive_radius_m: float = 10.0
    negative_radius_m: float = 25.0
    weigh_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("queries_per_refresh", "negatives", "pool"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mining.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.positive_radius_m <= self.negative_radius_m:
            raise ConfigError(
                f"mining.positive_radius_m is {self.positive_radius_m:g} and negative_radius_m "
                f"{self.negative_radius_m:g}: the first is positive, and the second no smaller"
            )


@dataclass(frozen=True)
class Tuples:
    """Q mined tuples; all numbers are rows of the database followed by the queries.

    Attributes:
        query: (Q,).
        positive: (Q,).
        negatives: (Q, N), hardest first unless they are random.
        num_embedded: photos that were embedded for them.
    """

    query: IntArray
    positive: IntArray
    negatives: IntArray
    num_embedded: int


class TupleMiner:
    """Mines tuples; what it draws depends on seed and number of the refresh alone.

    Args:
        database_deg: (D, 2) of the database: rows 0 to D - 1.
        queries_deg: (Q, 2) of the queries: rows D to D + Q - 1.
        config: how.
        seed: of all draws.
        query_weights: (Q,) how often each query is drawn relative to others; all alike without.

    Attributes:
        num_without_positive: queries that are left out.
        remembered: (Q, N) the hardest negatives so far of each query, -1 for none yet; "full" fills it.

    Raises:
        ConfigError: no query has a positive, or a query has too few photos far enough away.
    """

    def __init__(
        self,
        database_deg: ArrayLike,
        queries_deg: ArrayLike,
        config: MiningConfig,
        seed: int,
        query_weights: ArrayLike | None = None,
    ) -> None:
        self.config, self._seed = config, seed
        self._num_database, num_queries = len(np.asarray(database_deg)), len(np.asarray(queries_deg))
        self._positives = rows_within_m(queries_deg, database_deg, config.positive_radius_m)
        self._near = rows_within_m(queries_deg, database_deg, config.negative_radius_m)
        self._usable = np.flatnonzero([len(rows) > 0 for rows in self._positives])
        self.num_without_positive = num_queries - len(self._usable)
        if not len(self._usable):
            raise ConfigError(
                f"none of {num_queries:,} queries has one of {self._num_database:,} photos of the database within "
                f"mining.positive_radius_m={config.positive_radius_m:g} m: check that both are of the same area and "
                "that latitude and longitude are not swapped, or raise the radius"
            )
        crowded = max(len(self._near[query]) for query in self._usable)
        if self._num_database - crowded < config.negatives:
            raise ConfigError(
                f"mining.negatives is {config.negatives}, and a query has {self._num_database - crowded} of "
                f"{self._num_database} photos farther than negative_radius_m={config.negative_radius_m:g} m: ask for "
                "fewer negatives, or bring a larger database"
            )
        self._pool = min(max(config.pool, config.negatives + crowded), self._num_database)
        weights = np.ones(num_queries) if query_weights is None else np.asarray(query_weights, np.float64)
        self._shares = weights[self._usable] / weights[self._usable].sum()
        self.remembered = np.full((num_queries, config.negatives), -1, np.int64)

    def mine(self, number: int, embed: Embed) -> Tuples:
        """The tuples of a refresh.

        Args:
            number: of the refresh, from 0. In "full", those before it have been mined.
            embed: unit vectors of rows, ascending and each once: (n,) -> (n, D).
        """
        config = self.config
        rng = np.random.default_rng([self._seed, number])
        count = min(config.queries_per_refresh, int(np.count_nonzero(self._shares)))
        queries = rng.choice(self._usable, count, replace=False, p=self._shares)
        pool = np.sort(rng.choice(self._num_database, self._pool, replace=False))
        wanted = [queries + self._num_database, *(self._positives[query] for query in queries)]
        if config.kind == "partial":
            wanted.append(pool)
        elif config.kind == "full":
            wanted.append(np.arange(self._num_database))
        rows = np.unique(np.concatenate(wanted))
        vectors = embed(rows)

        def alike(query: int, others: IntArray) -> NDArray[np.float32]:
            own = vectors[np.searchsorted(rows, query + self._num_database)]
            return np.asarray(vectors[np.searchsorted(rows, others)] @ own)

        positive = np.empty(count, np.int64)
        negatives = np.empty((count, config.negatives), np.int64)
        for place, query in enumerate(queries.tolist()):
            right = self._positives[query]
            positive[place] = right[alike(query, right).argmax()]
            far = np.setdiff1d(pool, self._near[query], assume_unique=True)
            if config.kind == "random":
                negatives[place] = rng.choice(far, config.negatives, replace=False)
                continue
            if config.kind == "full":
                far = np.union1d(far, self.remembered[query][self.remembered[query] >= 0])
            hardest = np.argsort(-alike(query, far), kind="stable")[: config.negatives]
            negatives[place] = far[hardest]
        if config.kind == "full":
            self.remembered[queries] = negatives
        return Tuples(queries + self._num_database, positive, negatives, len(rows))


def rarity_weights(flags: Sequence[NDArray[np.float64]], num: int) -> NDArray[np.float64]:
    """1, and n / count more for each flag that is 1 (the benchmark's weights for MSLS), (num,).

    Args:
        flags: (num,) each, of 0, 1 and NaN for unknown.
        num: n.
    """
    weights = np.ones(num)
    for flag in flags:
        if count := np.count_nonzero(flag == 1):
            weights[flag == 1] += num / count
    return weights


class MinedTuples:
    """Batches of tuples for the trainer, mined anew whenever they are used up (its `PlannedData`).

    A batch is that of `SampleStream`, in which 2 + N rows after one another are a tuple: query, positive, negatives.
    The task's predictions must have "embedding" (b, D) and "row" of the batch.

    Args:
        table: the database and after it the queries.
        load: of what is trained with.
        plain_load: of what is embedded to mine.
        miner: of that table.
        tuples_per_batch: of all ranks together.
        seed: of the random numbers that `load` gets.
        num_workers: processes that load what is embedded.
        embed_batch: photos that are embedded together.

    Attributes:
        num_embedded: photos that were embedded to mine, so far.
        num_refreshes: how often that was.
    """

    def __init__(
        self,
        table: SampleTable,
        load: Load,
        plain_load: Load,
        miner: TupleMiner,
        tuples_per_batch: int,
        seed: int,
        *,
        num_workers: int = 0,
        embed_batch: int = 64,
    ) -> None:
        self.table, self.load, self.plain_load, self.miner = table, load, plain_load, miner
        self.tuples_per_batch, self.seed = tuples_per_batch, seed
        self.num_workers, self.embed_batch = num_workers, embed_batch
        self.num_embedded = self.num_refreshes = 0
        self._first = self._stop = 0
        self._tuples: IntArray = np.zeros((0, 2 + miner.config.negatives), np.int64)

    def plan(self, index: int, predict: Predict, rank: int, world_size: int) -> int:
        """Mine for batch `index` and those after it, if it was not done; the number of the first without tuples."""
        if self._first <= index < self._stop:
            return self._stop
        if self.tuples_per_batch % world_size:
            raise ConfigError(
                f"{world_size} processes cannot share a batch of {self.tuples_per_batch} tuples evenly: choose a "
                f"multiple of {world_size} as batch_size"
            )

        def embed(rows: IntArray) -> NDArray[np.float32]:
            stream = SampleStream(
                self.table,
                self.plain_load,
                InOrder(rows),
                batch_size=self.embed_batch * world_size,
                num_workers=self.num_workers,
            )
            found = predict(stream.batches(rank, world_size))
            vectors: NDArray[np.float32] = found["embedding"][found["row"].argsort()].float().numpy()
            return vectors

        mined = self.miner.mine(self.num_refreshes, embed)
        self.num_refreshes += 1
        self.num_embedded += mined.num_embedded
        self._tuples = np.concatenate([mined.query[:, None], mined.positive[:, None], mined.negatives], 1)
        # Tuples that fill no batch are dropped; the next draw is as good.
        self._first, self._stop = index, index + max(len(self._tuples) // self.tuples_per_batch, 1)
        return self._stop

    def batch(self, index: int, rank: int, world_size: int) -> Batch:
        """This rank's part of a planned batch."""
        start = (index - self._first) * self.tuples_per_batch
        own = self._tuples[start : start + self.tuples_per_batch][rank::world_size].ravel()
        seed = seed_of(self.seed, index, rank)
        return SampleStream(self.table, self.load, InOrder(own), batch_size=len(own), seed=seed).batch(0)

    def state_dict(self) -> dict[str, Any]:
        """What was mined."""
        return {
            "first": self._first,
            "stop": self._stop,
            "num_refreshes": self.num_refreshes,
            "num_embedded": self.num_embedded,
            "tuples": torch.from_numpy(self._tuples),
            "remembered": torch.from_numpy(self.miner.remembered),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was mined."""
        self._first, self._stop = state["first"], state["stop"]
        self.num_refreshes, self.num_embedded = state["num_refreshes"], state["num_embedded"]
        self._tuples = state["tuples"].numpy()
        self.miner.remembered = state["remembered"].numpy()
