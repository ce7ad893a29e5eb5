"""The smallest training there is, with everything that a resumed run could get wrong: dropout, data by number, both
averages of Adam, a schedule, accumulation, validation."""

import torch
from torch import nn

from geoloc.train.optimise import LearningRates, OptimizerConfig, ScheduleConfig
from geoloc.train.settings import EarlyStopping, MachineConfig, TrainerConfig

CONFIG = TrainerConfig(
    num_steps=24,
    seed=3,
    optimizer=OptimizerConfig(lr=LearningRates(heads=0.02, backbone=0.01), weight_decay=0.01),
    schedule=ScheduleConfig("cosine", warmup_steps=4),
    accumulate=2,
    ema_decay=0.9,
    validate_every_steps=4,
    early_stopping=EarlyStopping("geoscore", patience=100),
)
MACHINE = MachineConfig(
    accelerator="cpu", num_workers=0, save_every_steps=3, log_every_steps=2, logger="csv", progress=False
)


class LinearTask(nn.Module):
    """Learns to double two of four numbers.

    Args:
        dropout: of its hidden layer.
        visit: called with "step" or "validation" at each.
    """

    def __init__(self, dropout=0.2, visit=lambda where: None):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 16)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(16, 2)
        self.visit = visit

    def forward(self, x):
        return self.last(self.dropout(self.first(x).relu()))

    def losses(self, batch):
        self.visit("step")
        x, y = batch
        squared = (self(x) - y) ** 2
        return {"first": squared[:, 0].mean(), "second": 0.5 * squared[:, 1].mean()}

    def roles(self):
        for name, parameter in self.named_parameters():
            yield name, parameter, "backbone" if name.startswith("first") else "heads"

    def predict(self, batch):
        self.visit("validation")
        x, y = batch
        return {"error": ((self(x) - y) ** 2).mean(-1)}

    def score(self, predicted):
        return {"geoscore": -float(predicted["error"].mean()), "count": float(len(predicted["error"]))}


class LinearData:
    """Batches of eight; 11 samples for validation, which two ranks cannot share equally."""

    def batch(self, index, rank, world_size):
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(8, 4, generator=generator)[rank::world_size]
        return x, 2 * x[:, :2]

    def batches(self, rank, world_size):
        x = torch.randn(11, 4, generator=torch.Generator().manual_seed(10**6))
        for part in x.split(4):
            mine = part[rank::world_size]
            yield mine, 2 * mine[:, :2]
