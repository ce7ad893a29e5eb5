"""Mined tuples against brute force and by hand, what each way embeds, and what is said where nothing can be mined."""

from itertools import pairwise

import numpy as np
import pytest

from geoloc.errors import ConfigError
from geoloc.geo.wgs84 import offset_latlon_deg
from geoloc.train.mining import MiningConfig, TupleMiner, rarity_weights
from quadtree.sphere import geodesic_km

RNG = np.random.default_rng(0)
# A street along the border of UTM zones 32 and 33: 40 places 60 m apart, 3 photos of the database and one query each.
PLACES = np.array([offset_latlon_deg(np.array([48.0, 12.0]), 0.0, 60.0 * n) for n in range(40)])
AROUND = np.array([[offset_latlon_deg(place, *RNG.uniform(-3, 3, 2)) for _ in range(4)] for place in PLACES])
DATABASE, QUERIES = AROUND[:, :3].reshape(-1, 2), AROUND[:, 3]
VECTORS = RNG.normal(size=(160, 8)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
CONFIG = MiningConfig(queries_per_refresh=15, negatives=4, pool=30)


class Embed:
    def __init__(self):
        self.rows = np.zeros(0, np.int64)

    def __call__(self, rows):
        assert (np.diff(rows) > 0).all()
        self.rows = rows
        return VECTORS[rows]


def mined(kind, number=0, miner=None, **changes):
    config = MiningConfig(**{**CONFIG.__dict__, "kind": kind, **changes})
    embed = Embed()
    found = (miner or TupleMiner(DATABASE, QUERIES, config, seed=1)).mine(number, embed)
    return found, embed.rows


@pytest.mark.parametrize("kind", ["random", "full", "partial"])
def test_tuples_keep_the_rules(kind):
    found, rows = mined(kind)
    assert found.num_embedded == len(rows)
    assert len(set(found.query.tolist())) == 15
    latlon = np.concatenate([DATABASE, QUERIES])
    apart_m = 1000 * geodesic_km(latlon[:, None], latlon[None])
    for query, positive, negatives in zip(found.query, found.positive, found.negatives, strict=True):
        right = np.flatnonzero(apart_m[query, :120] <= 10)
        assert positive == right[(VECTORS[right] @ VECTORS[query]).argmax()]
        assert (apart_m[query, negatives] > 25).all()
        assert len(set(negatives.tolist())) == 4
        assert (negatives < 120).all()


def test_what_each_way_embeds():
    found, rows = mined("random")
    near = 1000 * geodesic_km(DATABASE[None], QUERIES[found.query - 120][:, None]) <= 10
    positives = np.flatnonzero(near.any(0))
    assert rows.tolist() == sorted([*positives, *found.query])
    assert len(mined("full")[1]) == 120 + 15
    partial = mined("partial")[1]
    assert set(rows) <= set(partial)
    assert len(partial) <= len(rows) + 30


def test_full_over_the_whole_database_finds_the_hardest():
    found, _ = mined("full", pool=120)
    apart_m = 1000 * geodesic_km(DATABASE[None], QUERIES[:, None])
    for query, negatives in zip(found.query, found.negatives, strict=True):
        score = np.where(apart_m[query - 120] > 25, VECTORS[:120] @ VECTORS[query], -np.inf)
        assert negatives.tolist() == np.argsort(-score, kind="stable")[:4].tolist()
    whole, _ = mined("partial", pool=120)
    np.testing.assert_array_equal(whole.negatives, found.negatives)


def test_full_remembers_the_hardest():
    miner = TupleMiner(DATABASE, QUERIES, MiningConfig("full", 40, 4, pool=10), seed=1)
    scores = []
    for number in range(12):
        found, _ = mined("full", number, miner)
        order = found.query.argsort()
        scores.append(
            np.array([VECTORS[n] @ VECTORS[q] for q, n in zip(found.query, found.negatives, strict=True)])[
                order
            ]
        )
    assert all((after >= before - 1e-6).all() for before, after in pairwise(scores))
    assert scores[-1].mean() > scores[0].mean()


def test_draws_depend_on_seed_and_number_alone():
    first, again, other = mined("partial", 3)[0], mined("partial", 3)[0], mined("partial", 4)[0]
    np.testing.assert_array_equal(first.negatives, again.negatives)
    assert not np.array_equal(first.query, other.query)


def test_rare_queries_are_drawn_more_often():
    night = np.zeros(40)
    night[:4] = 1
    weights = rarity_weights([night, np.full(40, np.nan)], 40)
    assert weights.tolist() == [11.0] * 4 + [1.0] * 36  # 1 + 40 / 4
    miner = TupleMiner(DATABASE, QUERIES, MiningConfig("random", 1, 4), 1, weights)
    drawn = np.concatenate([mined("random", number, miner)[0].query for number in range(400)]) - 120
    assert (drawn < 4).mean() == pytest.approx(44 / 80, abs=0.08)


def test_queries_without_a_positive_are_left_out_and_counted():
    far = np.concatenate([QUERIES, [[10.0, 10.0], [11.0, 10.0]]])
    miner = TupleMiner(DATABASE, far, MiningConfig("random", 100, 4), seed=1)
    assert miner.num_without_positive == 2
    assert miner.mine(0, lambda rows: np.ones((len(rows), 2), np.float32)).query.max() < 160


def test_what_cannot_be_mined():
    with pytest.raises(ConfigError, match=r"none of 40 queries has one of 120 photos.*within .*=10 m: check"):
        TupleMiner(DATABASE, QUERIES[:, ::-1], CONFIG, seed=1)
    with pytest.raises(ConfigError, match=r"negatives is 10, and a query has 3 of 6 photos farther"):
        TupleMiner(DATABASE[:6], QUERIES[:2], MiningConfig(), seed=1)
    with pytest.raises(ConfigError, match="the second not smaller"):
        MiningConfig(positive_radius_m=30)
