"""The product: a checkpoint in, predictions out; a checkpoint out.

    model = Geolocalizer.from_pretrained("earthview")
    prediction = model.localize("photo.jpg")
    model.save_pretrained("my-model/")

A checkpoint is a folder (the same on disk and on the Hub):

    config.json        the network, the preprocessing, the quadtree's fingerprint: plain values, strict
    model.safetensors  exactly the network's tensors
    quadtree.parquet   the cells (absent for a model without a cell head)
    calibration.json   temperature, kernel width, conformal levels
    README.md          the card
    manifest.json      sha256 of every file; verified before anything else is read
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoloc.errors import BadImageError, CheckpointError, ConfigError, FingerprintMismatchError
from geoloc.files import atomic_write, replace_folder, verify_manifest, write_manifest
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
from geoloc.localize.posterior import Posterior, Utility, choose_cells, distance_km
from geoloc.localize.prediction import Candidate, Prediction
from geoloc.models.backbone import Backbone
from geoloc.models.batch_norm import fold_batch_norm, unfolded_state_dict
from geoloc.models.config import SCHEMA_VERSION, NetworkConfig, from_plain, to_plain
from geoloc.models.network import GeoNetwork
from quadtree import Quadtree
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, haversine_km, latlon_to_unit, unit_to_latlon

if TYPE_CHECKING:
    from geoloc.geo.places import Place

CELL_MASS = 0.95  # the chosen cells hold this much of the posterior …
MAX_CELLS = 32  # … or are this many
NEGLIGIBLE_PROBABILITY = 1e-7  # of a cell; the posterior leaves such cells out


@dataclass(frozen=True)
class _Config:
    """config.json."""

    schema_version: int
    name: str
    network: NetworkConfig
    preprocess: Mapping[str, Any]
    quadtree_fingerprint: str | None


class Geolocalizer:
    """A model that says where on Earth an image was taken.

    Args:
        name: what predictions and cards call it.
        network: in evaluation mode or not; it is switched to it.
        preprocess: how the network wants its images.
        quadtree: the cells that the network's cell head classifies; None without such a head.
        calibration: fitted on held-out images; without it predictions have no radii.
        card: text of the README.md that the checkpoint carries.
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
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.preprocess = preprocess
        self.quadtree = quadtree
        self.calibration = calibration or Calibration()
        self.card = card
        self._identity: str | None = None

    # --- checkpoints ------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> Geolocalizer:
        """Load a model: a bundled name ("earthview"), a folder, or a Hub id.

        Raises:
            NotFoundError: there is no such model.
            IntegrityError: a file is missing or differs from the manifest.
            ConfigError: config.json or calibration.json has an unknown key or an impossible value.
            CheckpointError: the tensors do not fit the network that config.json describes.
            FingerprintMismatchError: the quadtree is not the one that the cell head was trained on.
        """
        folder = resolve(name, revision)
        manifest = verify_manifest(folder)
        config = _read_config(folder / "config.json")
        quadtree = None
        if config.quadtree_fingerprint is not None:
            quadtree = Quadtree.read(folder / "quadtree.parquet")
            if quadtree.fingerprint != config.quadtree_fingerprint:
                raise FingerprintMismatchError(
                    f"{folder / 'config.json'} was written for the quadtree {config.quadtree_fingerprint[:12]}…, but "
                    f"{folder / 'quadtree.parquet'} is {quadtree.fingerprint[:12]}… ({quadtree.num_cells} cells); "
                    "use the quadtree saved beside the checkpoint, or fetch the checkpoint again"
                )
        network = _build(config, quadtree)
        _load_tensors(network, folder / "model.safetensors")
        fold_batch_norm(network.backbone)
        calibration = from_plain(Calibration, _read_json(folder / "calibration.json"), "calibration.json")
        network.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        card = (folder / "README.md").read_text(encoding="utf-8")
        model = cls(config.name, network, Preprocess.from_dict(config.preprocess), quadtree, calibration, card)
        model._identity = str(manifest["digest"])
        return model

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write the checkpoint; an existing one is replaced in one step, and is whole at every moment.

        Args:
            half: store floating-point tensors as float16 (half the size; loaded as float32).

        Raises:
            OutputMismatchError: the folder holds files that no checkpoint of ours has.
        """
        state = {key: value.cpu().contiguous() for key, value in unfolded_state_dict(self.network).items()}
        if half:
            state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        config = _Config(
            schema_version=SCHEMA_VERSION,
            name=self.name,
            network=replace(self.network.config, backbone=_described(self.network)),
            preprocess=self.preprocess.to_dict(),
            quadtree_fingerprint=None if self.quadtree is None else self.quadtree.fingerprint,
        )
        with replace_folder(folder) as fresh:
            _write_json(fresh / "config.json", to_plain(config))
            _write_json(fresh / "calibration.json", to_plain(self.calibration))
            with atomic_write(fresh / "README.md", "w") as file:
                file.write(self.card)
            safetensors.torch.save_file(state, fresh / "model.safetensors")
            if self.quadtree is not None:
                self.quadtree.write(fresh / "quadtree.parquet")
            manifest = write_manifest(fresh)
        self._identity = str(manifest["digest"])

    @property
    def identity(self) -> str:
        """Digest of the checkpoint's manifest: two models with the same one give the same predictions.

        Raises:
            CheckpointError: the model was neither loaded nor saved, so nothing has identified it yet.
        """
        if self._identity is None:
            raise CheckpointError("a model has an identity once it is saved: call save_pretrained first")
        return self._identity

    # --- localising -------------------------------------------------------------------------------------------

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
    def localize(self, images: Sequence[ImageSource], **options: Any) -> list[Prediction]: ...
    @overload
    def localize(self, images: ImageSource, **options: Any) -> Prediction: ...
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
        """
        if not isinstance(images, list | tuple):
            return self.localize_batch(self.load(images)[None], **options)[0]
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
            utility: what the point should be good at: "geoscore", "median" or "within:25km".
            top_k: number of candidates to report.
            abstain_above_km: set `abstained` where the 90 % radius is larger.
            places: look up the nearest city's name.

        Raises:
            ConfigError: an unknown utility, or abstaining asked of a model without calibration.
        """
        utility = Utility.parse(utility)
        levels = self.calibration.levels(utility.kind)
        if abstain_above_km is not None and 90 not in levels:
            raise ConfigError(
                f"asked to abstain above {abstain_above_km} km, but the model {self.name!r} has no calibrated 90 % "
                "radius; calibrate it, or leave abstain_above_km out"
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
                    cell_path=ranked[0].key if self.quadtree is not None else "",
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
        """The posterior over the Earth of each image, (B, 3, S, S), and its most probable places, best first."""
        with torch.inference_mode():
            channels_last = images.to(self.device).contiguous(memory_format=torch.channels_last)
            output = self.network(channels_last)
            if output.cell_logits is None:
                return self._regression_posteriors(output.latlon_rad)
            return self._cell_posteriors(output.cell_logits.double().cpu().numpy(), output.offsets, top_k)

    def _cell_posteriors(
        self, cell_logits: NDArray[np.float64], offsets: Tensor | None, top_k: int
    ) -> tuple[list[Posterior], list[list[Candidate]]]:
        probs = np.exp(log_softmax(cell_logits / self.calibration.temperature))
        chosen = [choose_cells(row, CELL_MASS, MAX_CELLS) for row in probs]
        points = self.cell_points(offsets, chosen)
        posteriors, candidates = [], []
        for row, cells, latlon in zip(probs, chosen, points, strict=True):
            rest = row.copy()
            rest[cells] = 0.0
            others = np.flatnonzero(rest > NEGLIGIBLE_PROBABILITY)
            scale = self.calibration.cell_kernel * self._cell_radius_km[cells]
            posteriors.append(
                Posterior(latlon_to_unit(latlon), row[cells], scale, self._cell_unit[others], rest[others])
            )
            candidates.append(
                [
                    Candidate(float(lat), float(lon), float(row[cell]), "cell", None, self._paths[cell])
                    for cell, (lat, lon) in zip(cells[:top_k], latlon[:top_k], strict=True)
                ]
            )
        return posteriors, candidates

    def calibrate(self, batches: Iterable[tuple[Tensor, NDArray[np.float64]]], data: str) -> Calibration:
        """Fit temperature, kernel width and conformal levels on held-out images, and use them from now on.

        Two passes over the network's outputs, one over the images: the kernel needs the temperature, the levels need
        both.

        Args:
            batches: preprocessed images (B, 3, S, S) and their coordinates (B, 2); a few thousand images, not trained
                on, like those that the model will meet.
            data: what they are, in words, for the card.
        """
        tree, logits, offsets, truths = _tree(self.quadtree), [], [], []
        with torch.inference_mode():
            for images, latlon_deg in batches:
                output = self.network(images.to(self.device).contiguous(memory_format=torch.channels_last))
                assert output.cell_logits is not None
                logits.append(output.cell_logits.double().cpu().numpy())
                offsets.append(output.offsets)
                truths.append(latlon_deg)
        truth = np.concatenate(truths)
        cell_ids = tree.assign(truth)
        temperature = fit_temperature(np.concatenate(logits), cell_ids)
        bounds = np.cumsum([0, *map(len, truths)])
        in_cell = [
            np.concatenate(self.cell_points(row, [np.array([cell]) for cell in cell_ids[a:b]]))
            for row, a, b in zip(offsets, bounds, bounds[1:], strict=False)
        ]
        kernel = fit_kernel(haversine_km(np.concatenate(in_cell), truth), self._cell_radius_km[cell_ids])
        self.calibration = Calibration(temperature, kernel, num_images=len(truth), data=data)

        scores: dict[str, list[float]] = {"geoscore": [], "median": []}
        truth_unit = latlon_to_unit(truth)
        for row_logits, row_offsets, a in zip(logits, offsets, bounds, strict=False):
            posteriors, _ = self._cell_posteriors(row_logits, row_offsets, top_k=1)
            for posterior, unit in zip(posteriors, truth_unit[a:], strict=False):
                for kind, found in scores.items():
                    point = posterior.point(Utility(kind))
                    found.append(posterior.mass_within(point, float(distance_km(point[None], unit[None])[0, 0])))
        levels = {
            kind: {str(percent): conformal_level(np.array(found), percent) for percent in PERCENTS}
            for kind, found in scores.items()
        }
        self.calibration = replace(self.calibration, mass_levels=levels)
        self._identity = None
        return self.calibration

    def cell_points(self, offsets: Tensor | None, chosen: list[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
        """The point inside each chosen cell: by its offset, or its representative point without an offset head.

        Args:
            offsets: (B, C or 1, 2) or None; chosen: per image (k,) cell ids.

        Returns:
            Per image (k, 2) degrees.
        """
        assert self.quadtree is not None
        if offsets is None or self.network.offsets is None:
            return [self.quadtree.center_latlon_deg[cells] for cells in chosen]
        head, points = self.network.offsets, []
        for row, cells in zip(offsets, chosen, strict=True):
            ids = torch.from_numpy(cells).to(offsets.device)
            points.append(head.to_latlon_deg(head.of_cells(row[None], ids[None])[0], ids).cpu().numpy())
        return points

    def _regression_posteriors(self, latlon_rad: Tensor | None) -> tuple[list[Posterior], list[list[Candidate]]]:
        if latlon_rad is None:
            raise ConfigError(f"the model {self.name!r} has neither a cell head nor a regression head: it only embeds")
        latlon = np.degrees(latlon_rad.double().cpu().numpy())
        scale = np.array([self.calibration.regression_kernel_km])
        posteriors = [Posterior(latlon_to_unit(point)[None], np.ones(1), scale) for point in latlon]
        return posteriors, [[Candidate(float(a), float(b), 1.0, "regression", None, "")] for a, b in latlon]

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
    """Radius of the disc with each cell's area, (C, 4) -> (C,)."""
    south, west, north, east = np.radians(bounds_deg).T
    area = EARTH_MEAN_RADIUS_KM**2 * (east - west) * (np.sin(north) - np.sin(south))
    return np.asarray(np.sqrt(area / np.pi))


