"""PLONK (Dufour et al., CVPR 2025; MIT): locations sampled from a generative model.

A network moves a point of noise in small steps to a location, given the photo's features. Three kinds are published
with the same network and tensor names, so a file does not show its kind:

    sphere     Riemannian flow matching: Euler steps, each projected back to the sphere
    space      flow matching in space around it: Euler steps
    diffusion  denoising: DDIM steps (Song et al., 2021), with the predicted point clamped to [-1, 1]. PLONK computes
               them in half precision on a GPU, and we do not.

Guidance w (Ho & Salimans, 2022): (1 + w) times the output for the photo, minus w times the output for zero features.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.nn import functional

from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError

Kind = Literal["sphere", "space", "diffusion"]

STEPS = 250
_TIME_SCALE = 1000.0
_SCHEDULE = (-7.0, 3.0)  # range of the sigmoid that the schedule uses
_LEAST_SHARE = 1e-9


def is_plonk(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is PLONK's, which contains the network's sizes only."""
    return {"input_dim", "cond_dim", "dim", "depth", "expansion"} <= config.keys()


class PlonkField(nn.Module):
    """Velocity field: direction in which a point of space moves, given a photo's features.

    Args:
        file: tensors of the file.

    Attributes:
        feature_dim: D of the features.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """

    def __init__(self, file: ForeignTensors) -> None:
        super().__init__()
        dim, point_dim = file.shape("initial_mapper.weight")
        self.feature_dim = file.shape("cond_mapper.weight")[1]
        if point_dim != 3:
            raise CheckpointError(
                f"{file.origin} moves points of {point_dim} numbers; PLONK's published models use 3"
            )
        num_blocks = 0
        while file.has(f"blocks.{num_blocks}."):
            num_blocks += 1
        time_dims = file.shape("time_embedder.map_time.0.weight")
        hidden = file.shape("blocks.0.mlp.0.weight")[0]
        self.time_embedder = _TimeEmbedder(*time_dims)
        self.cond_mapper = nn.Linear(self.feature_dim, dim)
        self.initial_mapper = nn.Linear(point_dim, dim)
        self.blocks = nn.ModuleList(_Block(dim, hidden) for _ in range(num_blocks))
        self.final_adaln = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.final_linear = nn.Linear(dim, point_dim)
        try:
            self.load_state_dict(file.take_all(""))
        except RuntimeError as error:
            raise CheckpointError(f"{file.origin} is not PLONK's network: {error}") from error
        self.eval().requires_grad_(False)

    def forward(self, points: Tensor, features: Tensor, share: Tensor) -> Tensor:
        """(…, 3), (…, D), () of the schedule, in [0, 1] -> (…, 3).

        Features broadcast against points: those of a photo, (B, 1, D), go with all its draws, (B, n, 3), and are read
        once.
        """
        given = self.cond_mapper(features) + self.time_embedder(share)
        x = self.initial_mapper(points)
        for block in self.blocks:
            x = block(x, given)
        scale, shift = self.final_adaln(given).chunk(2, -1)
        moved: Tensor = self.final_linear((1 + scale) * functional.layer_norm(x, x.shape[-1:]) + shift)
        return moved

    def guided(self, points: Tensor, features: Tensor, share: Tensor, guidance: float) -> Tensor:
        """`forward` with guidance w >= 0."""
        if guidance == 0:
            return self.forward(points, features, share)
        both = self.forward(
            torch.cat([points, points]),
            torch.cat([features, torch.zeros_like(features)]),
            share,
        )
        given, without = both.chunk(2)
        weighed: Tensor = (1 + guidance) * given - guidance * without
        return weighed


