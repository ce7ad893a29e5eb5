"""Zero-shot classification of photos by names: StreetCLIP and other CLIPs.

    model = ZeroShot.from_pretrained("geolocal/StreetCLIP")
    model.choose("photo.jpg", ["Japan", "France", "Brazil"])           # [("Japan", 0.93), …]
    model.country_and_city("photo.jpg", {"Japan": ["Kyoto", "Nagasaki"], "France": ["Paris", "Lyon"]})

As in StreetCLIP's model card: the names are the sentences; first the country, then a city in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geoloc.adapters.options import Options
from geoloc.adapters.streetclip import adapt_both
from geoloc.checkpoint.resolve import resolve_model
from geoloc.errors import ConfigError
from geoloc.images.decode import ImageSource
from geoloc.images.preprocess import load_and_preprocess

Choices = list[tuple[str, float]]


class ZeroShot:
    """A CLIP with image and text tower.

    Args:
        folder: with transformers' config.json and model.safetensors of a CLIP.
        device: where its tensors go.

    Raises:
        CheckpointError: a tensor is missing or left over.
        ConfigError: config.json does not describe a CLIP.
    """

    def __init__(self, folder: Path, device: Any = "cpu") -> None:
        adapted, texts = adapt_both(folder, Options())
        self.preprocess = adapted.preprocess
        self._network, self._texts = adapted.network.to(device), texts.tower.to(device)
        self._logit_scale, self._device = texts.logit_scale, device
        self._known: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, device: Any = "cpu"
    ) -> ZeroShot:
        """Load "geolocal/StreetCLIP" or another CLIP, from the Hub or a folder.

        Raises:
            NotFoundError: there is no such model, or the Hub cannot be reached.
        """
        return cls(resolve_model(name, revision).path, device)

    def choose(self, image: ImageSource, names: Sequence[str], template: str = "{}") -> Choices:
        """Probability of each name, best first; they sum to 1.

        Args:
            image: path, bytes, PIL image or array.
            names: at least one, all different.
            template: a sentence with {} in place of the name.

        Raises:
            BadImageError: the image is unusable.
            ConfigError: no names, or one twice, or a template without {}.
        """
        return self._choose(self._vector(image), names, template)

    def country_and_city(
        self, image: ImageSource, cities: Mapping[str, Sequence[str]], template: str = "{}"
    ) -> tuple[Choices, Choices]:
        """The countries, and the cities of the most probable one, as by `choose`.

        Args:
            cities: by country.
        """
        vector = self._vector(image)
        countries = self._choose(vector, list(cities), template)
        return countries, self._choose(vector, cities[countries[0][0]], template)

    @torch.inference_mode()
    def _vector(self, image: ImageSource) -> Tensor:
        pictures = load_and_preprocess(image, self.preprocess)[None]
        return self._network.embed_images(torch.as_tensor(pictures).to(self._device), "query")[0]

    @torch.inference_mode()
    def _choose(self, vector: Tensor, names: Sequence[str], template: str) -> Choices:
        if not names or len(set(names)) != len(names) or "{}" not in template:
            raise ConfigError(
                "choose from at least one name, none of them twice, in a template with {}; "
                f"found {len(names)} names and {template!r}"
            )
        sentences = [template.replace("{}", name) for name in names]
        if new := [sentence for sentence in sentences if sentence not in self._known]:
            vectors = torch.nn.functional.normalize(self._texts(new), dim=-1)
            self._known |= dict(zip(new, vectors, strict=True))
        logits = self._logit_scale * torch.stack([self._known[s] for s in sentences]) @ vector
        found = list(zip(names, logits.softmax(-1).tolist(), strict=True))
        return sorted(found, key=lambda pair: -pair[1])
