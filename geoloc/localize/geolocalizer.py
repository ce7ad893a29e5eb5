"""The product: a checkpoint in, predictions out; a checkpoint out.

    model = Geolocalizer.from_pretrained("earthview")
    prediction = model.localize("photo.jpg")
    model.save_pretrained("my-model/")

A checkpoint is a folder, see `geoloc.localize.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoloc.errors import BadImageError, CheckpointError, ConfigError
from geoloc.hub.resolve import resolve
from geoloc.images.decode import ImageSource
from geoloc.images.preprocess import Preprocess, load_and_preprocess
from geoloc.localize.calibrate import (
    PERCENTS,
    Calibration,
    conformal_level,
    fit_kernel,
    fit_temperature,
    log_softmax,
)
from geoloc.localize.checkpoint import Checkpoint, Saved, read_checkpoint, write_checkpoint
from geoloc.localize.posterior import Posterior, Utility, choose_cells, distance_km
from geoloc.localize.prediction import Candidate, Prediction
from geoloc.models.network import GeoNetwork, NetworkOutput
from quadtree import Quadtree
from quadtree.sphere import (
    EARTH_MEAN_RADIUS_KM,
    haversine_km,
    latlon_to_unit,
    unit_to_latlon,
    validate_latlon_deg,
)

if TYPE_CHECKING:
    from geoloc.geo.places import Place

CELL_MASS = 0.95  # the chosen cells hold this much of the posterior …
MAX_CELLS = 32  # … or are this many
NEGLIGIBLE_PROBABILITY = 1e-7  # of a cell; the posterior leaves such cells out


class Geolocalizer:
    """A model that says where on Earth an image was taken.

    Args:
        name: what predictions and cards call it.
        network: in evaluation mode or not; it is switched to it.
        preprocess: how the network wants its images.
        quadtree: the cells that the network's cell head classifies; None without such a head.
        calibration: fitted on held-out images; without it predictions have no radii.
        card: text of the README.md that the checkpoint carries.

    Raises:
        ConfigError: the quadtree is not that of the network's cell head.
    """

    def __init__(
        self,
        name: str,
        network: GeoNetwork,
        preprocess: Preprocess,
        quadtree: Quadtree | None,
        calibration: Calibration | None = None,
        card: str = "",
    ) -> None:
        num_cells = 0 if network.cells is None else network.cells[-1].out_features
        if num_cells != (0 if quadtree is None else quadtree.num_cells):
            raise ConfigError(
                f"the network classifies {num_cells} cells, but the quadtree has "
                f"{0 if quadtree is None else quadtree.num_cells}; give the quadtree that it was built with"
            )
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.preprocess = preprocess
        self.quadtree = quadtree
        self.calibration = calibration or Calibration()
        self.card = card
        self._saved: Saved | None = None

    # --- checkpoints ----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> Geolocalizer:
        """Load a model: a bundled name ("earthview"), a folder, or a Hub id.

        Nothing but the checkpoint is read or downloaded, and nothing in it is unpickled or imported.

        Raises:
            NotFoundError: there is no such model.
            IntegrityError: a file is missing or differs from the manifest.
            ConfigError: config.json or calibration.json has an unknown key or an impossible value.
            CheckpointError: the tensors do not fit the network that config.json describes, or the quadtree is
                none.
            FingerprintMismatchError: the quadtree is not the one that the cell head was trained on.
        """
        checkpoint, saved = read_checkpoint(resolve(name, revision))
        network = checkpoint.network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model = cls(
            checkpoint.name,
            network,
            checkpoint.preprocess,
            checkpoint.quadtree,
            checkpoint.calibration,
            checkpoint.card,
        )
        model._saved = saved
        return model

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write the checkpoint; an existing one is replaced in one step, and is whole at every moment.

        Args:
            folder: where to; it is made, or must hold a checkpoint.
            half: store floating-point tensors as float16 (half the size; loaded as float32).

        Raises:
            OutputMismatchError: the folder holds files that no checkpoint of ours has.
            CheckpointError: a weight is too large for float16.
        """
        checkpoint = Checkpoint(
            self.name, self.network, self.preprocess, self.quadtree, self.calibration, self.card
        )
        self._saved = write_checkpoint(checkpoint, folder, half=half)

    @property
    def identity(self) -> str:
        """Digest of the checkpoint's manifest: two models with the same one give the same predictions.

        Raises:
            CheckpointError: the model was neither loaded nor saved, so nothing has identified it yet.
        """
        return self._as_saved().identity

    @property
    def embedding_fingerprint(self) -> str:
        """Digest of network and preprocessing: vectors of models with the same one may be compared.

        Calibration and card are not in it, so fitting a model anew keeps its reference databases.

        Raises:
            CheckpointError: the model was neither loaded nor saved.
        """
        return self._as_saved().embedding_fingerprint

    def _as_saved(self) -> Saved:
        if self._saved is None:
            raise CheckpointError("a model has an identity once it is saved: call save_pretrained first")
        return self._saved

    def embed_reference(self, images: Tensor, source: str) -> NDArray[np.float32]:
        """Unit vectors of preprocessed reference images for a database, (B, 3, S, S) -> (B, D).

        Args:
            images: as `load` makes them, stacked.
            source: "aerial" or "street"; the network must have an embedding of that name.

        Raises:
            ConfigError: it has none.
        """
        with torch.inference_mode():
            features = self.network.backbone(
                images.to(self.device).contiguous(memory_format=torch.channels_last)
            )
            return self.network.embed(features, source).float().cpu().numpy()

    # --- localising -----------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the network's tensors are."""
        return next(self.network.parameters()).device

    def load(self, source: ImageSource) -> Tensor:
        """Decode and preprocess one image: path, bytes, PIL image or array -> (3, S, S).

        Raises:
            BadImageError: it is no usable image.
        """
        return load_and_preprocess(source, self.preprocess)

    @overload
    def localize(self, images: ImageSource, **options: Any) -> Prediction: ...
    @overload
    def localize(self, images: Sequence[ImageSource], **options: Any) -> list[Prediction]: ...
    def localize(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        batch_size: int = 16,
        **options: Any,
    ) -> Prediction | list[Prediction]:
        """Say where an image was taken; a list of images gives a list.

        Args:
            images: path, bytes, PIL image, or (h, w, 3) uint8 array; or a list of them.
            batch_size: images that go through the network together.
            options: as `localize_batch` takes them: `utility`, `top_k`, `abstain_above_km`, `places`.

        Raises:
            BadImageError: an image is unusable; of a list, the message says which.
            ConfigError: an option that is impossible.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        # A str and bytes are Sequences, too.
        if isinstance(images, str | bytes) or not isinstance(images, Sequence):
            return self.localize_batch(self.load(images)[None], **options)[0]
        images = cast("Sequence[ImageSource]", images)
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            tensors = []
            for index, image in enumerate(images[start : start + batch_size], start):
                try:
                    tensors.append(self.load(image))
                except BadImageError as error:
                    raise BadImageError(f"image {index} of the list: {error.reason}") from error
            predictions += self.localize_batch(torch.stack(tensors), **options)
        return predictions

    def localize_batch(
        self,
        images: Tensor,
        *,
        utility: str | Utility = "geoscore",
        top_k: int = 5,
        abstain_above_km: float | None = None,
        places: bool = True,
    ) -> list[Prediction]:
        """Localise preprocessed images, (B, 3, S, S).

        Args:
            images: as `load` makes them, stacked.
            utility: what the point should be good at: "geoscore", "median" or "within:25km".
            top_k: number of candidates to report, at least 1; there may be fewer.
            abstain_above_km: set `abstained` where the 90 % radius is larger.
            places: look up the nearest city's name.

        Raises:
            ConfigError: an option that is impossible, or abstaining asked of a model without calibration.
            CheckpointError: the network gives numbers that are not finite.
        """
        utility = Utility.parse(utility)
        levels = self.calibration.levels(utility.kind)
        if top_k < 1:
            raise ConfigError(f"top_k is {top_k}; it must be at least 1")
        if abstain_above_km is not None and not abstain_above_km >= 0:
            raise ConfigError(f"abstain_above_km is {abstain_above_km}; it must be a distance")
        if abstain_above_km is not None and 90 not in levels:
            raise ConfigError(
                f"asked to abstain above {abstain_above_km} km, but the model {self.name!r} has no "
                "calibrated 90 % radius; calibrate it, or leave abstain_above_km out"
            )
        posteriors, candidates = self.posteriors(images, top_k)
        predictions = []
        for posterior, ranked in zip(posteriors, candidates, strict=True):
            unit = posterior.point(utility)
            lat, lon = unit_to_latlon(unit).tolist()
            radii = dict(zip(levels, posterior.radii_km(unit, list(levels.values())), strict=True))
            predictions.append(
                Prediction(
                    lat=lat,
                    lon=lon,
                    cell_path=ranked[0].key,
                    probability=ranked[0].probability,
                    candidates=tuple(ranked),
                    radius_km=radii,
                    abstained=abstain_above_km is not None and radii[90] > abstain_above_km,
                )
            )
        if places:
            names = _nearest_places([(p.lat, p.lon) for p in predictions])
            predictions = [replace(p, place=name) for p, name in zip(predictions, names, strict=True)]
        return predictions

    def posteriors(self, images: Tensor, top_k: int = 5) -> tuple[list[Posterior], list[list[Candidate]]]:
        """The posterior over the Earth of each image, and its `top_k` most probable places, best first.

        Args:
            images: (B, 3, S, S).
            top_k: there may be fewer.

        Raises:
            ConfigError: the network has no head that says where.
            CheckpointError: the network gives numbers that are not finite.
        """
        return self._posteriors_of(self._run(images), self.calibration, top_k)

    @property
    def embedding_dim(self) -> int:
        """Width of the embeddings for retrieval, the same for queries and references.

        Raises:
            ConfigError: the network has no embedding.
        """
        dims = {config.dim for config in self.network.config.embeddings.values()}
        if len(dims) != 1:
            raise ConfigError(
                f"the model {self.name!r} has embeddings of {len(dims)} widths, and references need one: take a "
                "model that was trained for retrieval"
            )
        return dims.pop()

    def _run(self, images: Tensor) -> NetworkOutput:
        with torch.inference_mode():
            output: NetworkOutput = self.network(
                images.to(self.device).contiguous(memory_format=torch.channels_last)
            )
        says_where = [v for v in (output.cell_logits, output.offsets, output.latlon_rad) if v is not None]
        if not says_where:
            raise ConfigError(
                f"the model {self.name!r} has neither a cell head nor a regression head: it only embeds"
            )
        if not all(bool(values.isfinite().all()) for values in says_where):
            raise CheckpointError(
                f"the network of the model {self.name!r} gives numbers that are not finite: its weights are "
                "damaged, or too large for their precision; fetch or train it again"
            )
        return output

    def _posteriors_of(
        self, output: NetworkOutput, calibration: Calibration, top_k: int
    ) -> tuple[list[Posterior], list[list[Candidate]]]:
        if output.cell_logits is None:
            return self._regression_posteriors(output, calibration)
        logits = output.cell_logits.double().cpu().numpy()
        probs = np.exp(log_softmax(logits / calibration.temperature))
        chosen = [choose_cells(row, CELL_MASS, MAX_CELLS) for row in probs]
        points = self.cell_points(output.offsets, chosen)
        posteriors, candidates = [], []
        for row, cells, latlon in zip(probs, chosen, points, strict=True):
            rest = row.copy()
            rest[cells] = 0.0
            others = np.flatnonzero(rest > NEGLIGIBLE_PROBABILITY)
            scale_km = calibration.cell_kernel * self._cell_radius_km[cells]
            posteriors.append(
                Posterior(latlon_to_unit(latlon), row[cells], scale_km, self._cell_unit[others], rest[others])
            )
            candidates.append(
                [
                    Candidate(float(lat), float(lon), float(row[cell]), "cell", None, self._paths[cell])
                    for cell, (lat, lon) in zip(cells[:top_k], latlon[:top_k], strict=True)
                ]
            )
        return posteriors, candidates

    def _regression_posteriors(
        self, output: NetworkOutput, calibration: Calibration
    ) -> tuple[list[Posterior], list[list[Candidate]]]:
        assert output.latlon_rad is not None
        unit = latlon_to_unit(np.degrees(output.latlon_rad.double().cpu().numpy()))
        scale_km = np.array([calibration.regression_kernel_km])
        return (
            [Posterior(row[None], np.ones(1), scale_km) for row in unit],
            # By way of unit vectors: a float32 pi is a little more than 180 degrees.
            [
                [Candidate(float(lat), float(lon), 1.0, "regression", None, "")]
                for lat, lon in unit_to_latlon(unit)
            ],
        )

    def calibrate(self, batches: Iterable[tuple[Tensor, NDArray[np.float64]]], data: str) -> Calibration:
        """Fit temperature, kernel width and conformal levels on held-out images, and use them from now on.

        One pass over the images, two over the network's outputs: the levels need the other two.

        Args:
            batches: preprocessed images (B, 3, S, S) and their coordinates (B, 2); a few thousand images, not
                trained on, like those that the model will meet.
            data: what they are, in words, for the card.

        Raises:
            ConfigError: there are no images, or the network has no head that says where.
            InvalidCoordinateError: a coordinate is no place on Earth.
        """
        outputs, truths = [], []
        for images, latlon_deg in batches:
            outputs.append(self._run(images))
            truths.append(validate_latlon_deg(latlon_deg))
        if not truths:
            raise ConfigError("there are no images to calibrate with; give a few thousand, not trained on")
        fitted = replace(self._fit_widths(outputs, truths), num_images=sum(map(len, truths)), data=data)

        masses: dict[str, list[float]] = {"geoscore": [], "median": []}
        for output, latlon_deg in zip(outputs, truths, strict=True):
            posteriors, _ = self._posteriors_of(output, fitted, top_k=1)
            for posterior, truth in zip(posteriors, latlon_to_unit(latlon_deg), strict=True):
                for kind, found in masses.items():
                    point = posterior.point(Utility.parse(kind))
                    off_km = float(distance_km(point[None], truth[None])[0, 0])
                    found.append(posterior.mass_within(point, off_km))
        levels = {
            kind: {str(percent): conformal_level(np.array(found), percent) for percent in PERCENTS}
            for kind, found in masses.items()
        }
        self.calibration = replace(fitted, mass_levels=levels)
        self._saved = None
        return self.calibration

    def _fit_widths(self, outputs: list[NetworkOutput], truths: list[NDArray[np.float64]]) -> Calibration:
        """Temperature and kernel width of a classifier, or kernel width of a regression."""
        truth = np.concatenate(truths)
        if self.quadtree is None:  # then there is no cell head, either
            regressed = [
                output.latlon_rad.double().cpu() for output in outputs if output.latlon_rad is not None
            ]
            off_km = haversine_km(np.degrees(torch.cat(regressed).numpy()), truth)
            return Calibration(regression_kernel_km=fit_kernel(off_km))
        cell_ids = self.quadtree.assign(truth)
        logits = [output.cell_logits.cpu().numpy() for output in outputs if output.cell_logits is not None]
        ends = np.cumsum([len(rows) for rows in truths])[:-1]
        right_points = [
            point
            for output, right_cells in zip(outputs, np.split(cell_ids, ends), strict=True)
            for point in self.cell_points(output.offsets, list(right_cells[:, None]))
        ]
        off_km = haversine_km(np.concatenate(right_points), truth)
        return Calibration(
            temperature=fit_temperature(np.concatenate(logits), cell_ids),
            cell_kernel=fit_kernel(off_km / self._cell_radius_km[cell_ids]),
        )

    def cell_points(
        self, offsets: Tensor | None, chosen: list[NDArray[np.int64]]
    ) -> list[NDArray[np.float64]]:
        """The point inside each chosen cell: by its offset, or its representative point without such a head.

        Args:
            offsets: (B, C or 1, 2) or None.
            chosen: per image (k,) cell ids.

        Returns:
            Per image (k, 2) degrees.
        """
        head = self.network.offsets
        if offsets is None or head is None:
            centers = _tree(self.quadtree).center_latlon_deg
            return [centers[cells] for cells in chosen]
        points = []
        for row, cells in zip(offsets, chosen, strict=True):
            ids = torch.from_numpy(cells).to(offsets.device)
            points.append(head.to_latlon_deg(head.of_cells(row[None], ids[None])[0], ids).cpu().numpy())
        return points

    @cached_property
    def _cell_radius_km(self) -> NDArray[np.float64]:
        return cell_radius_km(_tree(self.quadtree).bounds_deg)

    @cached_property
    def _cell_unit(self) -> NDArray[np.float64]:
        return latlon_to_unit(_tree(self.quadtree).center_latlon_deg)

    @cached_property
    def _paths(self) -> tuple[str, ...]:
        return _tree(self.quadtree).paths


def cell_radius_km(bounds_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radius of the disc with each cell's area, (C, 4) -> (C,); at least a metre, for cells without area."""
    south, west, north, east = np.radians(bounds_deg).T
    area = EARTH_MEAN_RADIUS_KM**2 * (east - west) * (np.sin(north) - np.sin(south))
    return np.asarray(np.maximum(np.sqrt(area / np.pi), 1e-3))


def _tree(quadtree: Quadtree | None) -> Quadtree:
    assert quadtree is not None  # a network with a cell head has one, checked when it was built
    return quadtree


def _nearest_places(latlon_deg: list[tuple[float, float]]) -> Sequence[Place]:
    from geoloc.geo.places import load_places

    return load_places().nearest(latlon_deg)
