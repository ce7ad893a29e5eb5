import json
from typing import Any

import pytest

from geoloc.geo.places import Place
from geoloc.posterior.prediction import Atom, Candidate, Prediction

PREDICTION = Prediction(
    lat=48.85661449,
    lon=-2.35222191,
    cell_path="0312",
    probability=0.123456789,
    candidates=(
        Candidate(48.85661449, -2.35222191, 0.123456789, "cell", None, "0312"),
        Candidate(-10.0, 179.99999996, 0.05, "street", 0.987654321, "photo-7"),
    ),
    radius_km={90: 250.00049, 50: 12.3456},
    place=Place("Lund", "Skane", "Lund", "SE", (55.70584, 13.19321), 3.14159),
    abstained=True,
    posterior=(Atom(48.9, -2.4, 0.9, 50.0),),  # a picture, and in no dict
)


def test_to_dict_exactly() -> None:
    assert PREDICTION.to_dict() == {
        "lat": 48.856614,
        "lon": -2.352222,
        "cell_path": "0312",
        "probability": 0.123457,
        "radius_km": {"50": 12.346, "90": 250.0},
        "place": {
            "name": "Lund",
            "admin1": "Skane",
            "admin2": "Lund",
            "country_code": "SE",
            "distance_km": 3.142,
        },
        "abstained": True,
        "candidates": [
            {
                "lat": 48.856614,
                "lon": -2.352222,
                "probability": 0.123457,
                "source": "cell",
                "similarity": None,
                "key": "0312",
                "database": "",
            },
            {
                "lat": -10.0,
                "lon": -180.0,  # what rounds to 180 is on the other side
                "probability": 0.05,
                "source": "street",
                "similarity": 0.987654,
                "key": "photo-7",
                "database": "",
            },
        ],
    }


def test_the_least_prediction() -> None:
    assert Prediction(lat=0.0, lon=0.0, cell_path="", probability=1.0).to_dict() == {
        "lat": 0.0,
        "lon": 0.0,
        "cell_path": "",
        "probability": 1.0,
        "radius_km": {},
        "place": None,
        "abstained": False,
        "candidates": [],
    }


def test_to_geojson_exactly() -> None:
    feature = PREDICTION.to_geojson(image="a.jpg")
    values: dict[str, Any] = PREDICTION.to_dict()
    del values["lat"], values["lon"]
    assert feature == {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [-2.352222, 48.856614]},
        "properties": {"image": "a.jpg", **values},
    }
    assert next(iter(feature["properties"])) == "image"
    assert json.loads(json.dumps(feature, allow_nan=False)) == feature


@pytest.mark.parametrize(
    ("latlon", "text"),
    [
        ((-0.0000001, -0.0000004), '"lat": 0.0, "lon": 0.0'),  # and not -0.0
        ((89.99999999, 179.99999949), '"lat": 90.0, "lon": 179.999999'),
        ((-89.99999999, 179.9999996), '"lat": -90.0, "lon": -180.0'),
    ],
)
def test_coordinates_are_rounded_on_the_sphere(latlon: tuple[float, float], text: str) -> None:
    written = json.dumps(Prediction(*latlon, cell_path="", probability=1.0).to_dict())
    assert text in written
