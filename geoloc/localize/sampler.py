"""Places drawn at random from where a photo may have been taken: PLONK (Dufour et al., CVPR 2025).

    model = LocationSampler.from_pretrained("nicolas-dufour/PLONK_YFCC")
    latlon_deg = model.sample("photo.jpg", num_samples=64)              # (1, 64, 2)
    prediction = model.predict("photo.jpg")[0]                          # as of any other model of geoloc

A prediction is read off a mixture of bells, one at each draw, as wide as its neighbours are far: many draws close by
make a narrow answer, few and scattered ones a wide one. How often the truth lies in its circles nobody has promised:
`calibrate` fits that on photos of known place, and without it predictions have no radii.
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
from geoloc.reference.database import ReferenceDatabase
from quadtree.sphere import latlon_to_unit, unit_to_latlon, validate_latlon_deg

FloatArray = NDArray[np.float64]

SAME_PLACE_KM = CITY_RADIUS_KM  # draws that near are one candidate
ALONE_KM = 500.0  # the width of a single draw, which tells nothing of how far others would lie
LEAST_KM = 1.0
_ROWS = 4096  # draws that go through the network together
_IMAGES = 16  # photos that do


@dataclass(frozen=True)
class SamplingOptions:
    """How places are drawn.

    Attributes:
        num_samples: of each photo.
        guidance: w of classifier-free guidance; 0 draws from what the model has learnt, more makes draws agree with the
            photo, and each other, more than that.
        seed: of the noise, which is the same for every photo: its draws do not depend on what is drawn beside it.
        num_steps: from noise to place; PLONK takes 250.

    Raises:
        ConfigError: a value that is impossible.
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
    """A model that draws places.

    Args:
        name: what predictions and errors call it.
        model: network, sampler and image tower.
        sampling: how `localize_batch` and `predict` draw, and `sample` unless it is asked otherwise.
        calibration: its levels were fitted with that drawing; see `calibrate`.
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
            sampling: how places are drawn, if not told otherwise.
            calibration: that `calibrate` returned for such a sampling.
            device: where its tensors go, as torch names it.
            num_threads: CPU threads of all of torch; None leaves it to the library.

        Raises:
            NotFoundError: there is no such model, or the Hub cannot be reached.
            CheckpointError: a tensor is missing or left over.
            ConfigError: it is none of PLONK's models, or the tower is another one.
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
        """Digest of the weights and of how they are asked: the same one gives the same predictions."""
        parts = [self._weights_digest, self.kind, self.preprocess.to_dict(), self.sampling, self.calibration]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def load_query(self, source: ImageSource, query: QueryMode = "central_crop") -> Tensor:
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
            BadImageError: it is no usable image.
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
        """Places drawn for B images, (B, n, 2) degrees.

        Args:
            images: one or several.
            num_samples: n.
            guidance: see `SamplingOptions`, as the others; None is as the model's own `drawing` has it.
            seed: of the noise.
            num_steps: from noise to place.

        Raises:
            BadImageError: an image is unusable.
            ConfigError: a value that is impossible.
        """
        asked = {"num_samples": num_samples, "guidance": guidance, "seed": seed, "num_steps": num_steps}
        sampling = replace(self.sampling, **{k: v for k, v in asked.items() if v is not None})  # type: ignore[arg-type]
        pictures = _as_list(images)
        parts = [
            self._draw([self.load(image) for image in pictures[start : start + _IMAGES]], sampling)
            for start in range(0, len(pictures), _IMAGES)
        ]
        return np.concatenate([np.zeros((0, sampling.num_samples, 2)), *parts])

    def predict(self, images: ImageSource | Sequence[ImageSource], **options: Any) -> list[Prediction]:
        """A prediction for each image, from places drawn as `drawing` says.

        Args:
            images: one or several.
            options: as `localize_batch` takes them.

        Raises:
            BadImageError: an image is unusable.
            ConfigError: an option that is impossible.
        """
        pictures = _as_list(images)
        found: list[Prediction] = []
        for start in range(0, len(pictures), _IMAGES):
            batch = [self.load(image) for image in pictures[start : start + _IMAGES]]
            found += self.localize_batch(batch, **options)
        return found

    def localize_batch(
        self,
        images: Sequence[Tensor],
        *,
        reference: ReferenceDatabase | None = None,
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
            ConfigError: an option that is impossible, or abstaining asked of a model without calibration.
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
        units = [latlon_to_unit(latlon) for latlon in self._draw(single, self.sampling)]
        posteriors = [posterior_of_samples(unit) for unit in units]
        candidates = [candidates_of_samples(unit, top_k) for unit in units]
        return asked.predictions(posteriors, candidates, [("", None)] * len(units))

    def check_answers(self, reference: ReferenceDatabase | None) -> None:
        """Refuse a database: there is nothing to search it with.

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
        """PLONK's log-likelihood of places given a photo, natural and per steradian, (n, 2) degrees -> (n,).

        Raises:
            BadImageError: the image is unusable.
            ConfigError: the model does not flow on the sphere: PLONK's formula is of no other.
            InvalidCoordinateError: a coordinate is no place on Earth.
        """
        if self.kind != "sphere":
            raise ConfigError(
                f"{self.name!r} draws by {self.kind!r}, and PLONK's likelihood is that of a flow on the sphere: take "
                "one of the models without _flow and _diffusion"
            )
        places = torch.from_numpy(validate_latlon_deg(latlon_deg))
        w = self.sampling.guidance if guidance is None else replace(self.sampling, guidance=guidance).guidance
        return log_density(self._field, self._features([self.load(image)])[0], places, guidance=w)

    def calibrate(self, images: Sequence[ImageSource], latlon_deg: ArrayLike, data: str) -> Calibration:
        """Fit conformal levels on photos of known place, and use them from now on, with this `drawing`.

        Args:
            images: a few thousand, not trained on, like those that the model will meet.
            latlon_deg: (n, 2) where they were taken.
            data: what they are, in words.

        Raises:
            ConfigError: there are no images, or not as many as places.
            InvalidCoordinateError: a coordinate is no place on Earth.
        """
        truth = validate_latlon_deg(latlon_deg)
        if not len(images) or len(images) != len(truth):
            raise ConfigError(
                f"there are {len(images)} images and {len(truth)} places to calibrate with; give a few thousand of both"
            )
        posteriors = [posterior_of_samples(latlon_to_unit(latlon)) for latlon in self.sample(images)]
        self.calibration = Calibration(
            mass_levels=mass_levels(posteriors, truth), num_images=len(truth), data=data
        )
        return self.calibration

    @torch.inference_mode()
    def _features(self, images: Sequence[Tensor]) -> Tensor:
        return cast(Tensor, self._backbone(torch.stack(list(images)).to(self.device)))

    def _draw(self, images: Sequence[Tensor], sampling: SamplingOptions) -> FloatArray:
        """(B) pictures (3, S, S) -> (B, n, 2) degrees, longitudes in [-180, 180)."""
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
                f"the model {self.name!r} draws places that are not finite: its weights are damaged; fetch it again"
            )
        return validate_latlon_deg(to_latlon_deg(points.cpu().double()).numpy())


