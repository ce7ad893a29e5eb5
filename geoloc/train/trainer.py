"""Training loop: Lightning's Trainer with exact resume after a kill at any step.

A resumed run is bit-identical on a CPU, because

- batch `i` depends on its number, so the position in the data is a number;
- the random numbers of a step (dropout, …) are seeded from (seed, step, rank);
- weights, optimiser, schedule, average and early stopping are saved in one file, after a step and its validation.

With `state_file` the only module that imports Lightning.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from geoloc.errors import ConfigError, MissingDependencyError
from geoloc.torchvision_cpu import ensure_importable
from geoloc.train.average import WeightAverage
from geoloc.train.optimise import build_optimizer, build_schedule
from geoloc.train.ranks import all_gather_named, seed_of
from geoloc.train.run_folder import MetricsFile, RunFolder
from geoloc.train.settings import MachineConfig, TrainerConfig
from geoloc.train.task import PlannedData, Task, TrainingData, ValidationData

ensure_importable()  # lightning imports torchmetrics, and that torchvision

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import TensorBoardLogger
except ImportError as error:
    raise MissingDependencyError("training needs lightning: pip install 'geoloc-vision[train]'") from error

from geoloc.train.state_file import VerifiedCheckpointIO, load_verified, save_verified, verify  # noqa: E402


@dataclass(frozen=True)
class Fitted:
    """Result of a training; the task has the resulting weights.

    Attributes:
        step: step of the weights.
        metrics: metrics of the last validation, or of the best one with early stopping.
    """

    step: int
    metrics: Mapping[str, float]


def fit(
    task: Task,
    data: TrainingData,
    config: TrainerConfig,
    machine: MachineConfig,
    run: RunFolder,
    validation: ValidationData | None = None,
) -> Fitted:
    """Train, or resume from the state in the run's folder.

    Afterwards `task` has the resulting weights on its original device: the best ones with early stopping, else the
    averaged ones with `ema_decay`, else the last ones.

    Raises:
        ConfigError: inconsistent settings.
        IntegrityError: the state in the folder is damaged.
        FloatingPointError: a loss is not finite.
    """
    if config.early_stopping is not None and validation is None:
        raise ConfigError("early_stopping needs validation data: add some, or leave early_stopping out")
    if config.ema_decay is not None and machine.strategy == "fsdp":
        raise ConfigError(
            "ema_decay needs whole parameters, which fsdp shards: set ema_decay=null, or use ddp"
        )
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    torch.set_float32_matmul_precision(machine.matmul)
    module = _Module(task, config)
    loop = _Loop(task, data, config, machine, run, validation)
    with warnings.catch_warnings():
        # Lightning's advice on settings that are intended here.
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated")
        trainer = _trainer(task, config, machine, run, loop)
        if trainer.is_global_zero:
            run.note_environment()
        feed = _Feed(data, trainer, config, machine)
        state = run.state_path if run.state_path.exists() else None
        if state is not None:
            verify(state)  # here as well, since fsdp reads the file without VerifiedCheckpointIO
        trainer.fit(module, train_dataloaders=feed, ckpt_path=state, weights_only=True)
    return loop.result()


def _trainer(
    task: Task, config: TrainerConfig, machine: MachineConfig, run: RunFolder, loop: _Loop
) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logger = (
        TensorBoardLogger(run.folder, name=None, version="tensorboard")
        if machine.logger == "tensorboard"
        else False
    )
    strategy: str = machine.strategy
    if strategy == "ddp" and getattr(task, "leaves_out_parameters", False):
        strategy = "ddp_find_unused_parameters_true"
    return Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        strategy=strategy,
        precision="32-true" if config.precision == "32" else config.precision,
        max_steps=config.num_steps,
        max_epochs=-1,  # training counts steps; the data defines epochs
        accumulate_grad_batches=config.accumulate,
        callbacks=[loop],
        logger=logger,
        plugins=[VerifiedCheckpointIO()],
        default_root_dir=run.folder,
        # The loop does all of these itself, in an order that a resumed run repeats.
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


class _Module(LightningModule):
    """LightningModule of a task."""

    def __init__(self, task: Task, config: TrainerConfig) -> None:
        super().__init__()
        self.task = task
        self._config = config
        self.latest: dict[str, Tensor] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        parts = self.task.losses(batch)
        self.latest = {name: value.detach() for name, value in parts.items()}
        return torch.stack(list(parts.values())).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self.task.predict(batch)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.task.roles(), self._config.optimizer)
        schedule = build_schedule(optimizer, self._config.schedule, self._config.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        if (norm := self._config.optimizer.clip_norm) is None:
            return
        wrapped: Any = self.trainer.strategy.model
        if hasattr(wrapped, "clip_grad_norm_"):  # fsdp: the norm is over all shards
            wrapped.clip_grad_norm_(norm)
        else:
            nn.utils.clip_grad_norm_(self.parameters(), norm)


class _Loop(Callback):
    """Callback for everything around a step, in this order: average, log, validate, stop, save."""

    def __init__(
        self,
        task: Task,
        data: TrainingData,
        config: TrainerConfig,
        machine: MachineConfig,
        run: RunFolder,
        validation: ValidationData | None,
    ) -> None:
        self._task, self._config, self._machine, self._run = task, config, machine, run
        self._data, self._validation = data, validation
        self._average: WeightAverage | None = None
        self._loaded: dict[str, Any] = {}
        self._step = 0
        self._metrics: dict[str, float] = {}
        self._best: dict[str, Any] = {}  # step and metrics of the best validation
        self._num_worse = 0
        self._file: MetricsFile | None = None
        self._bar: tqdm[Any] | None = None

    # --- state ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "average": None if self._average is None else self._average.state_dict(),
            "metrics": self._metrics,
            "best": self._best,
            "num_worse": self._num_worse,
            "plan": self._data.state_dict() if isinstance(self._data, PlannedData) else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict  # restored later: the model may still move to its device
        self._metrics, self._best = state_dict["metrics"], state_dict["best"]
        self._num_worse = state_dict["num_worse"]
        if isinstance(self._data, PlannedData):
            self._data.load_state_dict(state_dict["plan"])

    # --- Lightning's hooks ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore(trainer)
        if trainer.is_global_zero and self._machine.logger != "none":
            self._file = MetricsFile(self._run.folder, self._step)
        if trainer.is_global_zero and self._machine.progress:
            self._bar = tqdm(initial=self._step, total=self._config.num_steps, unit="step", mininterval=1.0)
        self._stop_without_gain(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        torch.manual_seed(seed_of(self._config.seed, batch_idx, trainer.global_rank))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # more batches belong to this step
        self._step = trainer.global_step
        if self._average is not None:
            self._average.update()
        self._record(trainer, cast(_Module, pl_module))
        if self._validation is not None and self._due(self._config.validate_every_steps):
            self._validate(trainer, self._validation)
            self._stop_without_gain(trainer)
        if self._due(self._machine.save_every_steps) or trainer.should_stop:
            trainer.save_checkpoint(self._run.state_path)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()  # the first rank may still be writing its last file
        self._close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded:  # the run was complete, so on_train_start was not called
            self._restore(trainer)
        if self._best:
            cast(nn.Module, self._task).load_state_dict(load_verified(self._run.best_path))
        elif self._average is not None:
            self._average.apply()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def result(self) -> Fitted:
        """The result of the training."""
        if self._best:
            return Fitted(self._best["step"], self._best["metrics"])
        return Fitted(self._step, self._metrics)

    # --- the parts ------------------------------------------------------------------------------------------

    def _restore(self, trainer: Trainer) -> None:
        self._step = trainer.global_step
        if self._config.ema_decay is not None:
            self._average = WeightAverage(cast(nn.Module, self._task), self._config.ema_decay)
            if self._loaded:
                self._average.load_state_dict(self._loaded["average"])
        self._loaded = {}

    def _due(self, every: int | None) -> bool:
        return self._step == self._config.num_steps or (every is not None and self._step % every == 0)

    def _record(self, trainer: Trainer, module: _Module) -> None:
        if self._bar is not None:
            self._bar.update(self._step - self._bar.n)
        if not self._due(self._machine.log_every_steps):
            return
        # Only for steps that are logged: reading a value waits for the GPU.
        values = {name: float(value) for name, value in module.latest.items()}
        if wrong := [name for name, value in values.items() if not np.isfinite(value)]:
            raise FloatingPointError(
                f"the loss {wrong[0]!r} is {values[wrong[0]]} after step {self._step}: lower its learning rate, clip "
                f"the gradients (clip_norm), or use precision=32; the state in {self._run.folder} is of an earlier step"
            )
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
        rates = {f"lr/{group['name']}": group["lr"] for group in trainer.optimizers[0].param_groups}
        self._log(trainer, {f"loss/{name}": value for name, value in values.items()} | rates)

    def _log(self, trainer: Trainer, values: dict[str, float]) -> None:
        if self._file is not None:
            self._file.add(self._step, values)
        if trainer.logger is not None:
            trainer.logger.log_metrics(values, step=self._step)

    def _validate(self, trainer: Trainer, validation: ValidationData) -> None:
        with nullcontext() if self._average is None else self._average.applied():
            batches = validation.batches(trainer.global_rank, trainer.world_size)
            self._metrics = self._task.score(predict_all(trainer, batches))
            self._log(trainer, {f"val/{name}": value for name, value in self._metrics.items()})
            if self._bar is not None:
                self._bar.write(
                    f"step {self._step}: " + ", ".join(f"{k} {v:.4g}" for k, v in self._metrics.items())
                )
            self._keep_best(trainer)

    def _keep_best(self, trainer: Trainer) -> None:
        if (wanted := self._config.early_stopping) is None:
            return
        if wanted.metric not in self._metrics:
            raise ConfigError(
                f"early_stopping.metric is {wanted.metric!r}, and validation reports {', '.join(self._metrics)}: "
                "choose one of these"
            )
        best = self._best["metrics"][wanted.metric] if self._best else -np.inf
        if not self._metrics[wanted.metric] > best + wanted.min_gain:
            self._num_worse += 1
            return
        self._num_worse = 0
        self._best = {"step": self._step, "metrics": dict(self._metrics)}
        # The validated weights: this runs inside the context that applies the average.
        if trainer.is_global_zero:
            save_verified(cast(nn.Module, self._task).state_dict(), self._run.best_path)

    def _stop_without_gain(self, trainer: Trainer) -> None:
        if (
            self._config.early_stopping is not None
            and self._num_worse >= self._config.early_stopping.patience
        ):
            trainer.should_stop = True

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Feed:
    """Iterable of batches from the trainer's step on; without a length, so that Lightning counts no epochs."""

    def __init__(
        self, data: TrainingData, trainer: Trainer, config: TrainerConfig, machine: MachineConfig
    ) -> None:
        self._data, self._trainer, self._config, self._machine = data, trainer, config, machine

    def __iter__(self) -> Iterator[Any]:
        """Batches from the restored step to the last one."""
        accumulate = self._config.accumulate
        index, end = self._trainer.global_step * accumulate, self._config.num_steps * accumulate
        rank, world_size = self._trainer.global_rank, self._trainer.world_size
        while index < end:
            stop = end
            if isinstance(self._data, PlannedData):
                predict = partial(predict_all, self._trainer)
                stop = min(end, self._data.plan(index, predict, rank, world_size))
            yield from self._made(range(index, stop), rank, world_size)
            index = stop

    def _made(self, numbers: range, rank: int, world_size: int) -> Iterable[Any]:
        workers = min(self._machine.num_workers, len(numbers))
        return DataLoader(
            _Numbered(self._data, rank, world_size),
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            pin_memory=torch.cuda.is_available(),
        )


def predict_all(trainer: Trainer, batches: Iterable[Any]) -> dict[str, Tensor]:
    """The task's predictions for the batches of all ranks, on the CPU."""
    module, was_training = trainer.lightning_module, trainer.lightning_module.training
    module.eval()
    own: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for index, batch in enumerate(batches):
            on_device = trainer.strategy.batch_to_device(batch)
            predicted = cast("dict[str, Tensor]", trainer.strategy.validation_step(on_device, index))
            for name, values in predicted.items():
                own.setdefault(name, []).append(values.cpu())
    module.train(was_training)
    return all_gather_named({name: torch.cat(values) for name, values in own.items()})


class _Numbered(Dataset[Any]):
    def __init__(self, data: TrainingData, rank: int, world_size: int) -> None:
        self._data, self._rank, self._world_size = data, rank, world_size

    def __getitem__(self, index: int) -> Any:
        return self._data.batch(index, self._rank, self._world_size)
