"""What a user gets for one image. Plain values: knows nothing about models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from geoloc.geo.places import Place

COORDINATE_DIGITS = 6  # decimals of a degree in what we write: 0.1 m


def rounded_latlon_deg(lat: float, lon: float, digits: int = COORDINATE_DIGITS) -> tuple[float, float]:
    """Both with so many decimals; what rounds up to 180 is -180, and there is no -0.0."""
    lat, lon = round(lat, digits) + 0.0, round(lon, digits) + 0.0
    return lat, -180.0 if lon == 180.0 else lon


def _rounded(lat: float, lon: float) -> dict[str, float]:
    return dict(zip(("lat", "lon"), rounded_latlon_deg(lat, lon), strict=True))


class Atom(NamedTuple):
    """One bell of a posterior's picture: an isotropic Gaussian on the ground.

    Attributes:
        lat: WGS84 degrees in [-90, 90].
        lon: WGS84 degrees in [-180, 180).
        weight: share of the posterior that it holds, in [0, 1].
        scale_km: standard deviation per axis; 0 is a point.
    """

    lat: float
    lon: float
    weight: float
    scale_km: float


@dataclass(frozen=True)
class Candidate:
    """One place that the image may show.

    Attributes:
        lat: WGS84 degrees in [-90, 90].
        lon: WGS84 degrees in [-180, 180).
        probability: of being the place, in [0, 1].
        source: "cell" for a classifier's cell with its offset; "regression" for a point without cells;
            "aerial" or "street" for a reference; "drawn" for one of the places that a model draws.
        similarity: cosine between query and reference embedding; None without a reference.
        key: the cell's path, or the reference's key; "" without either.
    """

    lat: float
    lon: float
    probability: float
    source: str
    similarity: float | None
    key: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values, coordinates with six decimals."""
        return {
            **_rounded(self.lat, self.lon),
            "probability": round(self.probability, 6),
            "source": self.source,
            "similarity": None if self.similarity is None else round(self.similarity, 6),
            "key": self.key,
        }


@dataclass(frozen=True)
class Prediction:
    """Where an image was probably taken, and how sure the model is.

    Attributes:
        lat: WGS84 degrees in [-90, 90].
        lon: WGS84 degrees in [-180, 180).
        cell_path: the most probable cell, digits from the root of the quadtree; "" for a model without cells.
        probability: of that cell, after temperature. Of a model without cells, that the place lies within 25 km of the
            point, or within 25 m for one that recognises places. Not calibrated there, and so no more than what the
            references' similarities, or the draws, say.
        candidates: the most probable places, best first.
        radius_km: percent -> radius of the circle around the point that holds the truth so often on held-out
            data like the model's own ({50: …, 90: …}); empty for a model without calibration.
        place: the city nearest to the point, and its distance; None if not asked for.
        abstained: the 90 % radius exceeds the limit that the user set: do not rely on the point.
        posterior: a picture of the posterior over the Earth, for heatmaps: its heaviest bells, heaviest first.
            Their weights sum to less than 1 where it reaches further. It is in no dict and no table.

    `geoloc.view.prediction_map.write_prediction_map` draws it all on a map.
    """

    lat: float
    lon: float
    cell_path: str
    probability: float
    candidates: tuple[Candidate, ...] = ()
    radius_km: Mapping[int, float] = field(default_factory=dict)
    place: Place | None = None
    abstained: bool = False
    posterior: tuple[Atom, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values, coordinates with six decimals, radii in km; without the posterior's picture."""
        place = None
        if self.place is not None:
            place = {
                "name": self.place.name,
                "admin1": self.place.admin1,
                "admin2": self.place.admin2,
                "country_code": self.place.country_code,
                "distance_km": round(self.place.distance_km, 3),
            }
        return {
            **_rounded(self.lat, self.lon),
            "cell_path": self.cell_path,
            "probability": round(self.probability, 6),
            "radius_km": {
                str(percent): round(radius, 3) for percent, radius in sorted(self.radius_km.items())
            },
            "place": place,
            "abstained": self.abstained,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }

    def to_geojson(self, **properties: Any) -> dict[str, Any]:
        """A GeoJSON feature: the point, longitude first; `properties` and all the rest as its properties."""
        values = self.to_dict()
        lat, lon = values.pop("lat"), values.pop("lon")
        return {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [lon, lat]},
            "properties": {**properties, **values},
        }
