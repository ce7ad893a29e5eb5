"""Training settings: what decides the result (`TrainerConfig`), and where it runs (`MachineConfig`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from geoloc.errors import ConfigError
from geoloc.train.optimise import OptimizerConfig, ScheduleConfig


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when validation no longer improves; the best weights are the result.

    Attributes:
        metric: name of a validation metric, larger is better: "geoscore", "recall_at_1", …
        patience: number of validations in a row without improvement that ends the training.
        min_gain: smallest increase that counts as improvement.
    """

    metric: str
    patience: int = 5
    min_gain: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"early_stopping.patience is {self.patience}; it must be at least 1")


@dataclass(frozen=True)
class TrainerConfig:
    """Settings that decide the result of a training, beside task and data.

    Attributes:
        num_steps: number of optimiser steps.
        seed: seed of all random numbers.
        accumulate: batches per step; a contrastive loss sees one batch at a time.
        precision: "32"; "bf16-mixed" or "16-mixed" compute in half precision and keep float32 weights.
        ema_decay: decay of the weights' moving average, which is validated and is the result; null averages nothing.
        validate_every_steps: null validates at the end only.
    """

    num_steps: int
    seed: int = 2026
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    accumulate: int = 1
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    ema_decay: float | None = None
    validate_every_steps: int | None = None
    early_stopping: EarlyStopping | None = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "accumulate", "validate_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}; it must be between 0 and 1, or null")
        if self.early_stopping is not None and self.validate_every_steps is None:
            raise ConfigError("early_stopping needs validate_every_steps: it decides by validation metrics")


@dataclass(frozen=True)
class MachineConfig:
    """Where and how a training runs; a run may be resumed with other settings.

    Attributes:
        accelerator: "auto" takes a GPU if there is one.
        devices: devices per node, with one process each.
        strategy: "ddp" copies the model to each device, "fsdp" shards it over them (GPUs only).
        threads: torch threads per process; null keeps torch's default.
        num_workers: data loader processes per device; 0 loads in the training process.
        save_every_steps: a killed run loses at most this many steps.
        logger: "tensorboard" in addition to metrics.csv; "csv" for metrics.csv only; "none".
        matmul: precision of float32 matrix products: "highest"; "high" is faster on GPUs (TF32).
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    threads: int | None = None
    num_workers: int = 2
    save_every_steps: int = 500
    log_every_steps: int = 10
    logger: Literal["tensorboard", "csv", "none"] = "tensorboard"
    progress: bool = True
    matmul: Literal["highest", "high", "medium"] = "highest"

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes", "save_every_steps", "log_every_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"machine.{name} is {getattr(self, name)}; it must be at least 1")
        if self.devices * self.num_nodes > 1 and self.strategy == "auto":
            raise ConfigError(
                f"machine.devices is {self.devices} on {self.num_nodes} nodes: set machine.strategy=ddp (or fsdp, for "
                "a model that does not fit one device)"
            )
