"""Schedules and averages by hand; parameter groups are complete and disjoint."""

import copy
import math

import pytest
import torch
from torch import nn

from geoloc.errors import ConfigError
from geoloc.train.average import WeightAverage
from geoloc.train.optimise import (
    LearningRates,
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    build_schedule,
)


def factors(config, num_steps):
    return [config.factor(step, num_steps) for step in range(num_steps)]


def test_constant_after_a_linear_warm_up():
    assert factors(ScheduleConfig("constant", warmup_steps=4), 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert factors(ScheduleConfig(), 3) == [1, 1, 1]


def test_cosine_goes_from_the_peak_to_its_end():
    config = ScheduleConfig("cosine", warmup_steps=2, final_factor=0.1)
    found = factors(config, 6)
    by_hand = [0.5, 1.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    assert found == pytest.approx(by_hand)
    assert config.factor(6, 6) == pytest.approx(0.1)


def test_multi_step_falls_at_each_milestone():
    config = ScheduleConfig("multi_step", milestones=(2, 4), gamma=0.5)
    assert factors(config, 6) == [1, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "multi_step"}, "needs some"),
        ({"milestones": (3,)}, "only 'multi_step' takes milestones"),
        ({"kind": "multi_step", "milestones": (3, 2)}, "ascending"),
        ({"final_factor": 2.0}, r"must be in \[0, 1\]"),
    ],
)
def test_impossible_schedules(options, message):
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**options)


def test_the_optimiser_follows_the_schedule():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = build_optimizer([("w", weight, "heads")], OptimizerConfig(lr=LearningRates(heads=0.3)))
    schedule = build_schedule(optimizer, ScheduleConfig("cosine", warmup_steps=3), 9)
    for step in range(9):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            0.3 * ScheduleConfig("cosine", 3).factor(step, 9)
        )
        optimizer.step()
        schedule.step()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 2)

    def roles(self):
        for name, parameter in self.named_parameters():
            yield name, parameter, "heads" if name.startswith("head") else "backbone"


@pytest.mark.parametrize("decay_vectors", [False, True])
def test_groups_are_complete_and_disjoint(decay_vectors):
    network = Network()
    config = OptimizerConfig(
        "adam", LearningRates(heads=0.1, backbone=0.01), 0.5, decay_vectors=decay_vectors
    )
    optimizer = build_optimizer(network.roles(), config)
    members = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(p) for p in network.parameters() if p.requires_grad}
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert of[id(network.head.weight)]["lr"] == 0.1
    assert of[id(network.tower[0].weight)]["lr"] == 0.01
    assert of[id(network.head.weight)]["weight_decay"] == 0.5
    assert of[id(network.head.bias)]["weight_decay"] == (0.5 if decay_vectors else 0)
    assert type(optimizer) is torch.optim.Adam


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match="no parameter is trainable"):
        build_optimizer(
            [("w", nn.Parameter(torch.zeros(1), requires_grad=False), "heads")], OptimizerConfig()
        )


def test_the_average_by_hand():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 8.0)
    average, by_hand = WeightAverage(module, decay=0.25), 8.0
    for step, weight in enumerate([4.0, 2.0, 1.0, 0.5, 0.25], 1):
        nn.init.constant_(module.weight, weight)
        average.update()
        decay = min(0.25, step / (9 + step))  # 0.1, 0.1818…, then 0.25
        by_hand = decay * by_hand + (1 - decay) * weight
    with average.applied():
        assert module.weight.item() == pytest.approx(by_hand)
    assert module.weight.item() == 0.25
    again = WeightAverage(copy.deepcopy(module), decay=0.25)
    again.load_state_dict(average.state_dict())
    assert again.state_dict()["average"]["weight"].item() == pytest.approx(by_hand)
    average.apply()
    assert module.weight.item() == pytest.approx(by_hand)
