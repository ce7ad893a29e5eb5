"""Model soups: averaged weights of models of one architecture (Wortsman et al., ICML 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geoloc.errors import ConfigError

State = Mapping[str, Tensor]

TRAINING_ONLY = ("discriminator", "autoencoder")  # parts of domain adaptation, not used at inference


@dataclass(frozen=True)
class GreedySoup:
    """Result of `greedy_soup`.

    Attributes:
        state: averaged weights.
        members: names of the models in the soup, best first.
        score: score of the soup.
        scores: score of each single model, by name.
    """

    state: dict[str, Tensor]
    members: tuple[str, ...]
    score: float
    scores: dict[str, float]


def uniform_soup(
    models: Mapping[str, State], *, dropped: tuple[str, ...] = TRAINING_ONLY
) -> dict[str, Tensor]:
    """Mean of all models' weights, summed in float64; integer tensors are those of the first model.

    Args:
        models: state dicts by name.
        dropped: name components whose tensors are left out.

    Raises:
        ConfigError: there is no model, or two differ in the names or shapes of their tensors.
    """
    states = {name: without_parts(state, dropped) for name, state in models.items()}
    if not states:
        raise ConfigError("a soup needs at least one model; found none")
    (first, base), *others = states.items()
    for name, state in others:
        _check_same(first, base, name, state)
    return {
        key: _mean([state[key] for state in states.values()])
        if tensor.is_floating_point()
        else tensor.clone()
        for key, tensor in base.items()
    }


def greedy_soup(
    models: Mapping[str, State],
    score: Callable[[dict[str, Tensor]], float],
    *,
    dropped: tuple[str, ...] = TRAINING_ONLY,
) -> GreedySoup:
    """Models from the best to the worst, each kept if the mean with it scores no less than the one without.

    So it never scores below its best member on the photos that `score` looks at, which should be no test photos.

    Args:
        models: state dicts by name.
        score: function of a state dict: validation score, higher is better.
        dropped: as for `uniform_soup`.

    Raises:
        ConfigError: as for `uniform_soup`.
    """
    uniform_soup(models, dropped=dropped)  # check all models before anything is scored
    states = {name: dict(without_parts(state, dropped)) for name, state in models.items()}
    scores = {name: score(state) for name, state in states.items()}
    best, *rest = sorted(states, key=lambda name: -scores[name])
    members, state, reached = [best], states[best], scores[best]
    for name in rest:
        tried = uniform_soup({member: states[member] for member in [*members, name]}, dropped=())
        if (found := score(tried)) >= reached:
            members, state, reached = [*members, name], tried, found
    return GreedySoup(state, tuple(members), reached, scores)


def without_parts(state: State, dropped: tuple[str, ...]) -> State:
    """The tensors whose names contain none of the dropped components."""
    return {key: tensor for key, tensor in state.items() if not set(key.split(".")) & set(dropped)}


def _mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)


def _check_same(first: str, base: State, name: str, state: State) -> None:
    missing, extra = sorted(base.keys() - state.keys()), sorted(state.keys() - base.keys())
    if missing or extra:
        raise ConfigError(
            f"{name!r} and {first!r} cannot be averaged: {name!r} lacks {', '.join(missing[:3]) or 'nothing'} and "
            f"adds {', '.join(extra[:3]) or 'nothing'} ({len(missing)} and {len(extra)} tensors); take models of one "
            "architecture"
        )
    for key, tensor in base.items():
        if state[key].shape != tensor.shape:
            raise ConfigError(
                f"{name!r} and {first!r} cannot be averaged: {key!r} is {tuple(state[key].shape)} in the first and "
                f"{tuple(tensor.shape)} in the second; take models of one architecture"
            )