def _tree(quadtree: Quadtree | None) -> Quadtree:
    assert quadtree is not None  # a network with a cell head has one, checked when it was built
    return quadtree


def _nearest_places(latlon_deg: list[tuple[float, float]]) -> Sequence[Place]:
    from geoloc.geo.places import load_places

    return load_places().nearest(latlon_deg)


def _described(network: GeoNetwork) -> Any:
    """The backbone's own self-contained config: no pretrained weights, they are in the checkpoint."""
    config = getattr(network.backbone, "config", network.config.backbone)
    return replace(config, pretrained=None)


def _build(config: _Config, quadtree: Quadtree | None) -> GeoNetwork:
    backbone = Backbone(config.network.backbone, load_pretrained=False)
    if quadtree is None:
        return GeoNetwork(config.network, backbone)
    return GeoNetwork(config.network, backbone, quadtree.bounds_deg, quadtree.center_latlon_deg)


def _load_tensors(network: GeoNetwork, path: Path) -> None:
    try:
        state = safetensors.torch.load_file(path)
    except Exception as error:  # safetensors has its own exception type, and OSError
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}; fetch it again") from error
    expected = network.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path} does not fit the network of config.json: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3]) or 'none'}), {len(extra)} are extra ({', '.join(extra[:3]) or 'none'}); "
            "take config.json and model.safetensors from the same checkpoint"
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{path}: the tensor {key!r} has shape {tuple(tensor.shape)}, the network of config.json wants "
                f"{tuple(expected[key].shape)}; take config.json and model.safetensors from the same checkpoint"
            )
    network.load_state_dict(state)


def _read_config(path: Path) -> _Config:
    values = _read_json(path)
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema_version {version!r}; this geoloc reads {SCHEMA_VERSION}. Update geoloc, or save the "
            "model again"
        )
    return from_plain(_Config, values, str(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable JSON file: {error}; fetch the checkpoint again") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} does not hold a JSON object; fetch the checkpoint again")
    return values


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")
