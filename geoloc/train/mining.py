"""Mining of training tuples with the current model: query, positive, hard negatives (Deep VG benchmark).

Kinds of mining (Berton et al., CVPR 2022), by the photos that are embedded for Q queries:

    random     queries and their positives; negatives are random
    full       these and the whole database; negatives are the hardest of a pool and of those found before
    partial    these and a pool of the database; negatives are the hardest of the pool

A positive is the most similar database photo within 10 m; photos within 25 m are no negatives. Distances are on the
ellipsoid, so that neighbours across a border of UTM zones are found.
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
    """Mining settings; defaults are the benchmark's.

    Attributes:
        kind: see the module.
        queries_per_refresh: tuples that are mined together.
        negatives: number of negatives of a tuple.
        pool: size of the database sample that is searched for hard negatives.
        positive_radius_m: queries without a database photo within it are left out.
        negative_radius_m: negatives are farther away.
        weigh_by: columns of 0 and 1, such as "is_night" and "is_sideways" of MSLS; queries with a rare 1 are sampled
            more often.
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
                f"{self.negative_radius_m:g}: they must be positive, and the second not smaller"
            )


@dataclass(frozen=True)
class Tuples:
    """Q mined tuples, as rows of the database followed by the queries.

    Attributes:
        query: (Q,).
        positive: (Q,).
        negatives: (Q, N), hardest first unless they are random.
        num_embedded: number of photos that were embedded.
    """

    query: IntArray
    positive: IntArray
    negatives: IntArray
    num_embedded: int


class TupleMiner:
    """Mines tuples; random numbers depend on the seed and the number of the refresh.

    Args:
        database_deg: (D, 2) database: rows 0 to D - 1.
        queries_deg: (Q, 2) queries: rows D to D + Q - 1.
        config: mining settings.
        seed: random seed.
        query_weights: (Q,) sampling weight of each query; uniform by default.

    Attributes:
        num_without_positive: number of queries that are left out.
        remembered: (Q, N) hardest negatives so far of each query, -1 for none yet; only "full" uses it.

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
                f"{self._num_database} photos farther than negative_radius_m={config.negative_radius_m:g} m: lower "
                "mining.negatives, or use a larger database"
            )
        self._pool = min(max(config.pool, config.negatives + crowded), self._num_database)
        weights = np.ones(num_queries) if query_weights is None else np.asarray(query_weights, np.float64)
        self._shares = weights[self._usable] / weights[self._usable].sum()
        self.remembered = np.full((num_queries, config.negatives), -1, np.int64)

    def mine(self, number: int, embed: Embed) -> Tuples:
        """Tuples of one refresh.

        Args:
            number: number of the refresh, from 0; for "full" all earlier ones must have been mined.
            embed: from ascending unique rows to unit vectors: (n,) -> (n, D).
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

        def similarities(query: int, others: IntArray) -> NDArray[np.float32]:
            own = vectors[np.searchsorted(rows, query + self._num_database)]
            return np.asarray(vectors[np.searchsorted(rows, others)] @ own)

        positive = np.empty(count, np.int64)
        negatives = np.empty((count, config.negatives), np.int64)
        for row, query in enumerate(queries.tolist()):
            right = self._positives[query]
            positive[row] = right[similarities(query, right).argmax()]
            far = np.setdiff1d(pool, self._near[query], assume_unique=True)
            if config.kind == "random":
                negatives[row] = rng.choice(far, config.negatives, replace=False)
                continue
            if config.kind == "full":
                far = np.union1d(far, self.remembered[query][self.remembered[query] >= 0])
            hardest = np.argsort(-similarities(query, far), kind="stable")[: config.negatives]
            negatives[row] = far[hardest]
        if config.kind == "full":
            self.remembered[queries] = negatives
        return Tuples(queries + self._num_database, positive, negatives, len(rows))


def rarity_weights(flags: Sequence[NDArray[np.float64]], num: int) -> NDArray[np.float64]:
    """Sampling weights, (num,): 1, plus n / count for each flag that is 1 (the benchmark's weights for MSLS).

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
    """Planned batches of mined tuples; new tuples are mined when all are used.

    A batch is that of `SampleStream`; each 2 + N consecutive rows are a tuple: query, positive, negatives. The task's
    predictions must have "embedding" (b, D) and "row" of the batch.

    Args:
        table: the database followed by the queries.
        load: loader of training photos.
        plain_load: loader of photos that are embedded for mining.
        miner: miner of the same table.
        tuples_per_batch: batch size over all ranks.
        seed: seed of the random numbers of `load`.
        num_workers: loader processes during mining.
        embed_batch: batch size during mining.

    Attributes:
        num_embedded: number of photos embedded for mining so far.
        num_refreshes: number of refreshes so far.
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
        """Mine for batch `index` and those after it if needed; return the first batch number without tuples."""
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
        # The last tuples, which do not fill a batch, are dropped.
        self._first, self._stop = index, index + max(len(self._tuples) // self.tuples_per_batch, 1)
        return self._stop

    def batch(self, index: int, rank: int, world_size: int) -> Batch:
        """This rank's part of a planned batch."""
        start = (index - self._first) * self.tuples_per_batch
        own = self._tuples[start : start + self.tuples_per_batch][rank::world_size].ravel()
        seed = seed_of(self.seed, index, rank)
        return SampleStream(self.table, self.load, InOrder(own), batch_size=len(own), seed=seed).batch(0)

    def state_dict(self) -> dict[str, Any]:
        """The mined tuples and the miner's memory."""
        return {
            "first": self._first,
            "stop": self._stop,
            "num_refreshes": self.num_refreshes,
            "num_embedded": self.num_embedded,
            "tuples": torch.from_numpy(self._tuples),
            "remembered": torch.from_numpy(self.miner.remembered),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore mined tuples."""
        self._first, self._stop = state["first"], state["stop"]
        self.num_refreshes, self.num_embedded = state["num_refreshes"], state["num_embedded"]
        self._tuples = state["tuples"].numpy()
        self.miner.remembered = state["remembered"].numpy()
