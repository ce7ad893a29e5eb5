"""Samplers: promises over all ranks and epochs as properties, shares against their expectation, cases by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoloc.data.samplers import (
    InOrder,
    RankBatches,
    Shuffled,
    SpatialBuckets,
    density_weights,
    draw_positives,
    ground_buckets,
)
from geoloc.errors import ConfigError
from quadtree.errors import InvalidCoordinateError
from quadtree.sphere import destination_latlon_deg, haversine_km

# --- Batches over ranks ---


def epoch_of(batches: RankBatches, epoch: int = 0) -> list[list[int]]:
    return [batches.indices(epoch, number) for number in range(len(batches))]


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_every_index_goes_to_one_rank_once_in_equally_many_batches(
    num: int, batch_size: int, num_ranks: int, epoch: int
) -> None:
    if num < num_ranks:
        return
    order = Shuffled(num, seed=1)
    ranks = [RankBatches(order, batch_size, rank=r, num_ranks=num_ranks) for r in range(num_ranks)]
    batches = [epoch_of(rank, epoch) for rank in ranks]
    assert sorted(i for rank in batches for batch in rank for i in batch) == list(range(num))
    assert {len(rank) for rank in batches} == {len(ranks[0])}
    for parts in zip(*batches, strict=True):
        sizes = [len(part) for part in parts]
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size + 1
    assert all(len(batch) == batch_size for rank in batches for batch in rank[:-1])


def test_two_ranks_see_together_what_one_sees_alone() -> None:
    order = Shuffled(50, seed=3)
    alone = epoch_of(RankBatches(order, 8))
    pairs = zip(*(epoch_of(RankBatches(order, 4, rank=r, num_ranks=2)) for r in (0, 1)), strict=True)
    assert [sorted(a + b) for a, b in pairs] == [sorted(batch) for batch in alone]
    weights = np.random.default_rng(0).random(50)
    alone = epoch_of(RankBatches(order, 8, resampling_weights=weights))
    pairs = zip(
        *(epoch_of(RankBatches(order, 4, rank=r, num_ranks=2, resampling_weights=weights)) for r in (0, 1)),
        strict=True,
    )
    assert [sorted(a + b) for a, b in pairs] == [sorted(batch) for batch in alone]


@pytest.mark.parametrize("weights", [None, np.arange(1.0, 41.0)])
def test_a_resumed_run_goes_on_as_the_unkilled_one(weights: np.ndarray | None) -> None:
    def batches() -> RankBatches:
        return RankBatches(Shuffled(40, seed=5), 4, rank=1, num_ranks=2, resampling_weights=weights)

    unkilled = epoch_of(batches(), 7)
    for position in range(len(unkilled)):
        resumed = batches()
        assert [resumed.indices(7, n) for n in range(position, len(resumed))] == unkilled[position:]


def test_a_last_batch_too_small_for_all_ranks_is_taken_in() -> None:
    found = [epoch_of(RankBatches(InOrder(range(10)), 1, rank=r, num_ranks=3)) for r in range(3)]
    assert found == [[[0], [3], [6, 9]], [[1], [4], [7]], [[2], [5], [8]]]


def test_resampling_draws_a_batch_from_itself_in_proportion() -> None:
    weights = np.array([1.0, 3.0, 0.0, 4.0, 1.0, 1.0])
    batches = RankBatches(InOrder(range(6)), 4, resampling_weights=weights, seed=2)
    counts: Counter[int] = Counter()
    for epoch in range(2000):
        first, second = epoch_of(batches, epoch)
        assert set(first) <= {0, 1, 2, 3}
        assert set(second) <= {4, 5}
        assert (len(first), len(second)) == (4, 2)
        counts.update(first)
    shares = [counts[i] / 8000 for i in range(4)]
    assert shares == pytest.approx([1 / 8, 3 / 8, 0, 4 / 8], abs=0.02)


def test_impossible_batches() -> None:
    order = Shuffled(3, seed=0)
    with pytest.raises(ConfigError, match="batch_size is 0; it must be positive"):
        RankBatches(order, 0)
    with pytest.raises(ConfigError, match="rank is 2 of 2; ranks count from 0 to 1"):
        RankBatches(order, 1, rank=2, num_ranks=2)
    with pytest.raises(ConfigError, match="4 ranks cannot share 3 samples: start fewer"):
        RankBatches(order, 1, rank=0, num_ranks=4)


# --- Orders ---


@pytest.mark.parametrize(
    "order",
    [
        Shuffled(100, seed=1),
        SpatialBuckets(np.random.default_rng(0).uniform(-1e-3, 1e-3, (100, 2)), seed=1),
    ],
)
def test_orders_are_new_in_every_epoch_and_the_same_again(order: Shuffled) -> None:
    assert len(order(0)) == len(order)
    assert np.array_equal(order(4), order(4))
    assert not np.array_equal(order(4), order(5))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -0.5], [1.0, np.nan], [1.0, np.inf]])
def test_weights_without_a_meaning(weights: list[float]) -> None:
    batches = RankBatches(InOrder(range(2)), 2, resampling_weights=weights)
    with pytest.raises(ConfigError, match=r"weights must be finite, not negative .* found 2 from"):
        batches.indices(0, 0)


def test_buckets_show_all_their_photos_before_one_again() -> None:
    # Buckets of 1, 2 and 3 photos, kilometres apart.
    latlon = np.array([[0, 0], [1, 1], [1, 1], [2, 2], [2, 2], [2, 2]], dtype=float)
    buckets = [{0}, {1, 2}, {3, 4, 5}]
    order = SpatialBuckets(latlon, seed=9)
    assert len(order) == 3
    epochs = [order(epoch).tolist() for epoch in range(60)]
    for shown in epochs:
        assert sorted(next(b for b, photos in enumerate(buckets) if i in photos) for i in shown) == [0, 1, 2]
    for photos in buckets:
        of_bucket = [next(i for i in shown if i in photos) for shown in epochs]
        rounds = [of_bucket[k : k + len(photos)] for k in range(0, 60, len(photos))]
        assert all(set(turn) == photos for turn in rounds)
        if len(photos) > 1:
            assert len({tuple(turn) for turn in rounds}) > 1  # in a new order
    assert len({tuple(shown) for shown in epochs}) > 10


def test_a_buckets_orders_are_all_equally_likely() -> None:
    order = SpatialBuckets(np.zeros((3, 2)), seed=0)
    shown = [int(order(epoch)[0]) for epoch in range(9000)]
    rounds = Counter(tuple(shown[k : k + 3]) for k in range(0, 9000, 3))
    assert len(rounds) == 6
    assert max(abs(count / 3000 - 1 / 6) for count in rounds.values()) < 0.03


@given(st.floats(-85, 85), st.floats(-179, 179), st.floats(0, 360))
def test_photos_in_a_bucket_are_near_and_photos_two_apart_are_not(
    lat: float, lon: float, bearing: float
) -> None:
    start = np.array([lat, lon])
    away = np.array([destination_latlon_deg(start, bearing, m / 1000) for m in np.linspace(0, 20, 41)])
    buckets = ground_buckets(away, bucket_size_m=5.0)
    distance_m = 1000 * haversine_km(away[:, None], away[None])
    same = buckets[:, None] == buckets[None]
    assert distance_m[same].max() <= 5 * np.sqrt(2) * 1.001
    # A bucket's neighbours begin at its edges, so that at most 4 x 5 buckets lie in a 20 m step.
    assert buckets.max() < 20


def test_buckets_by_hand_on_the_equator() -> None:
    degree_m = np.radians(1) * 6_371_008.8
    east_m, north_m = np.array([0, 4.9, 5.1, -0.1, 4.9]), np.array([0, 4.9, 0, 0, 5.1])
    found = ground_buckets(np.stack([north_m, east_m], -1) / degree_m, 5.0)
    assert found[0] == found[1]
    assert len(set(found[[0, 2, 3, 4]].tolist())) == 4
    with pytest.raises(InvalidCoordinateError):
        ground_buckets([[91.0, 0.0]], 5.0)


# --- Weights and positives ---


def test_density_weights_are_osv5ms() -> None:
    rng = np.random.default_rng(1)
    latlon = np.stack([rng.normal(20, 20, 3000).clip(-89, 89), rng.normal(0, 50, 3000).clip(-179, 179)], -1)
    edges = [np.linspace(axis.min(), axis.max(), 100) for axis in latlon.T]
    counts, _, _ = np.histogram2d(*latlon.T, bins=edges)
    expected = []
    for lat, lon in latlon:
        row = max(i for i in range(99) if edges[0][i] <= lat)
        column = max(i for i in range(99) if edges[1][i] <= lon)
        expected.append(counts[row, column] ** -0.75)
    found = density_weights(latlon)
    assert found == pytest.approx(np.array(expected) / sum(expected), rel=1e-12)
    assert found.sum() == pytest.approx(1)


def test_density_weights_by_hand() -> None:
    # Two edges make one cell, three make two: from 0 to 5, and from 5 to 10 with the end.
    latlon = [[0.0, 0.0], [0.0, 1.0], [0.0, 4.9], [0.0, 10.0]]
    assert density_weights(latlon, num_edges=2) == pytest.approx([0.25] * 4)
    assert density_weights(latlon, 1.0, num_edges=3) == pytest.approx([1 / 6] * 3 + [1 / 2])
    assert density_weights(latlon, 0.0, num_edges=3) == pytest.approx([0.25] * 4)


@given(st.lists(st.integers(-1, 5), max_size=40), st.integers(0, 5))
def test_positives_share_the_label_and_are_others(labels: list[int], epoch: int) -> None:
    positives, is_alone = draw_positives(labels, seed=1, epoch=epoch)
    for i, label in enumerate(labels):
        if label >= 0 and labels.count(label) > 1:
            assert labels[positives[i]] == label
            assert positives[i] != i
            assert not is_alone[i]
        else:
            assert positives[i] == i
            assert is_alone[i]


def test_positives_do_not_drain_and_are_equally_likely() -> None:
    labels = [3, 7, 3, 3, 7, 3]
    counts: Counter[int] = Counter()
    for epoch in range(3000):
        positives, _ = draw_positives(labels, seed=4, epoch=epoch)
        counts[int(positives[2])] += 1
    assert set(counts) == {0, 3, 5}
    assert [counts[i] / 3000 for i in (0, 3, 5)] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert np.array_equal(draw_positives(labels, 4, 9)[0], draw_positives(labels, 4, 9)[0])
