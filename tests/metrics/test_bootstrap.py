"""Intervals against a bootstrap that really draws images, and against the known variance."""

import numpy as np
import pytest

from geoloc.metrics.bootstrap import intervals, paired_differences
from geoloc.metrics.protocols import get_protocol
from geoloc.metrics.scores import geoscore
from geoloc.metrics.tally import Tally

PROTOCOL = get_protocol("geodesic")


def values(num=2000, seed=0):
    return np.exp(np.random.default_rng(seed).normal(4.5, 1.5, num)).clip(0, 20003)


def interval_of(values):
    tally = Tally(PROTOCOL)
    tally.add(values)
    return intervals(tally)


def drawn(values, statistic):
    rng = np.random.default_rng(1)
    means = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(2000)]
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize(
    ("name", "statistic"),
    [("geoscore", lambda d: geoscore(d).mean()), ("mean_km", np.mean), ("median_km", np.median)],
)
def test_against_drawing_images(name, statistic):
    data = values()
    low, high = drawn(data, statistic)
    found = interval_of(data)[name]
    assert found == pytest.approx([low, high], abs=0.15 * (high - low))
    assert found[0] < statistic(data) < found[1]


def test_shares_against_the_binomial():
    data = values()
    share = (data <= 25).mean()
    half = 1.96 * np.sqrt(share * (1 - share) / len(data))
    assert interval_of(data)["accuracy_within_km"]["25"] == pytest.approx(
        [share - half, share + half], abs=0.1 * half
    )


def test_the_order_of_images_does_not_matter():
    data = values()
    assert interval_of(data) == interval_of(data[::-1])


def test_missing_predictions_take_part():
    data = np.append(values(500), [np.nan] * 500)
    found = interval_of(data)
    low, high = drawn(np.where(np.isnan(data), 1e9, data), lambda d: geoscore(d).mean())
    assert found["geoscore"] == pytest.approx([low, high], abs=0.15 * (high - low))
    assert interval_of([np.nan, np.nan])["geoscore"] == [0, 0]


def test_a_pair_is_sharper_than_two_intervals():
    """B is 2 % nearer on every image: hidden in the spread of images, plain in the pairs."""
    a = values()
    found = paired_differences(a, a * 0.98, PROTOCOL)
    score = found["geoscore"]
    assert score["difference"] == pytest.approx((geoscore(a * 0.98) - geoscore(a)).mean())
    assert 0 < score["interval"][0] < score["difference"] < score["interval"][1]
    assert score["share_better"] == 1.0
    assert found["log10_km"]["difference"] == pytest.approx(np.log10(0.98))
    assert found["log10_km"]["share_better"] == 1.0
    single = interval_of(a)["geoscore"]
    assert score["interval"][1] - score["interval"][0] < 0.2 * (single[1] - single[0])


def test_equal_models_tie():
    a = values(200)
    found = paired_differences(a, a, PROTOCOL)
    assert all(row["difference"] == 0 and row["share_better"] == 0.5 for row in found.values())


def test_a_missing_answer_is_a_miss_in_a_pair():
    found = paired_differences(np.array([1.0, np.nan]), np.array([1.0, 0.0]), PROTOCOL)
    assert found["geoscore"]["difference"] == pytest.approx(2500)
    assert found["accuracy_within_km.1"]["difference"] == 0.5
    with pytest.raises(ValueError, match=r"the same images for both; found shapes \(1,\) and \(2,\)"):
        paired_differences([1.0], [1.0, 2.0], PROTOCOL)
