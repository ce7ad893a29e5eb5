"""Point estimation: the location that maximises the expected utility, conformal radii around it, names of cities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from geoloc.errors import ConfigError
from geoloc.posterior.coarse import CoarseGrid, coarsened
from geoloc.posterior.distribution import Posterior
from geoloc.posterior.mixture import atoms_of
from geoloc.posterior.prediction import Candidate, Prediction
from geoloc.posterior.utility import Utility
from quadtree import Quadtree
from quadtree.sphere import unit_to_latlon

if TYPE_CHECKING:
    from geoloc.geo.places import Place


@dataclass(frozen=True)
class PointOptions:
    """How predictions are made from posteriors.

    Attributes:
        utility: what the point maximises.
        levels: percent -> mass of the posterior that the radius of that percent holds; empty where none was fitted for
            this utility.
        top_k: number of candidates, at least 1; there may be fewer.
        abstain_above_km: set `abstained` where the 90 % radius is larger.
        max_precision_km: answer on a grid no finer than this, see `geoloc.posterior.coarse`; then `place` is a region.
        places: look up the nearest city's name.
        model: name of the model in messages.
        near_km: without cells, `Prediction.probability` is that of lying within this distance of the point.

    Raises:
        ConfigError: an impossible option, or abstaining without a calibrated 90 % radius.
    """

    utility: Utility
    levels: Mapping[int, float]
    top_k: int = 5
    abstain_above_km: float | None = None
    max_precision_km: float | None = None
    places: bool = True
    model: str = ""
    near_km: float = 25.0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}; it must be at least 1")
        limit = self.abstain_above_km
        if limit is not None and not limit >= 0:
            raise ConfigError(f"abstain_above_km is {limit}; it must be a distance")
        if limit is not None and 90 not in self.levels:
            raise ConfigError(
                f"asked to abstain above {limit} km, but the model {self.model} has no calibrated 90 % radius for the "
                f"utility {self.utility.name}; calibrate it for that utility, or leave abstain_above_km out"
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
        """The prediction of each image.

        Args:
            posteriors: one for each image.
            candidates: of each image, best first.
            best_cells: path and probability of each image's most probable cell; ("", None) without cells.
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
        ):  # the city nearest to a grid point means nothing; its region may
            names = [replace(name, name="", admin2="") for name in names]
        return [replace(p, place=name) for p, name in zip(predictions, names, strict=True)]
