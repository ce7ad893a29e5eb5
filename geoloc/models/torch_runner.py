"""PyTorch backend of `geoloc.models.runner`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.models.network import GeoNetwork, NetworkOutput
from geoloc.models.runner import ALONE_PX, HeadOutput, Queries, wrong_shape


class TorchRunner:
    """`Runner` of a torch network, which is set to evaluation mode.

    Args:
        network: network on its device.
        size_hw: height and width of its training images.
    """

    def __init__(self, network: GeoNetwork, size_hw: tuple[int, int]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = network.config
        self.num_cells = 0 if network.cells is None else int(network.cells[-1].out_features)  # type: ignore[arg-type]
        self._size_hw = size_hw

    @property
    def device(self) -> torch.device:
        """Device of the network's tensors."""
        return next(self.network.parameters()).device

    def as_input(self, pictures: NDArray[np.float32], /) -> Tensor:
        """See `Runner`; makes no copy."""
        return torch.from_numpy(pictures)

    def read(self, views: Sequence[Tensor], queries: Queries) -> tuple[HeadOutput, list[NDArray[np.float32]]]:
        """See `Runner`."""
        with torch.inference_mode():
            counts = [len(part) for part in views]
            aggregated = queries != "none" and self.network.aggregates("query")
            shapes = {part.shape[1:] for part in views}
            if len(shapes) == 1 and max(height * width for _, height, width in shapes) <= ALONE_PX:
                read = [part.split(counts) for part in self._of_pictures(torch.cat(list(views)), aggregated)]
            else:  # images of different shapes, or large ones
                by_image = [self._of_pictures(part, aggregated) for part in views]
                read = list(zip(*by_image, strict=True))
            features = read[0]
            mean = torch.stack([part.mean(0) for part in features])
            found: list[Tensor] = []
            if aggregated and queries == "merged":  # vectors of views are averaged instead of features
                vectors = torch.stack([part.mean(0) for part in read[1]])
                found = [nn.functional.normalize(vectors, dim=-1)]
            elif aggregated:
                found = list(torch.stack(read[1], 1))
            elif queries == "merged":
                found = [self.network.embed(mean, "query")]
            elif queries == "each":  # (V, B, D)
                found = [self.network.embed(part, "query") for part in torch.stack(features, 1)]
            return _in_numpy(self.network.read(mean)), [_numbers(vectors) for vectors in found]

    def embed_images(self, images: Tensor, role: str) -> NDArray[np.float32]:
        """See `Runner`."""
        with torch.inference_mode():
            on_device = images.to(self.device)
            if images.ndim == 4:
                on_device = on_device.contiguous(memory_format=torch.channels_last)
            return _numbers(self.network.embed_images(on_device, role))

    def aggregates(self, role: str) -> bool:
        """See `Runner`."""
        return self.network.aggregates(role)

    def _of_pictures(self, images: Tensor, aggregated: bool) -> tuple[Tensor, ...]:
        """Features of images, and their vectors if those are computed from feature maps in the same pass."""
        on_device = images.to(self.device).contiguous(memory_format=torch.channels_last)
        try:
            if aggregated:
                return self.network.with_embeddings(on_device, "query")
            return (self.network.backbone(on_device),)
        except (RuntimeError, AssertionError) as error:
            height, width = images.shape[-2:]
            if (height, width) == self._size_hw:
                raise
            raise ConfigError(wrong_shape(self._size_hw, height, width, error)) from error


def _in_numpy(output: NetworkOutput) -> HeadOutput:
    return HeadOutput(
        *(
            None if values is None else _numbers(values)
            for values in (output.cell_logits, output.offsets, output.latlon_rad)
        )
    )


def _numbers(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()
