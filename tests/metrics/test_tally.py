"""The same numbers for any cut into shards and any order, and the numbers that NumPy gives for the whole."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoloc.metrics import quantiles
from geoloc.metrics.protocols import get_protocol
from geoloc.metrics.quantiles import RELATIVE_TOLERANCE, Quantiles, bins_of, centers_of
from geoloc.metrics.scores import geoscore
from geoloc.metrics.tally import Tally

PROTOCOL = get_protocol("geodesic")


def distances(num, seed=0, missing=0.02):
    rng = np.random.default_rng(seed)
    values = np.exp(rng.normal(4.5, 2.5, num)).clip(0, 20003)
    values[rng.random(num) < missing] = np.nan
    return values


def tally_of(values, protocol=PROTOCOL):
    tally = Tally(protocol)
    tally.add(values)
    return tally


def in_shards(values, num_shards, seed):
    """Merged in a random order, each shard having been through its JSON."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(values), num_shards - 1))
    shards = np.split(rng.permutation(values), cuts)
    merged = Tally(PROTOCOL)
    for number in rng.permutation(num_shards):
        state = json.loads(json.dumps(tally_of(shards[number]).state()))
        merged.merge(Tally.from_state(PROTOCOL, state))
    return merged


def test_against_numpy():
    values = distances(5000)
    known = values[~np.isnan(values)]
    found = tally_of(values).summary()
    assert found["num_missing"] == 5000 - len(known)
    assert found["geoscore"] == pytest.approx(geoscore(known).sum() / 5000, rel=1e-12)
    assert found["mean_km"] == pytest.approx(known.mean(), rel=1e-12)
    as_infinite = np.where(
        np.isnan(values), 1e300, values
    )  # numpy's own interpolation makes NaN of two infinities
    for share, quantile in found["quantiles_km"].items():
        expected = np.quantile(as_infinite, float(share))
        assert quantile == (None if expected > 1e9 else pytest.approx(expected, rel=1e-12))
    assert found["median_km"] == found["quantiles_km"]["0.5"]
    for radius in (1, 25, 200, 750, 2500):
        assert found["accuracy_within_km"][str(radius)] == (values <= radius).mean()


@pytest.mark.parametrize("num_shards", [1, 7, 64])
@pytest.mark.parametrize("seed", range(3))
def test_shards_in_any_order_give_the_very_same_numbers(num_shards, seed):
    values = distances(20_000)
    assert in_shards(values, num_shards, seed).summary() == tally_of(values).summary()


@pytest.mark.parametrize("num_shards", [1, 7, 64])
def test_the_same_when_the_values_are_too_many_to_keep(monkeypatch, num_shards):
    monkeypatch.setattr(quantiles, "MAX_EXACT", 3000)
    values = distances(20_000, missing=0)
    merged, whole = in_shards(values, num_shards, 5), tally_of(values)
    assert not whole.distances.is_exact
    assert merged.summary() == whole.summary()
    for share, quantile in whole.summary()["quantiles_km"].items():
        assert quantile == pytest.approx(np.quantile(values, float(share)), rel=2 * RELATIVE_TOLERANCE)


@given(st.lists(st.floats(0, 20003.9), max_size=30), st.integers(0, 5), st.integers(0, 2**30))
def test_any_split(values, num_missing, seed):
    values = np.array([*values, *[np.nan] * num_missing])
    if len(values):
        assert in_shards(values, 3, seed).state() == tally_of(values).state()


@given(st.floats(0, 20038))
def test_a_bin_holds_its_values(value):
    center = float(centers_of(bins_of(value)))
    assert center == pytest.approx(value, rel=RELATIVE_TOLERANCE * 1.001, abs=2e-9)


def test_infinite_medians_are_none_and_no_images_are_an_error():
    found = tally_of([1.0, np.nan, np.nan]).summary()
    assert found["median_km"] is None
    assert found["mean_km"] == 1.0
    assert tally_of([np.nan]).summary()["mean_km"] is None
    with pytest.raises(ValueError, match="no image to score: 0 images, 0 without a prediction"):
        Tally(PROTOCOL).summary()
    with pytest.raises(ValueError, match="expected finite and not negative"):
        tally_of([-1.0])


def test_protocols_do_not_mix():
    with pytest.raises(ValueError, match="under 'osv5m' cannot be added to one under 'geodesic'"):
        tally_of([1.0]).merge(Tally(get_protocol("osv5m")))
    with pytest.raises(ValueError, match="a state of the protocol 'geodesic' was read as one of 'osv5m'"):
        Tally.from_state(get_protocol("osv5m"), tally_of([1.0]).state())


def test_quantiles_of_nothing():
    assert np.isnan(Quantiles().at([0.5])).all()
