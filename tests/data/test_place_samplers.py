"""Orders of places: nothing is lost, nothing depends on anything but the epoch, and batches are what was asked for."""

import numpy as np
import pytest

from geoloc.data.place_samplers import ImageOfClass, PlacesTimesImages
from geoloc.data.samplers import RankBatches
from geoloc.errors import ConfigError

RNG = np.random.default_rng(0)
PLACES = RNG.permutation(np.repeat(np.arange(30), RNG.integers(1, 9, 30)))
CITIES = np.arange(30) % 3


def test_every_place_comes_once_with_k_different_photos():
    order = PlacesTimesImages(PLACES, 4, seed=1)
    enough = np.flatnonzero(np.bincount(PLACES) >= 4)
    assert order.num_places == len(enough)
    for epoch in range(5):
        rows = order(epoch).reshape(-1, 4)
        assert len(order) == rows.size
        assert all(len(set(four)) == 4 for four in rows.tolist())
        assert (PLACES[rows] == PLACES[rows][:, :1]).all()
        assert sorted(PLACES[rows][:, 0]) == enough.tolist()
    assert not np.array_equal(order(0), order(1))
    np.testing.assert_array_equal(order(3), PlacesTimesImages(PLACES, 4, seed=1)(3))
    shown = np.unique(np.concatenate([order(epoch) for epoch in range(60)]))
    assert shown.tolist() == np.flatnonzero(np.isin(PLACES, enough)).tolist()  # in time, all of their photos


def test_places_of_a_city_come_together():
    order = PlacesTimesImages(PLACES, 2, seed=1, group_ids=CITIES[PLACES])
    sequences = [CITIES[PLACES[order(epoch)]] for epoch in range(8)]
    assert all((np.diff(cities) != 0).sum() == 2 for cities in sequences)
    assert len({int(cities[0]) for cities in sequences}) > 1
    mixed = CITIES[PLACES[PlacesTimesImages(PLACES, 2, seed=1)(0)]]
    assert (np.diff(mixed) != 0).sum() > 5


def test_the_newest_photos():
    times = np.array([5.0, np.nan, 7.0, 1.0, 2.0, 3.0])
    order = PlacesTimesImages([0, 0, 0, 1, 1, 1], 2, seed=1, choice="newest", captured_at=times)
    assert sorted(order(0).tolist()) == sorted(order(9).tolist()) == [0, 2, 4, 5]


def test_batches_of_ranks_lose_no_photo():
    order = PlacesTimesImages(PLACES, 3, seed=1)
    whole = RankBatches(order, 12)
    parts = [RankBatches(order, 6, rank=rank, num_ranks=2) for rank in (0, 1)]
    for number in range(len(whole)):
        together = sorted(row for part in parts for row in part.indices(4, number))
        assert together == sorted(whole.indices(4, number))
    assert sum(len(whole.indices(0, number)) for number in range(len(whole))) == len(order)


def test_class_then_a_photo_of_it():
    classes = np.array([-1, 0, 0, 1, 2, 2, 2])
    order = ImageOfClass(classes, seed=1, passes=2)
    rows = np.array([order(epoch) for epoch in range(300)])
    assert rows.shape == (300, 6)
    assert (np.sort(classes[rows[:, :3]]) == [0, 1, 2]).all()
    assert (np.sort(classes[rows[:, 3:]]) == [0, 1, 2]).all()
    shares = np.bincount(rows.ravel(), minlength=7) / 600
    np.testing.assert_allclose(shares, [0, 1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3], atol=0.06)


def test_what_cannot_be_ordered():
    with pytest.raises(ConfigError, match=r"no place has min_images_per_place=9.*largest has 8"):
        PlacesTimesImages(np.repeat([0, 1], [8, 2]), 4, seed=1, min_images_per_place=9)
    with pytest.raises(ConfigError, match="0 of 3 photos have a place"):
        PlacesTimesImages([-1, -1, -1], 1, seed=1)
    with pytest.raises(ConfigError, match="the second at least as large"):
        PlacesTimesImages([0, 0], 2, seed=1, min_images_per_place=1)
    with pytest.raises(ConfigError, match="no photo has a capture time"):
        PlacesTimesImages([0, 0], 2, seed=1, choice="newest", captured_at=[np.nan, np.nan])
    with pytest.raises(ConfigError, match="none of 2 photos has a class"):
        ImageOfClass([-1, -1], seed=1)
