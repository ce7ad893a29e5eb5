"""The optimiser, its parameter groups and its learning rate over time. Knows nothing about data or losses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from geoloc.errors import ConfigError

Role = Literal["heads", "backbone", "last_blocks", "lora", "classifiers"]


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rate of each part of a network; defaults are OSV-5M's.

    Attributes:
        heads: everything that is new: heads, aggregations, scales.
        backbone: a pretrained tower that trains as a whole.
        last_blocks: a tower of which only the last blocks train.
        lora: low-rank updates of a tower.
        classifiers: of classes that only training knows; the default is CosPlace's.
    """

    heads: float = 2e-4
    backbone: float = 2e-5
    last_blocks: float = 5e-5
    lora: float = 1e-4
    classifiers: float = 1e-2

    def __post_init__(self) -> None:
        for role in get_args(Role):
            if not getattr(self, role) > 0:
                raise ConfigError(f"lr.{role} is {getattr(self, role)}; it must be positive")


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimiser.

    Attributes:
        kind: "adam" adds the decay to the gradient (what OSV-5M and Statewide call weight decay), "adamw" to the
            weights (Loshchilov & Hutter 2019).
        betas: of the two averages.
        decay_vectors: whether biases, norms and scales decay as well as matrices and kernels.
        clip_norm: the gradient's largest norm over all parameters; null does not clip.
    """

    kind: Literal["adam", "adamw"] = "adamw"
    lr: LearningRates = field(default_factory=LearningRates)
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    decay_vectors: bool = False
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay is {self.weight_decay}; it must not be negative")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"clip_norm is {self.clip_norm}; it must be positive, or null")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over time, as a factor of the peak.

    Attributes:
        kind: after the warm-up: "constant"; "cosine" to `final_factor` at the last step; "multi_step" times
            `gamma` at each of `milestones`.
        warmup_steps: it rises linearly over so many steps; the first is 1 / warmup_steps.
        milestones: steps, ascending.
    """

    kind: Literal["constant", "cosine", "multi_step"] = "constant"
    warmup_steps: int = 0
    final_factor: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps is {self.warmup_steps}; it must not be negative")
        if not 0 <= self.final_factor <= 1:
            raise ConfigError(f"final_factor is {self.final_factor}; it must be in [0, 1]")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError(f"milestones are {list(self.milestones)}; they must be ascending steps")
        if (self.kind == "multi_step") != bool(self.milestones):
            raise ConfigError(
                f"schedule.kind is {self.kind!r} with {len(self.milestones)} milestones: 'multi_step' needs some, "
                "and nothing else takes any"
            )

    def factor(self, step: int, num_steps: int) -> float:
        """What the peak is multiplied with at a step, counted from 0, of `num_steps`."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.kind == "cosine":
            after = max(num_steps - self.warmup_steps, 1)
            done = min(max(step - self.warmup_steps, 0) / after, 1.0)
            return warm * (self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * done)))
        if self.kind == "multi_step":
            return warm * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        return warm


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter, Role]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """The optimiser over the parameters that train: one group for each role, split by whether it decays.

    Args:
        parameters: name, parameter and role of every parameter; those that need no gradient are left out.
        config: which optimiser, and each role's learning rate.

    Raises:
        ConfigError: no parameter trains.
    """
    groups: dict[tuple[Role, bool], list[nn.Parameter]] = {}
    for _, parameter, role in parameters:
        if parameter.requires_grad:
            decays = config.decay_vectors or parameter.ndim > 1
            groups.setdefault((role, decays), []).append(parameter)
    if not groups:
        raise ConfigError(
            "no parameter trains: the backbone is frozen, and there is no head; let one of them train"
        )
    described: list[dict[str, Any]] = [
        {
            "params": members,
            "lr": getattr(config.lr, role),
            "weight_decay": config.weight_decay if decays else 0.0,
            "name": role if decays else f"{role} (vectors)",
        }
        for (role, decays), members in groups.items()
    ]
    kind = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    return kind(described, betas=config.betas)


def build_schedule(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of an optimiser; to be stepped once after every step of it."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.factor(step, num_steps))
