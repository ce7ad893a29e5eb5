"""Named evaluation protocols: the rules of each published evaluator.

    protocol = get_protocol("osv5m")
    distance_km = protocol.distance.km(predicted_latlon_deg, true_latlon_deg)

Rules that coordinates do not show (five crops, an image size) are the protocol's `preprocessing`, which every
report prints.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from geoloc.errors import ConfigError
from geoloc.metrics.distances import WGS84, Distance
from geoloc.metrics.scores import RADII_KM

Missing: TypeAlias = Literal["miss", "drop"]
AdminRule: TypeAlias = Literal["nearest-city", "osv5m", "polygon", "none"]

VPR_RADIUS_M = 25.0
CITY_RADIUS_M = 25_000.0
NO_SUBSET = "every image of the truth"
FREE_CHOICE = "not part of the protocol: state it"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules of one evaluator.

    Attributes:
        name: in `--protocol` and in reports.
        description: source and peculiarities, one sentence.
        distance: formula, radius and precision.
        thresholds_km: radii of the accuracies; by default street, city, region, country and continent.
        strict: an image is within r if d < r; otherwise if d <= r.
        round_scores: each image's GeoScore is rounded to an integer before the mean.
        missing: an image without a usable prediction is a "miss" (score 0, outside every radius) or left out of
            every mean ("drop"). Their number is always reported.
        admin: source of administrative names. "nearest-city": the nearest GeoNames city on the sphere. "osv5m": the
            nearest in raw degrees (`reverse_geocoder`), as OSV-5M's keys. "polygon": country borders, which are not
            shipped, so not computed. "none": no admin accuracy.
        subset: description of the images that count.
        num_images: their number if it is fixed; another number is reported as a deviation.
        preprocessing: description of the image preprocessing of the source.
        recall_at: values of k of recall@k, for predictions with candidates.
        retrieval: recall@k is the main score: predictions without candidates get a recall@1.
        needs_positive: queries without a reference within the smallest radius are left out if the database is
            known, else they are misses.
        recall_within_m: radii in metres within which a candidate is right; 0 is the cell that contains the image.
    """

    name: str
    description: str
    distance: Distance = WGS84
    thresholds_km: tuple[float, ...] = RADII_KM
    strict: bool = True
    round_scores: bool = False
    missing: Missing = "miss"
    admin: AdminRule = "none"
    subset: str = NO_SUBSET
    num_images: int | None = None
    preprocessing: str = FREE_CHOICE
    recall_at: tuple[int, ...] = (1, 5, 10)
    recall_within_m: tuple[float, ...] = (CITY_RADIUS_M,)
    retrieval: bool = False
    needs_positive: bool = False

    def facts(self) -> dict[str, object]:
        """The rules as JSON values for a report."""
        return {
            "name": self.name,
            "description": self.description,
            "distance": str(self.distance),
            "threshold": "d < r" if self.strict else "d <= r",
            "thresholds_km": list(self.thresholds_km),
            "geoscore": "each image rounded, then the mean"
            if self.round_scores
            else "mean of unrounded scores",
            "missing": {
                "miss": "score 0 and outside every radius",
                "drop": "left out of every mean",
            }[self.missing],
            "admin": self.admin,
            "subset": self.subset,
            "num_images": self.num_images,
            "preprocessing": self.preprocessing,
            "without_positive": ("left out" if self.needs_positive else "a miss") if self.retrieval else None,
        }


_SPHERE_6371 = Distance(formula="haversine", radius_km=6371.0)

