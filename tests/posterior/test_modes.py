"""Modes of a posterior: which atoms belong together, where a mode lies, and how probable it is."""

import subprocess
import sys

import pytest

from geoloc.errors import ConfigError
from geoloc.posterior.modes import modes_of
from geoloc.posterior.prediction import Atom, Prediction
from quadtree.sphere import destination_latlon_deg, haversine_km


def atom(lat, lon, weight, scale_km=1.0):
    return Atom(lat, lon, weight, scale_km)


def test_two_cities_are_two_modes_the_more_probable_first():
    atoms = [atom(55.70, 13.19, 0.2), atom(48.85, 2.35, 0.3), atom(48.95, 2.45, 0.3), atom(55.60, 13.00, 0.1)]
    paris, lund = modes_of(atoms, eps_km=50)
    assert paris.probability == pytest.approx(0.6)
    assert lund.probability == pytest.approx(0.3)
    assert haversine_km(paris[:2], (48.90, 2.40)) < 0.1
    # The mean is weighted: two thirds of the way from Malmo to Lund.
    assert haversine_km(lund[:2], (55.6667, 13.1267)) < 0.5


@pytest.mark.parametrize("center", [(10.0, 180.0), (-17.0, -180.0), (90.0, 0.0), (-90.0, 77.0)])
def test_a_mode_may_lie_on_the_antimeridian_or_a_pole(center):
    points = [destination_latlon_deg(center, bearing, 20.0) for bearing in (0, 90, 180, 270)]
    (mode,) = modes_of([atom(*point.tolist(), 0.25) for point in points], eps_km=30)
    assert haversine_km(mode[:2], center) < 0.01
    assert mode.probability == pytest.approx(1.0)
    assert -180 <= mode.lon < 180
    assert len(modes_of([atom(*point.tolist(), 0.25) for point in points], eps_km=25)) == 4


def test_a_chain_is_one_mode():
    chain = [atom(0.0, 0.1 * step, 0.1) for step in range(10)]  # 11 km apart
    (mode,) = modes_of(chain, eps_km=12)
    assert mode.lon == pytest.approx(0.45)
    assert len(modes_of(chain, eps_km=10)) == 10


def test_atoms_that_cancel_out_give_the_heaviest_one():
    (mode,) = modes_of([atom(0.0, 0.0, 0.5), atom(0.0, -180.0, 0.5)], eps_km=30_000)
    assert mode[:2] in ((0.0, 0.0), (0.0, -180.0))


def test_no_weight_no_mode():
    assert modes_of([]) == ()
    assert modes_of([atom(1.0, 2.0, 0.0)]) == ()


@pytest.mark.parametrize("eps_km", [0.0, -1.0, float("nan")])
def test_a_radius_must_be_positive(eps_km):
    with pytest.raises(ConfigError, match="eps_km"):
        modes_of([], eps_km)


def test_a_prediction_has_its_modes_and_its_dict_has_not():
    atoms = (atom(48.85, 2.35, 0.7), atom(55.7, 13.2, 0.2))
    prediction = Prediction(48.85, 2.35, "320", 0.7, posterior=atoms)
    assert prediction.modes == modes_of(atoms)
    assert prediction.modes is prediction.modes
    assert "modes" not in prediction.to_dict()


def test_sklearn_is_loaded_on_first_access():
    code = (
        "import sys; from geoloc.posterior.prediction import Prediction, Atom\n"
        "prediction = Prediction(0, 0, '', 1, posterior=(Atom(0.0, 0.0, 1.0, 1.0),))\n"
        "before = 'sklearn' in sys.modules; modes = prediction.modes\n"
        "print(before, 'sklearn' in sys.modules, len(modes))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True", "1"]
