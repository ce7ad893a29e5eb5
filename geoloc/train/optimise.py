"""Optimiser, parameter groups and learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from geoloc.errors import ConfigError
from geoloc.models.fine_tune import FineTune

Role = Literal["heads", "backbone", "last_blocks", "lora", "classifiers"]


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rate of each parameter role; defaults are OSV-5M's.

    Attributes:
        heads: newly initialised parts: heads, aggregations, scales.
        backbone: a pretrained tower that trains as a whole.
        last_blocks: a tower of which only the last blocks train.
        lora: low-rank updates of a tower.
        classifiers: classifiers that only training uses; the default is CosPlace's.
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
    """Optimiser settings.

    Attributes:
        kind: "adam" adds the decay to the gradient (weight decay of OSV-5M and Statewide), "adamw" to the weights
            (Loshchilov & Hutter 2019).
        betas: decay rates of the two moments.
        decay_vectors: whether biases, norms and scales decay as well as matrices and kernels.
        clip_norm: largest norm of the whole gradient; null does not clip.
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
    """Learning rate over time, as a factor of the peak.

    Attributes:
        kind: after the warm-up: "constant"; "cosine" down to `final_factor` at the last step; "multi_step" multiplies
            by `gamma` at each of `milestones`.
        warmup_steps: steps of the linear warm-up, which starts at 1 / warmup_steps.
        milestones: ascending steps.
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
                f"schedule.kind is {self.kind!r} with {len(self.milestones)} milestones: only 'multi_step' takes "
                "milestones, and it needs some"
            )

    def factor(self, step: int, num_steps: int) -> float:
        """Factor of the peak learning rate at a step, counted from 0, of `num_steps`."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.kind == "cosine":
            after = max(num_steps - self.warmup_steps, 1)
            done = min(max(step - self.warmup_steps, 0) / after, 1.0)
            return warm * (self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * done)))
        if self.kind == "multi_step":
            return warm * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        return warm


def roles_of(task: nn.Module, fine_tune: FineTune | None = None) -> Iterator[tuple[str, nn.Parameter, Role]]:
    """Name, parameter and role of every parameter of a task, by its name."""
    of_towers: Role = "last_blocks" if fine_tune and fine_tune.mode == "last_blocks" else "backbone"
    for name, parameter in task.named_parameters():
        if name.startswith("classifiers."):
            yield name, parameter, "classifiers"
        elif not name.startswith(("network.backbone.", "network.aerial_backbone.")):
            yield name, parameter, "heads"
        else:
            yield name, parameter, "lora" if ".lora_" in name else of_towers


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter, Role]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Optimiser over the trainable parameters: a group per role, split into those with and without weight decay.

    Args:
        parameters: name, parameter and role of every parameter; those without gradient are left out.
        config: optimiser, and each role's learning rate.

    Raises:
        ConfigError: no parameter is trainable.
    """
    groups: dict[tuple[Role, bool], list[nn.Parameter]] = {}
    for _, parameter, role in parameters:
        if parameter.requires_grad:
            decays = config.decay_vectors or parameter.ndim > 1
            groups.setdefault((role, decays), []).append(parameter)
    if not groups:
        raise ConfigError(
            "no parameter is trainable: the backbone is frozen, and there is no head; let one of them train"
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
    """Learning rate schedule of an optimiser; step it after every optimiser step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.factor(step, num_steps))
