"""Location sampling (PLONK, Dufour et al., CVPR 2025): coordinates sampled from a generative model.

    model = LocationSampler.from_pretrained("nicolas-dufour/PLONK_YFCC")
    latlon_deg = model.sample("photo.jpg", num_samples=64)              # (1, 64, 2)
    prediction = model.predict("photo.jpg")[0]                          # like that of a Geolocalizer

The posterior is a mixture of kernels, one at each sample, as wide as the distance to its neighbours. Radii are empty
until `calibrate` has fitted them on photos of known location.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from geoloc.adapters.adapted import digest_of
from geoloc.adapters.plonk import STEPS, carried, log_density, to_latlon_deg
from geoloc.adapters.plonk_models import SamplingModel, adapt_plonk, variant_of
from geoloc.checkpoint.resolve import ModelSource, resolve_model
from geoloc.errors import CheckpointError, ConfigError
from geoloc.images.decode import ImageSource
from geoloc.images.preprocess import load_and_preprocess
from geoloc.images.query import Merge, QueryMode
from geoloc.posterior.calibration import Calibration
from geoloc.posterior.distribution import Posterior, distance_km
from geoloc.posterior.fit import mass_levels
from geoloc.posterior.pipeline import CITY_RADIUS_KM
from geoloc.posterior.point import PointOptions
from geoloc.posterior.prediction import Candidate, Prediction
from geoloc.posterior.utility import Utility
from quadtree.sphere import latlon_to_unit, unit_to_latlon, validate_latlon_deg

FloatArray = NDArray[np.float64]

CANDIDATE_RADIUS_KM = CITY_RADIUS_KM  # samples within this distance are one candidate
SINGLE_SAMPLE_KM = 500.0  # kernel width of a single sample, which has no neighbours
LEAST_KM = 1.0
_ROWS = 4096  # samples that go through the network together
_IMAGES = 16  # photos that go through the network together


@dataclass(frozen=True)
class SamplingOptions:
    """Options of the sampling.

    Attributes:
        num_samples: for each photo.
        guidance: weight w of classifier-free guidance; 0 samples the learnt distribution, larger values concentrate it.
        seed: of the noise, which is the same for every photo: samples do not depend on the other photos.
        num_steps: of the sampler; PLONK takes 250.

    Raises:
        ConfigError: an impossible value.
    """

    num_samples: int = 64
    guidance: float = 0.0
    seed: int = 0
    num_steps: int = STEPS

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.num_steps < 1 or not 0 <= self.guidance < math.inf:
            raise ConfigError(
                f"num_samples is {self.num_samples}, num_steps {self.num_steps} and guidance {self.guidance}; expected "
                "at least one sample, one step, and a guidance of 0 or more"
            )


class LocationSampler:
    """A model that samples locations.

    Args:
        name: of the model, in predictions and errors.
        model: network, sampler and image tower.
        sampling: options of `localize_batch` and `predict`, and defaults of `sample`.
        calibration: fitted with these options; see `calibrate`.
        device: where the tensors go, as torch names it.
    """

    def __init__(
        self,
        name: str,
        model: SamplingModel,
        sampling: SamplingOptions | None = None,
        calibration: Calibration | None = None,
        device: Any = "cpu",
    ) -> None:
        self.name, self.preprocess, self.kind = name, model.preprocess, model.kind
        self.sampling, self.calibration = sampling or SamplingOptions(), calibration or Calibration()
        self.device = torch.device(device)
        self._field, self._backbone = model.field.to(self.device), model.backbone.to(self.device)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        tower: str | Path | None = None,
        published_as: str | None = None,
        revision: str | None = None,
        sampling: SamplingOptions | None = None,
        calibration: Calibration | None = None,
        device: Any = "cpu",
        num_threads: int | None = None,
    ) -> LocationSampler:
        """Load one of PLONK's models, from the Hub or a folder.

        Args:
            name: "nicolas-dufour/PLONK_YFCC", "…_OSV_5M" or "…_iNaturalist", each also with "_flow" or "_diffusion"; or
                a folder with its config.json and model.safetensors.
            tower: files of the image tower; None fetches it, too. DINOv2 ViT-L/14 with registers as its authors or timm
                publish it; of an OSV-5M model, StreetCLIP's folder.
            published_as: of a folder, which of these models it holds; None is the folder's own name.
            revision: of the Hub's repository.
            sampling: options of the sampling.
            calibration: that `calibrate` returned for these options.
            device: where its tensors go, as torch names it.
            num_threads: CPU threads of all of torch; None leaves it to the library.

        Raises:
            NotFoundError: there is no such model, or the Hub cannot be reached.
            CheckpointError: a tensor is missing or left over.
            ConfigError: it is not one of PLONK's models, or the tower does not fit.
        """
        options = {} if tower is None else {"tower": tower}
        source = resolve_model(name, revision, options=options)
        sampler = cls.of(source, published_as=published_as, device=device, num_threads=num_threads)
        sampler.sampling = sampling or sampler.sampling
        sampler.calibration = calibration or sampler.calibration
        return sampler

    @classmethod
    def of(
        cls,
        source: ModelSource,
        *,
        published_as: str | None = None,
        device: Any = "cpu",
        num_threads: int | None = None,
    ) -> LocationSampler:
        """Load a resolved model; arguments and errors as for `from_pretrained`."""
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        folder = Path(source.name).expanduser()
        variant = variant_of(published_as or (folder.resolve().name if folder.is_dir() else source.name))
        return cls(source.name, adapt_plonk(source.path, variant, source.options.tower), device=device)

    @cached_property
    def _weights_digest(self) -> str:
        return digest_of(self._field.state_dict() | self._backbone.state_dict())

    @property
    def identity(self) -> str:
        """Digest of weights, options and calibration: models with the same one give the same predictions."""
        parts = [self._weights_digest, self.kind, self.preprocess.to_dict(), self.sampling, self.calibration]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def load_query(
        self, source: ImageSource, query: QueryMode = "central_crop", reference: object = None
    ) -> Tensor:
        """The input of one image as a single view, (1, 3, S, S); there is no other query mode.

        Raises:
            BadImageError: the image is unusable.
            ConfigError: another query mode.
        """
        if query != "central_crop":
            raise ConfigError(
                f"{self.name!r} samples locations from one image: the only query mode is central_crop, not {query!r}"
            )
        return self.load(source)[None]

    def load(self, source: ImageSource) -> Tensor:
        """Decode and preprocess one image: path, bytes, PIL image or array -> (3, S, S).

        Raises:
            BadImageError: the image is unusable.
        """
        return load_and_preprocess(source, self.preprocess)

    def sample(
        self,
        images: ImageSource | Sequence[ImageSource],
        num_samples: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        num_steps: int | None = None,
    ) -> FloatArray:
        """Sample locations for B images, (B, n, 2) degrees.

        Args:
            images: one or several.
            num_samples: n.
            guidance: see `SamplingOptions`; None takes the model's own options, also of the others.
            seed: of the noise.
            num_steps: of the sampler.

        Raises:
            BadImageError: an image is unusable.
            ConfigError: an impossible value.
        """
        asked = {"num_samples": num_samples, "guidance": guidance, "seed": seed, "num_steps": num_steps}
        sampling = replace(self.sampling, **{k: v for k, v in asked.items() if v is not None})  # type: ignore[arg-type]
        sources = _as_list(images)
        parts = [
            self._sample([self.load(image) for image in sources[start : start + _IMAGES]], sampling)
            for start in range(0, len(sources), _IMAGES)
        ]
        return np.concatenate([np.zeros((0, sampling.num_samples, 2)), *parts])

    def predict(self, images: ImageSource | Sequence[ImageSource], **options: Any) -> list[Prediction]:
        """One prediction for each image, from samples with the model's own options.

        Args:
            images: one or several.
            options: those of `localize_batch`.

        Raises:
            BadImageError: an image is unusable.
            ConfigError: an impossible option.
        """
        sources = _as_list(images)
        found: list[Prediction] = []
        for start in range(0, len(sources), _IMAGES):
            batch = [self.load(image) for image in sources[start : start + _IMAGES]]
            found += self.localize_batch(batch, **options)
        return found

    def localize_batch(
        self,
        images: Sequence[Tensor],
        *,
        reference: object = None,
        merge: Merge = "mean",
        utility: str | Utility | None = None,
        top_k: int = 5,
        abstain_above_km: float | None = None,
        max_precision_km: float | None = None,
        places: bool = True,
    ) -> list[Prediction]:
        """Predictions of preprocessed images, each (3, S, S) or (1, 3, S, S); options as of `Geolocalizer`.

        There are no references to search and no views to merge. Without another `utility`, points maximise the expected
        GeoScore.

        Raises:
            ConfigError: an impossible option, or abstaining without calibration.
        """
        if reference is not None:
            raise ConfigError(
                f"{self.name!r} samples locations and searches no references: leave the database out"
            )
        utility = Utility.parse(utility or "geoscore")
        levels = self.calibration.levels(utility.name)
        asked = PointOptions(
            utility, levels, top_k, abstain_above_km, max_precision_km, places, repr(self.name)
        )
        single = [image[0] if image.ndim == 4 else image for image in images]
        units = [latlon_to_unit(latlon) for latlon in self._sample(single, self.sampling)]
        posteriors = [posterior_of_samples(unit) for unit in units]
        candidates = [candidates_of_samples(unit, top_k) for unit in units]
        return asked.predictions(posteriors, candidates, [("", None)] * len(units))

    def reference_identity(self, reference: object) -> str:
        """Always "none"."""
        return "none"

    def check_answers(self, reference: object) -> None:
        """Refuse a database: the model has no embedding to search it with.

        Raises:
            ConfigError: there is one.
        """
        if reference is not None:
            raise ConfigError(
                f"{self.name!r} samples locations and searches no references: leave the database out"
            )

    def log_density(
        self, image: ImageSource, latlon_deg: ArrayLike, guidance: float | None = None
    ) -> FloatArray:
        """PLONK's log-likelihood of locations given a photo, natural logarithm per steradian, (n, 2) degrees -> (n,).

        Raises:
            BadImageError: the image is unusable.
            ConfigError: the model is not a flow on the sphere, for which alone PLONK's formula holds.
            InvalidCoordinateError: a coordinate is not on Earth.
        """
        if self.kind != "sphere":
            raise ConfigError(
                f"{self.name!r} samples by {self.kind!r}, and PLONK's likelihood is that of a flow on the sphere: take "
                "one of the models without _flow and _diffusion"
            )
        places = torch.from_numpy(validate_latlon_deg(latlon_deg))
        w = self.sampling.guidance if guidance is None else replace(self.sampling, guidance=guidance).guidance
        return log_density(self._field, self._features([self.load(image)])[0], places, guidance=w)

    def calibrate(self, images: Sequence[ImageSource], latlon_deg: ArrayLike, data: str) -> Calibration:
        """Fit conformal levels on photos of known location, and use them with the present sampling options.

        Args:
            images: a few thousand, not trained on, like those that the model will meet.
            latlon_deg: (n, 2) true locations.
            data: description of them.

        Raises:
            ConfigError: there are no images, or another number of locations.
            InvalidCoordinateError: a coordinate is not on Earth.
        """
        truth = validate_latlon_deg(latlon_deg)
        if not len(images) or len(images) != len(truth):
            raise ConfigError(
                f"there are {len(images)} images and {len(truth)} locations; calibrate with a few thousand of both"
            )
        posteriors = [posterior_of_samples(latlon_to_unit(latlon)) for latlon in self.sample(images)]
        self.calibration = Calibration(
            mass_levels=mass_levels(posteriors, truth), num_images=len(truth), data=data
        )
        return self.calibration

    @torch.inference_mode()
    def _features(self, images: Sequence[Tensor]) -> Tensor:
        return cast(Tensor, self._backbone(torch.stack(list(images)).to(self.device)))

    def _sample(self, images: Sequence[Tensor], sampling: SamplingOptions) -> FloatArray:
        """Sample for B images (3, S, S) -> (B, n, 2) degrees, longitudes in [-180, 180)."""
        n = sampling.num_samples
        features = self._features(images)[:, None]
        noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(sampling.seed)).to(self.device)
        points = torch.cat(
            [
                carried(
                    self._field,
                    self.kind,
                    some.expand(len(images), -1, -1),
                    features,
                    guidance=sampling.guidance,
                    num_steps=sampling.num_steps,
                )
                for some in noise.split(max(1, _ROWS // len(images)))
            ],
            dim=1,
        )
        if not bool(points.isfinite().all()):
            raise CheckpointError(
                f"the model {self.name!r} gives locations that are not finite: its weights are damaged; fetch it again"
            )
        return validate_latlon_deg(to_latlon_deg(points.cpu().double()).numpy())


def posterior_of_samples(unit: FloatArray) -> Posterior:
    """Kernel density of samples, (n, 3) unit vectors: widths are distances to the ⌈√n⌉-th neighbour, at least 1 km.

    The variable kernel estimate of Breiman, Meisel and Purcell (1977), with equal weights.
    """
    n = len(unit)
    widths = np.full(n, SINGLE_SAMPLE_KM)
    if n > 1:
        rank = min(math.ceil(math.sqrt(n)), n - 1)
        nearest = np.partition(distance_km(unit, unit), rank, axis=1)  # the first is the sample itself
        widths = nearest[:, rank]
    return Posterior(unit, np.full(n, 1 / n), np.maximum(widths, LEAST_KM))


def candidates_of_samples(unit: FloatArray, top_k: int) -> list[Candidate]:
    """Candidates: the sample with most others within 25 km, with their share of all; then that of the rest, and so on.

    Args:
        unit: (n, 3) unit vectors.
        top_k: largest number of candidates.
    """
    is_near = distance_km(unit, unit) <= CANDIDATE_RADIUS_KM
    left = np.ones(len(unit), bool)
    found: list[Candidate] = []
    while left.any() and len(found) < top_k:
        best = int(np.where(left, (is_near & left).sum(1), -1).argmax())
        here = is_near[best] & left
        lat, lon = unit_to_latlon(unit[best]).tolist()
        found.append(Candidate(lat, lon, float(here.sum() / len(unit)), "sample", None, ""))
        left &= ~here
        left[best] = False
    return found


def _as_list(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    # A str and bytes are Sequences, too.
    if isinstance(images, str | bytes) or not isinstance(images, Sequence):
        return [images]
    return list(cast("Sequence[ImageSource]", images))
