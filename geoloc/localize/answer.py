"""From posteriors to predictions: a point that is good at what was asked for, circles around it, names of places.

Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from geoloc.errors import ConfigError
from geoloc.localize.coarse import CoarseGrid, coarsened
from geoloc.localize.mixture import atoms_of
from geoloc.localize.posterior import Posterior, Utility
from geoloc.localize.prediction import Candidate, Prediction
from quadtree import Quadtree
from quadtree.sphere import unit_to_latlon

if TYPE_CHECKING:
    from geoloc.geo.places import Place


CITY_KM = 25.0  # what the field calls the right city


@dataclass(frozen=True)
class Asked:
    """What an answer shall be.

    Attributes:
        utility: what the point should be good at.
        levels: percent -> mass of the posterior that a circle holds; empty without calibration.
        top_k: number of candidates, at least 1; there may be fewer.
        abstain_above_km: set `abstained` where the 90 % radius is larger.
        max_precision_km: answer on a grid no finer than this, see `geoloc.localize.coarse`; then `place` is a region.
        places: look up the nearest city's name.
        model: what an error calls the model.
        near_km: without cells, the probability of a prediction is that of lying so near to its point.

    Raises:
        ConfigError: an option that is impossible, or abstaining without calibration.
    """

    utility: Utility
    levels: Mapping[int, float]
    top_k: int = 5
    abstain_above_km: float | None = None
    max_precision_km: float | None = None
    places: bool = True
    model: str = ""
    near_km: float = CITY_KM

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}; it must be at least 1")
        limit = self.abstain_above_km
        if limit is not None and not limit >= 0:
            raise ConfigError(f"abstain_above_km is {limit}; it must be a distance")
        if limit is not None and 90 not in self.levels:
            raise ConfigError(
                f"asked to abstain above {limit} km, but the model {self.model} has no calibrated 90 % radius; "
                "calibrate it, or leave abstain_above_km out"
            )
        if self.max_precision_km is not None:
            CoarseGrid(self.max_precision_km)

    def predictions(
        self,
        posteriors: Sequence[Posterior],
        candidates: Sequence[Sequence[Candidate]],
        best_cells: Sequence[tuple[str, float | None]],
        quadtree: Quadtree | None = None,
    ) -> list[Prediction]:
        """The answer to each image.

        Args:
            posteriors: of the images.
            candidates: of each, best first.
            best_cells: path and probability of each one's most probable cell; ("", None) without cells.
            quadtree: of the model; None without cells.
        """
        grid = None if self.max_precision_km is None else CoarseGrid(self.max_precision_km)
        found = []
        for posterior, ranked, (path, probability) in zip(posteriors, candidates, best_cells, strict=True):
            unit = posterior.point(self.utility)
            lat, lon = unit_to_latlon(unit).tolist()
            if probability is None:
                probability = posterior.probability_within(unit, self.near_km)
            radii_km = posterior.radii_km(unit, list(self.levels.values()))
            prediction = Prediction(
                lat=lat,
                lon=lon,
                cell_path=path,
                probability=probability,
                candidates=tuple(ranked),
                radius_km=dict(zip(self.levels, radii_km, strict=True)),
                posterior=atoms_of(posterior),
            )
            if grid is not None:
                prediction = coarsened(prediction, grid, quadtree)
            if self.abstain_above_km is not None:
                is_wide = prediction.radius_km[90] > self.abstain_above_km
                prediction = replace(prediction, abstained=is_wide)
            found.append(prediction)
        return self._named(found) if self.places else found

    def _named(self, predictions: list[Prediction]) -> list[Prediction]:
        from geoloc.geo.places import load_places

        names: Sequence[Place] = load_places().nearest([(p.lat, p.lon) for p in predictions])
        if (
            self.max_precision_km is not None
        ):  # the city nearest to a grid's point is no answer; its region may be
            names = [replace(name, name="", admin2="") for name in names]
        return [replace(p, place=name) for p, name in zip(predictions, names, strict=True)]
