"""PLONK's sampler (Dufour et al., CVPR 2025; MIT): places drawn by a flow on the sphere from a photo's features.

Only the models that flow on the sphere (`PLONK_YFCC`, `PLONK_OSV_5M`, `PLONK_iNaturalist`). Their image towers are not
part of their files: StreetCLIP's class token before the last norm, or DINOv2's. A `Geolocalizer` has no head that
draws, so this stands by itself:

    sampler = PlonkSampler(ForeignTensors.read(folder / "model.safetensors"))
    latlon_deg = sampler.sample(features, seed=0)       # (B, D) -> (B, 2), one draw each
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError

STEPS = 250
_TIME_SCALE = 1000.0
_SCHEDULE = (-7.0, 3.0)  # the piece of the sigmoid that the schedule follows


class PlonkSampler:
    """A vector field on the sphere, given a photo's features.

    Args:
        file: its tensors.

    Raises:
        CheckpointError: a tensor is missing or left over, or it is no flow on the sphere.
    """

    def __init__(self, file: ForeignTensors) -> None:
        self._frequencies = file.take("time_embedder.encode_time.freqs")
        names = ["time_embedder.map_time.0", "time_embedder.map_time.2", "cond_mapper", "initial_mapper"]
        self.num_blocks = 0
        while file.has(f"blocks.{self.num_blocks}."):
            block = f"blocks.{self.num_blocks}."
            names += [f"{block}{layer}" for layer in ("ada_map.1", "mlp.0", "mlp.3")]
            self.num_blocks += 1
        names += ["final_adaln.1", "final_linear"]
        self._layers = {name: (file.take(f"{name}.weight"), file.take(f"{name}.bias")) for name in names}
        file.finish()
        if len(self._layers["final_linear"][1]) != 3:
            raise CheckpointError(f"{file.origin} moves in the plane, and only flows on the sphere are read")
        self.feature_dim = self._layers["cond_mapper"][0].shape[1]

    @torch.inference_mode()
    def velocity(self, points: Tensor, features: Tensor, share: Tensor) -> Tensor:
        """The field at points, (B, 3), (B, D), (B,) of the schedule, in [0, 1] -> (B, 3)."""
        angles = torch.outer(share * _TIME_SCALE, self._frequencies)
        time = torch.cat([angles.cos(), angles.sin()], 1)
        time = (time - time.mean(-1, keepdim=True)) / time.std(-1, keepdim=True)
        time = self._linear(
            "time_embedder.map_time.2", functional.silu(self._linear("time_embedder.map_time.0", time))
        )
        given = functional.silu(self._linear("cond_mapper", features) + time)
        x = self._linear("initial_mapper", points)
        for number in range(self.num_blocks):
            block = f"blocks.{number}."
            scale, shift, gate = self._linear(f"{block}ada_map.1", given).chunk(3, -1)
            inner = (1 + scale) * functional.layer_norm(x, x.shape[-1:]) + shift
            inner = self._linear(f"{block}mlp.3", functional.gelu(self._linear(f"{block}mlp.0", inner)))
            x = x + inner * gate
        scale, shift = self._linear("final_adaln.1", given).chunk(2, -1)
        return self._linear("final_linear", (1 + scale) * functional.layer_norm(x, x.shape[-1:]) + shift)

    @torch.inference_mode()
    def flow(self, start: Tensor, features: Tensor, num_steps: int = STEPS) -> Tensor:
        """Where noise is carried to: (B, 3) normal numbers, (B, D) -> (B, 3) unit vectors.

        Euler's steps along PLONK's schedule, each brought back to the sphere.
        """
        x = start
        shares = schedule(1 - torch.arange(num_steps + 1) / num_steps)
        for now, following in pairwise(shares):
            velocity = self.velocity(x, features, now.expand(len(x)))
            x = functional.normalize(x + (following - now) * velocity, dim=-1)
        return x

    def sample(self, features: Tensor, *, seed: int, num_steps: int = STEPS) -> Tensor:
        """One place drawn for each photo, (B, D) -> (B, 2) degrees.

        Raises:
            ConfigError: features of another width, or no steps.
        """
        if features.ndim != 2 or features.shape[1] != self.feature_dim or num_steps < 1:
            raise ConfigError(
                f"this sampler takes (B, {self.feature_dim}) features and at least one step; found "
                f"{tuple(features.shape)} and {num_steps}"
            )
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(len(features), 3, generator=generator)
        x, y, z = self.flow(start, features, num_steps).unbind(-1)
        return torch.stack([z.arcsin(), y.atan2(x)], -1).rad2deg()

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, *self._layers[name])


def schedule(time: Tensor) -> Tensor:
    """PLONK's share at times in [0, 1], 1 at 0 and almost nothing at 1, by a piece of the sigmoid; (n,) -> (n,)."""
    first, last = (torch.sigmoid(torch.tensor(bound)) for bound in _SCHEDULE)
    share = (last - torch.sigmoid(_SCHEDULE[0] + time * (_SCHEDULE[1] - _SCHEDULE[0]))) / (last - first)
    return share.clamp(1e-9, 1.0)