_ALL = (
    Protocol(
        name="geodesic",
        description="Ours: the WGS84 ellipsoid, a missing prediction is a miss, names of the nearest city.",
        strict=False,
        admin="nearest-city",
    ),
    Protocol(
        name="osv5m",
        description="OSV-5M (CVPR 2024): float32 haversine, strict thresholds, names by reverse_geocoder.",
        distance=Distance(formula="haversine", radius_km=6371.0, precision="float32"),
        admin="osv5m",
        subset="the 210,122 images of the OSV-5M test set",
        num_images=210_122,
        preprocessing="single view, CLIP preprocessing",
    ),
    Protocol(
        name="plonk",
        description="PLONK (CVPR 2025): OSV-5M's distances; rows without a prediction leave the means.",
        distance=Distance(formula="haversine", radius_km=6371.0, precision="float32"),
        missing="drop",
        admin="osv5m",
        preprocessing="single view, preprocessing of the backbone",
    ),
    Protocol(
        name="pigeon",
        description="PIGEON (CVPR 2024): equatorial radius, each GeoScore rounded first, country by polygon.",
        distance=Distance(formula="haversine-arcsin", radius_km=6378.137),
        round_scores=True,
        admin="polygon",
        preprocessing="single view; four headings of one place averaged for street view",
    ),
    Protocol(
        name="geoclip",
        description="GeoCLIP (NeurIPS 2023): WGS84 geodesic, thresholds inclusive.",
        strict=False,
        preprocessing="single centre crop with ImageNet statistics in the shipped evaluation; ten crops in the paper",
    ),
    Protocol(
        name="im2gps",
        description="Im2GPS and Im2GPS3k (Hays & Efros 2008, Vo et al. 2017) as ISN scores: great circle, 6371 km.",
        distance=_SPHERE_6371,
        strict=False,
        subset="237 images of Im2GPS, or 2,997 of Im2GPS3k",
        preprocessing="single view, or five crops averaged (ISN family): state which",
    ),
    Protocol(
        name="yfcc",
        description="YFCC4k and YFCC26k (Vo et al. 2017, Theiner et al. 2022): great circle, 6371 km.",
        distance=_SPHERE_6371,
        strict=False,
        subset="4,536 images of YFCC4k, or 25,600 of YFCC26k; galleries from MP-16 share its source",
        preprocessing="single view, or five crops averaged: state which",
    ),
    Protocol(
        name="vpr-25m",
        description="Place recognition: recall@N, positives within 25 m (geodesic here: no zone ends).",
        thresholds_km=(0.025,),
        strict=False,
        recall_at=(1, 5, 10, 20),
        recall_within_m=(VPR_RADIUS_M,),
        retrieval=True,
        needs_positive=True,
        subset="queries with at least one positive in the database",
        preprocessing="state the image size: 322 (DINOv2), 384 (BoQ), 320 (MixVPR)",
    ),
    Protocol(
        name="cosplace",
        description="CosPlace (CVPR 2022): vpr-25m over all queries; one without a positive is a miss.",
        thresholds_km=(0.025,),
        strict=False,
        recall_at=(1, 5, 10, 20),
        recall_within_m=(VPR_RADIUS_M,),
        retrieval=True,
        preprocessing="the photo at its own size in the paper's evaluation: state the size",
    ),
    Protocol(
        name="msls-740",
        description="MSLS validation as Mapillary defines it: vpr-25m over the 740 official queries.",
        thresholds_km=(0.025,),
        strict=False,
        recall_at=(1, 5, 10, 20),
        recall_within_m=(VPR_RADIUS_M,),
        retrieval=True,
        subset="the 740 official queries of MSLS validation (not all 11,084 or 11,120 images)",
        num_images=740,
        preprocessing="state the image size",
    ),
    Protocol(
        name="statewide",
        description="Statewide (ECCV 2024): recall@k over cells, r = 0 the containing cell, else a centre within r.",
        thresholds_km=(0.025, 0.05, 0.1),
        recall_at=(1, 5, 10, 50, 100),
        retrieval=True,
        recall_within_m=(0.0, 25.0, 50.0, 100.0),
        subset="the photos inside the region of the index",
        preprocessing="one view, rectified",
    ),
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({protocol.name: protocol for protocol in _ALL})


def get_protocol(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
        ConfigError: no protocol has that name.
    """
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise ConfigError(f"there is no protocol {name!r}; known are {', '.join(PROTOCOLS)}") from None