def posterior_of_samples(unit: FloatArray) -> Posterior:
    """A bell at each draw, (n, 3) unit vectors, as wide as its ⌈√n⌉-th nearest neighbour is far, at least 1 km.

    The variable kernel estimate of Breiman, Meisel and Purcell (1977), with all draws weighing the same.
    """
    n = len(unit)
    widths = np.full(n, ALONE_KM)
    if n > 1:
        rank = min(math.ceil(math.sqrt(n)), n - 1)
        nearest = np.partition(distance_km(unit, unit), rank, axis=1)  # the first is the draw itself
        widths = nearest[:, rank]
    return Posterior(unit, np.full(n, 1 / n), np.maximum(widths, LEAST_KM))


def candidates_of_samples(unit: FloatArray, top_k: int) -> list[Candidate]:
    """The draw that has most others within 25 km, with the share of all draws there; then of the rest, and so on.

    Args:
        unit: (n, 3) unit vectors.
        top_k: at most so many.
    """
    is_near = distance_km(unit, unit) <= SAME_PLACE_KM
    left = np.ones(len(unit), bool)
    found: list[Candidate] = []
    while left.any() and len(found) < top_k:
        best = int(np.where(left, (is_near & left).sum(1), -1).argmax())
        here = is_near[best] & left
        lat, lon = unit_to_latlon(unit[best]).tolist()
        found.append(Candidate(lat, lon, float(here.sum() / len(unit)), "drawn", None, ""))
        left &= ~here
        left[best] = False
    return found


def _as_list(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    # A str and bytes are Sequences, too.
    if isinstance(images, str | bytes) or not isinstance(images, Sequence):
        return [images]
    return list(cast("Sequence[ImageSource]", images))