class _TimeEmbedder(nn.Module):
    def __init__(self, hidden: int, dim: int) -> None:
        super().__init__()
        self.encode_time = nn.Module()
        self.encode_time.register_buffer("freqs", torch.zeros(dim // 2))
        self.map_time = nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, share: Tensor) -> Tensor:
        angles = share * _TIME_SCALE * self.encode_time.freqs  # type: ignore[operator]
        time = torch.cat([angles.cos(), angles.sin()])
        time = (time - time.mean(-1, keepdim=True)) / time.std(-1, keepdim=True)
        embedded: Tensor = self.map_time(time)
        return embedded


class _Block(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.ada_map = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        # The unused layers were dropout in training.
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        scale, shift, gate = self.ada_map(given).chunk(3, -1)
        moved: Tensor = self.mlp((1 + scale) * functional.layer_norm(x, x.shape[-1:]) + shift)
        added: Tensor = x + moved * gate
        return added


@torch.inference_mode()
def carried(
    field: PlonkField,
    kind: Kind,
    start: Tensor,
    features: Tensor,
    *,
    guidance: float = 0.0,
    num_steps: int = STEPS,
) -> Tensor:
    """Move noise along the field: (B, …, 3) normal numbers, (B, …, D) -> (B, …, 3), of length 1 for "sphere".

    Args:
        field: velocity field.
        kind: sampler; see the top of this file.
        start: one sample of noise each.
        features: features of the photos; see `PlonkField.forward`.
        guidance: w, 0 for none.
        num_steps: number of steps; PLONK takes 250.

    Raises:
        ConfigError: features of another width, no steps, or a negative guidance.
    """
    if (
        features.shape[-1] != field.feature_dim
        or features.ndim != start.ndim
        or num_steps < 1
        or not guidance >= 0
        or kind not in get_args(Kind)
    ):
        raise ConfigError(
            f"a sampler is one of {', '.join(get_args(Kind))}, and this one takes (…, "
            f"{field.feature_dim}) features, at least one step and a guidance of at least 0; "
            f"found {kind}, {tuple(features.shape)}, {num_steps} and {guidance}"
        )
    # PLONK computes its schedule in single precision, where a sigmoid's last bit differs among processors.
    share = schedule(1 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps)
    moments = torch.stack([share, share.sqrt(), (1 - share).sqrt()], -1)
    lengths = share.diff().to(features)
    x = start.to(features)
    for (now, following), length in zip(pairwise(moments.to(features)), lengths, strict=True):
        velocity = field.guided(x, features, now[0], guidance)
        if kind == "diffusion":
            clean = ((x - now[2] * velocity) / now[1]).clamp(-1, 1)
            noise = (x - now[1] * clean) / now[2]
            x = following[1] * clean + following[2] * noise
        else:
            x = x + length * velocity
            if kind == "sphere":
                x = functional.normalize(x, dim=-1)
    return x


def to_latlon_deg(points: Tensor) -> Tensor:
    """Points as PLONK reads them, (…, 3) -> (…, 2) degrees.

    The latitude is the arcsine of the third number, whatever the point's length. Where that is beyond 1, PLONK has none
    (a NaN), and ours is the pole.
    """
    x, y, z = points.unbind(-1)
    return torch.stack([z.clamp(-1, 1).arcsin(), y.atan2(x)], -1).rad2deg()


def schedule(time: Tensor) -> Tensor:
    """PLONK's schedule at times in [0, 1], 1 at 0 and almost 0 at 1, from a part of the sigmoid; (n,) -> (n,)."""
    bounds = torch.sigmoid(torch.tensor(_SCHEDULE, dtype=torch.float64))
    first, last = bounds[0], bounds[1]
    share: Tensor = (last - torch.sigmoid(_SCHEDULE[0] + time * (_SCHEDULE[1] - _SCHEDULE[0]))) / (
        last - first
    )
    return share.clamp(_LEAST_SHARE, 1.0)


def log_density(
    field: PlonkField, features: Tensor, latlon_deg: Tensor, *, guidance: float = 0.0, tolerance: float = 1e-6
) -> NDArray[np.float64]:
    """PLONK's log-likelihood of locations, per steradian, (D,) or (n, D), (n, 2) degrees -> (n,); "sphere" models.

    The change of variables along the flow from a place back to noise: log(1 / 4π) plus the integral of the field's
    divergence, in space as PLONK takes it (its section 3.4), by Dormand and Prince's
    method of order 5, as there.

    Args:
        field: velocity field of a "sphere" model.
        features: features of one photo, or one row per location.
        latlon_deg: locations.
        guidance: w, 0 for none.
        tolerance: absolute and relative tolerance of the integration.
    """
    latitude, longitude = latlon_deg.to(features).deg2rad().unbind(-1)
    places = torch.stack(
        [latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()], -1
    )
    n, given = len(places), features.expand(len(places), -1)
    first, last = _SCHEDULE
    spread = torch.sigmoid(torch.tensor(_SCHEDULE, dtype=torch.float64)).diff()

    def slope(time: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
        points = torch.from_numpy(state[: 3 * n].reshape(n, 3)).to(given).requires_grad_()
        now = torch.tensor(time, dtype=torch.float64)
        rising = torch.sigmoid(first + now * (last - first))
        pace = float(-(last - first) * rising * (1 - rising) / spread)
        with torch.enable_grad():
            moves = field.guided(points, given, schedule(now).to(given), guidance)
            # Rows are independent, so the gradient of the sum has every row's own gradient.
            parts = [
                torch.autograd.grad(moves[:, axis].sum(), points, retain_graph=True)[0][:, axis]
                for axis in range(3)
            ]
        divergence = torch.stack(parts).sum(0)
        both = torch.cat([moves.detach().reshape(-1), divergence]) * pace
        return np.asarray(both.cpu().double().numpy())

    begin = np.concatenate([places.cpu().double().numpy().reshape(-1), np.zeros(n)])
    end = solve_ivp(slope, (0.0, 1.0), begin, method="RK45", rtol=tolerance, atol=tolerance).y[:, -1]
    return np.asarray(end[3 * n :] - np.log(4 * np.pi))
