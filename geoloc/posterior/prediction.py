"""Predictions: plain values for one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from geoloc.geo.places import Place

if TYPE_CHECKING:
    from geoloc.posterior.modes import Mode

COORDINATE_DIGITS = 6  # decimals of a degree in outputs: 0.1 m


def rounded_latlon_deg(lat: float, lon: float, digits: int = COORDINATE_DIGITS) -> tuple[float, float]:
    """Rounded coordinates; a longitude that rounds to 180 is -180, and there is no -0.0."""
    lat, lon = round(lat, digits) + 0.0, round(lon, digits) + 0.0
    return lat, -180.0 if lon == 180.0 else lon


def _rounded(lat: float, lon: float) -> dict[str, float]:
    return dict(zip(("lat", "lon"), rounded_latlon_deg(lat, lon), strict=True))


class Atom(NamedTuple):
    """One kernel of a posterior: an isotropic Gaussian on the ground.

    Attributes:
        lat: WGS84 degrees in [-90, 90].
        lon: WGS84 degrees in [-180, 180).
        weight: its share of the posterior, in [0, 1].
        scale_km: standard deviation per axis; 0 is a point.
    """

    lat: float
    lon: float
    weight: float
    scale_km: float


@dataclass(frozen=True)
class Candidate:
    """One location that the image may show.

    Attributes:
        lat: WGS84 degrees in [-90, 90].
        lon: WGS84 degrees in [-180, 180).
        probability: of being the right one, in [0, 1].
        source: "cell" for a classifier's cell with its offset; "regression" for a point without cells;
            "aerial", "street" or "location" for a reference; "sample" for a sample of a generative model.
        similarity: cosine between query and reference embedding; None without a reference.
        key: path of the cell, or key of the reference; "" without either.
        database: folder name of the database that holds the reference; "" without a reference.
    """

    lat: float
    lon: float
    probability: float
    source: str
    similarity: float | None
    key: str
    database: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values, coordinates with six decimals."""
        return {
            **_rounded(self.lat, self.lon),
            "probability": round(self.probability, 6),
            "source": self.source,
            "similarity": None if self.similarity is None else round(self.similarity, 6),
            "key": self.key,
            "database": self.database,
        }


@dataclass(frozen=True)
class Prediction:
    """Predicted location of an image with its uncertainty.

    Attributes:
        lat: WGS84 degrees in [-90, 90].
        lon: WGS84 degrees in [-180, 180).
        cell_path: of the most probable cell, digits from the root of the quadtree; "" for a model without cells.
        probability: of that cell, after temperature. For a model without cells, the posterior probability that the
            truth lies within 25 km of the point (25 m for place recognition), which is not calibrated.
        candidates: the most probable locations, best first.
        radius_km: percent -> radius of the circle around the point that holds the truth so often on data like the
            calibration set ({50: …, 90: …}); empty where none was fitted for the utility.
        place: the nearest city and its distance; None if not asked for.
        abstained: the 90 % radius exceeds the limit that the user set: do not rely on the point.
        posterior: the heaviest kernels of the posterior, heaviest first, for heatmaps. Their weights sum to at most 1.
            It is not in `to_dict` and not in tables.

    `geoloc.view.prediction_map.write_prediction_map` draws it on a map.
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

    @cached_property
    def modes(self) -> tuple[Mode, ...]:
        """Clusters of `posterior`, most probable first; computed on first access (see `modes_of`)."""
        from geoloc.posterior.modes import modes_of

        return modes_of(self.posterior)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, coordinates with six decimals, radii in km; without the posterior."""
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
        """A GeoJSON feature: the point, longitude first; `properties` and the other values as its properties."""
        values = self.to_dict()
        lat, lon = values.pop("lat"), values.pop("lon")
        return {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [lon, lat]},
            "properties": {**properties, **values},
        }
