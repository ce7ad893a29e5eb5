import numpy as np
import pytest

from geoloc.evaluate.leakage import leakage_warnings, nearest_known_km
from quadtree.sphere import destination_latlon_deg, haversine_km


def test_nearest_is_brute_force_across_the_antimeridian_and_at_the_pole():
    rng = np.random.default_rng(0)
    known = np.stack([rng.uniform(-90, 90, 300), rng.uniform(-180, 180, 300)], 1)
    test = np.concatenate([known[:50] + 0.01, [[90, 0], [10, 180], [10, -180]]])
    test[:, 0] = test[:, 0].clip(-90, 90)
    expected = [haversine_km(np.broadcast_to(p, known.shape), known).min() for p in test]
    assert nearest_known_km(test, known) == pytest.approx(expected, abs=1e-6)


def test_warnings_name_every_radius_that_leaks():
    known = np.array([[10.0, 20.0], [np.nan, 1.0], [95.0, 1.0]])
    test = [destination_latlon_deg(known[0], 0, km) for km in (0.0005, 0.02, 0.5, 100)]
    assert leakage_warnings(test, known, "gallery.csv") == [
        "Leakage: 2 of 3 points of gallery.csv have no usable position.",
        "Leakage: 1 of 4 images (25.0%) have a point of gallery.csv within 1 m.",
        "Leakage: 2 of 4 images (50.0%) have a point of gallery.csv within 25 m.",
        "Leakage: 3 of 4 images (75.0%) have a point of gallery.csv within 1000 m.",
    ]
    assert leakage_warnings([[0, 0]], known[:1], "g") == []
    with pytest.raises(ValueError, match="the gallery has no points"):
        leakage_warnings(test, known[1:], "g")
