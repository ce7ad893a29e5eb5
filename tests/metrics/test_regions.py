import numpy as np
import pytest

from geoloc.metrics.protocols import get_protocol
from geoloc.metrics.regions import CURVE_SHARES, RegionTally, RiskCoverage
from geoloc.metrics.scores import geoscore

PROTOCOL = get_protocol("geodesic")


def test_coverage_by_hand():
    region = RegionTally(90)
    region.add([1.0, 5.0, 10.0, np.nan, 3.0], [2.0, 5.0, 9.0, 1.0, np.nan])
    assert region.summary() == {
        "nominal": 0.9,
        "coverage": pytest.approx(2 / 3),  # an edge belongs to its circle
        "num_images": 3,
        "median_radius_km": 5.0,
        "p90_radius_km": pytest.approx(5 + 0.8 * 4),
    }
    with pytest.raises(ValueError, match="50 % cannot be added to those of 90 %"):
        region.merge(RegionTally(50))


def test_risk_falls_when_the_unsure_are_left_out_and_equals_brute_force():
    rng = np.random.default_rng(0)
    width = np.exp(rng.normal(4, 1, 3000))
    distance = width * rng.exponential(1, 3000)
    curve = RiskCoverage(PROTOCOL)
    curve.add(distance, width)
    found = curve.curve()
    order = np.argsort(width)
    for share, coverage, score, near in zip(
        CURVE_SHARES, found["coverage"], found["geoscore"], found["accuracy_within_km"]["200"], strict=True
    ):
        assert coverage == pytest.approx(share, abs=0.01)
        kept = distance[order[: round(coverage * 3000)]]
        assert score == pytest.approx(geoscore(kept).mean(), abs=0.01)
        assert near == (kept <= 200).mean()
    assert found["geoscore"][0] > found["geoscore"][-1]
    risk = 1 - geoscore(distance[order]).cumsum() / np.arange(1, 3001) / 5000
    assert found["aurc"] == pytest.approx(risk.mean(), abs=1e-3)


def test_curves_of_shards_are_the_curve_of_the_whole():
    rng = np.random.default_rng(1)
    distance, width = np.exp(rng.normal(4, 1, (2, 1000)))
    whole, merged = RiskCoverage(PROTOCOL), RiskCoverage(PROTOCOL)
    whole.add(distance, width)
    for part in np.array_split(rng.permutation(1000), 7):
        shard = RiskCoverage(PROTOCOL)
        shard.add(distance[part], width[part])
        merged.merge(shard)
    assert merged.curve() == whole.curve()
    assert RiskCoverage(PROTOCOL).curve()["coverage"] == []
    with pytest.raises(ValueError, match="curves under 'osv5m' and 'geodesic'"):
        whole.merge(RiskCoverage(get_protocol("osv5m")))
