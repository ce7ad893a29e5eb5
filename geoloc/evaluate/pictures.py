"""Pictures of queries beside their best candidates, marked right or wrong by the protocol.

pictures = prediction_pictures(matched, protocol, 10, find_image=…, find_reference=…, only_wrong=True)
pictures[0].line                 "a.jpg: none of 5 within 25 m, the nearest is 312 m away"
pictures[0].jpeg()               query and candidates side by side
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import BadImageError, ConfigError, NotFoundError
from geoloc.evaluate.matching import Matched
from geoloc.images.decode import decode_image
from geoloc.metrics.protocols import Protocol
from geoloc.view.candidate_pictures import SIDE_PX, Tile, candidates_jpeg

NUM_SHOWN: Final = 5  # candidates per query

FindImage: TypeAlias = Callable[[str], Path | None]


@dataclass(frozen=True)
class ShownCandidate:
    """Candidate of a query.

    Attributes:
        distance_km: from the true location, by the protocol.
        is_right: whether it lies within the protocol's radius.
        similarity: of a reference; None for a cell.
        source: "street", "aerial", "location", "cell", …
        key: of the reference or cell.
        path: of its photo; None for no photo.
    """

    distance_km: float
    is_right: bool
    similarity: float | None
    source: str
    key: str
    path: Path | None


@dataclass(frozen=True)
class PredictionPicture:
    """Query with its best candidates.

    Attributes:
        image_id: of the query.
        path: of its photo; None for no photo.
        candidates: best first.
        radius_m: within which a candidate is right.
    """

    image_id: str
    path: Path | None
    candidates: tuple[ShownCandidate, ...]
    radius_m: float

    @property
    def line(self) -> str:
        """Caption, one line."""
        within = f"within {_far(self.radius_m / 1000)}"
        right = [rank for rank, found in enumerate(self.candidates, 1) if found.is_right]
        if not self.candidates:
            return f"{self.image_id}: no candidate"
        if right:
            return (
                f"{self.image_id}: {len(right)} of {len(self.candidates)} {within}, the first at {right[0]}"
            )
        nearest = min(found.distance_km for found in self.candidates)
        return (
            f"{self.image_id}: none of {len(self.candidates)} {within}, the nearest is {_far(nearest)} away"
        )

    def jpeg(self) -> bytes:
        """The picture as JPEG bytes."""
        tiles = [Tile(_photo(self.path), ["query", self.image_id])]
        for rank, found in enumerate(self.candidates, 1):
            facts = [f"{rank} {'right' if found.is_right else 'wrong'}", _far(found.distance_km)]
            if found.similarity is not None:
                facts.append(f"similarity {found.similarity:.3f}")
            name = found.key.rpartition("/")[2] if found.source == "street" else f"{found.source} {found.key}"
            tiles.append(Tile(_photo(found.path), [", ".join(facts), name], found.is_right))
        return candidates_jpeg(self.line, tiles)


def prediction_pictures(
    matched: Matched,
    protocol: Protocol,
    num: int,
    *,
    find_image: FindImage,
    find_reference: FindImage,
    only_wrong: bool = False,
) -> list[PredictionPicture]:
    """Pictures of the first queries in the order of the truth, with up to five candidates each.

    Args:
        matched: predictions with the truth.
        protocol: a candidate is right within the smallest radius of its recall.
        num: maximum number of queries.
        find_image: photo of a query by its id.
        find_reference: photo of a street reference by its key.
        only_wrong: only queries whose first candidate is wrong.

    Raises:
        ConfigError: the predictions have no candidates, or no shown candidate is a street reference.
        NotFoundError: no reference has a photo.
    """
    if "candidates" not in matched.predictions.others:
        raise ConfigError(f"{matched.predictions.path} has no column 'candidates', which pictures need")
    found = _shown(matched, protocol, find_image, find_reference)
    pictures: list[PredictionPicture] = []
    for picture in found:
        if len(pictures) == num:
            break
        if not (only_wrong and picture.candidates and picture.candidates[0].is_right):
            pictures.append(picture)
    of_photos = [c for picture in pictures for c in picture.candidates if c.source == "street"]
    if not of_photos and any(picture.candidates for picture in pictures):
        raise ConfigError(
            "no candidate to show is a street reference, and only those have photos: set --reference, or omit "
            "--pictures"
        )
    if of_photos and all(c.path is None for c in of_photos):
        raise NotFoundError(
            f"none of the {len(of_photos)} references to show has a photo, {of_photos[0].key!r} among them: "
            "--reference-images is the folder below which the references' keys are files, usually the argument of "
            "`geoloc reference build --street`"
        )
    return pictures


def _shown(
    matched: Matched, protocol: Protocol, find_image: FindImage, find_reference: FindImage
) -> Iterator[PredictionPicture]:
    radius_m = min(radius for radius in protocol.recall_within_m if radius > 0)
    for row, text in enumerate(matched.predicted_text("candidates")):
        image_id = matched.ids[row]
        best: list[dict[str, Any]] = json.loads(text)[:NUM_SHOWN] if text else []
        distances_km = _distances_km(best, matched.truth_latlon_deg[row], protocol)
        candidates = []
        for candidate, distance_km in zip(best, distances_km, strict=True):
            is_right = 1000 * distance_km < radius_m if protocol.strict else 1000 * distance_km <= radius_m
            source, key = str(candidate.get("source", "")), str(candidate.get("key", ""))
            path = find_reference(key) if source == "street" and key else None
            candidates.append(
                ShownCandidate(distance_km, is_right, candidate.get("similarity"), source, key, path)
            )
        yield PredictionPicture(image_id, find_image(image_id), tuple(candidates), radius_m)


def _distances_km(
    candidates: list[dict[str, Any]], truth_latlon_deg: NDArray[np.float64], protocol: Protocol
) -> list[float]:
    if not candidates:
        return []
    points = np.array([(candidate["lat"], candidate["lon"]) for candidate in candidates], np.float64)
    truth = np.broadcast_to(truth_latlon_deg, points.shape)
    return [float(distance) for distance in protocol.distance.km(points, truth)]


def _photo(path: Path | None) -> NDArray[np.uint8] | None:
    if path is None:
        return None
    try:
        return decode_image(path, min_side_px=SIDE_PX)
    except BadImageError:
        return None


def _far(distance_km: float) -> str:
    if math.isnan(distance_km):
        return "nowhere"
    return f"{1000 * distance_km:,.0f} m" if distance_km < 1 else f"{distance_km:,.1f} km"
