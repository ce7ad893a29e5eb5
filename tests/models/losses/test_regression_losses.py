"""Losses on the sphere against `quadtree.sphere`, and their gradients where formulas have roots of zero."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoloc.models.losses import great_circle_loss_km, haversine_km, latlon_l1_loss
from quadtree import sphere

RADIANS = st.tuples(st.floats(-math.pi / 2, math.pi / 2), st.floats(-math.pi, math.pi))


@given(RADIANS, RADIANS)
def test_haversine_is_the_spheres(a: tuple[float, float], b: tuple[float, float]) -> None:
    found = haversine_km(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    expected = sphere.haversine_km(np.degrees(a), np.degrees(b))
    half_turn_km = math.pi * sphere.EARTH_MEAN_RADIUS_KM
    near_antipode = expected > half_turn_km - 5
    assert found.item() == pytest.approx(float(expected), abs=4.1 if near_antipode else 0.0007)


def test_great_circle_loss_is_the_mean() -> None:
    degrees = (
        torch.tensor([[48.8566, 2.3522], [10.0, 179.5]]),
        torch.tensor([[51.5074, -0.1278], [10.0, -179.5]]),
    )
    a, b = (torch.deg2rad(pair.double()) for pair in degrees)
    expected = sphere.haversine_km(*(pair.double().numpy() for pair in degrees)).mean()
    assert float(great_circle_loss_km(a, b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "other_deg",
    [[40.0, 30.0], [-40.0, -150.0], [40.0, 30.000001], [-40.00001, -150.0], [90.0, 0.0], [-90.0, 77.0]],
    ids=["itself", "antipode", "near itself", "near the antipode", "a pole", "the other"],
)
def test_gradients_are_finite_where_the_formula_has_roots_of_zero(
    other_deg: list[float], dtype: torch.dtype
) -> None:
    a = torch.deg2rad(torch.tensor([[40.0, 30.0]], dtype=dtype)).requires_grad_()
    loss = great_circle_loss_km(a, torch.deg2rad(torch.tensor([other_deg], dtype=dtype)))
    loss.backward()
    assert math.isfinite(loss.item())
    assert a.grad is not None
    assert a.grad.isfinite().all()
    # A step of one radian is at most one Earth radius.
    assert a.grad.abs().max() <= 1.01 * sphere.EARTH_MEAN_RADIUS_KM


def test_the_gradient_points_away_from_the_target() -> None:
    a = torch.deg2rad(torch.tensor([[0.0, 170.0]], dtype=torch.float64)).requires_grad_()
    great_circle_loss_km(a, torch.deg2rad(torch.tensor([[0.0, -170.0]], dtype=torch.float64))).backward()
    assert a.grad is not None
    # The target is 20 degrees to the east, over the antimeridian.
    assert a.grad[0].tolist() == pytest.approx([0, -sphere.EARTH_MEAN_RADIUS_KM], abs=1e-6)


@given(RADIANS, RADIANS)
def test_l1_is_the_sum_of_axes_with_longitudes_the_short_way(
    a: tuple[float, float], b: tuple[float, float]
) -> None:
    found = latlon_l1_loss(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64))
    apart = abs(a[1] - b[1])
    expected = (abs(a[0] - b[0]) + min(apart, 2 * math.pi - apart)) / 2
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_l1_crosses_the_antimeridian() -> None:
    a = torch.deg2rad(torch.tensor([[10.0, 179.0]], dtype=torch.float64)).requires_grad_()
    loss = latlon_l1_loss(a, torch.deg2rad(torch.tensor([[13.0, -179.0]], dtype=torch.float64)))
    assert loss.item() == pytest.approx(math.radians(3 + 2) / 2)
    loss.backward()
    assert a.grad is not None
    assert a.grad[0].tolist() == [-0.5, -0.5]  # both want to grow: north, and east over the antimeridian
