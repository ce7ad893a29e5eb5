"""The picture of a posterior: which bells it keeps, and how exactly."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoloc.posterior.distribution import Posterior
from geoloc.posterior.mixture import MAX_ATOMS, atoms_of
from quadtree.sphere import haversine_km, latlon_to_unit


def posterior_at(
    latlon_deg: list[tuple[float, float]], weight: list[float], scale_km: list[float]
) -> Posterior:
    return Posterior(latlon_to_unit(latlon_deg), np.array(weight), np.array(scale_km))


def test_the_picture_by_hand() -> None:
    posterior = posterior_at(
        [(10.123456, 20.987654), (-33.98765432, 151.2), (0, 0)], [1, 2.0004, 0], [80, 0.02, 5]
    )
    assert atoms_of(posterior) == (
        # 2 cm are 2e-7 degrees, and six decimals are all that anything of ours has.
        (-33.987654, 151.2, 0.667, 0.02),
        (10.123, 20.988, 0.333, 80.0),
    )


def test_the_heaviest_are_kept_and_of_equals_the_first() -> None:
    weight = np.ones(100)
    weight[[70, 90]] = 2, 3
    places = [(0.0, float(n)) for n in range(100)]
    atoms = atoms_of(posterior_at(places, weight.tolist(), [50.0] * 100))
    assert [atom.lon for atom in atoms] == [90, 70, *range(MAX_ATOMS - 2)]
    assert len(atoms_of(posterior_at(places, weight.tolist(), [50.0] * 100), limit=3)) == 3


def test_mass_without_a_kernel_is_left_out() -> None:
    unit = latlon_to_unit([(0, 0), (0, 90)])
    posterior = Posterior(unit[:1], np.array([3.0]), np.array([50.0]), unit[1:], np.array([1.0]))
    assert [tuple(atom) for atom in atoms_of(posterior)] == [(0.0, 0.0, 0.75, 50.0)]


@given(
    st.lists(
        st.tuples(
            st.floats(-90, 90),
            st.floats(-180, 180, exclude_max=True),
            st.floats(1e-6, 1),
            st.floats(0, 5000) | st.floats(0, 1e-3),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_the_picture_is_close_to_the_posterior(parts: list[tuple[float, float, float, float]]) -> None:
    lat, lon, weight, scale_km = (list(column) for column in zip(*parts, strict=True))
    posterior = posterior_at(list(zip(lat, lon, strict=True)), weight, scale_km)
    atoms = atoms_of(posterior)
    assert len(atoms) == min(len(parts), MAX_ATOMS)
    assert sum(atom.weight for atom in atoms) <= 1.005  # each has three digits
    order = np.argsort(-posterior.weight, kind="stable")
    for atom, n in zip(atoms, order, strict=False):
        assert all(math.isfinite(value) for value in atom)
        assert -90 <= atom.lat <= 90
        assert -180 <= atom.lon < 180
        assert atom.weight == pytest.approx(posterior.weight[n], rel=5.1e-3)
        assert atom.scale_km == pytest.approx(scale_km[n], rel=5.1e-3)
        # Half a unit of the last decimal in both directions; 0.1 m where there are six.
        assert haversine_km((atom.lat, atom.lon), (lat[n], lon[n])) <= max(0.01 * scale_km[n], 1.2e-4)
