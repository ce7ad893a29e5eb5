"""Reranker inference in NumPy: mixture weights of cells and candidates.

`geoloc.posterior.reranker_network` states the formula and fits the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

from geoloc.errors import ConfigError
from geoloc.posterior.evidence import FEATURES, SOURCES, Evidence, features

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Least kernel width, 5 m as GPS: a reference at the exact location of a query would make zero width infinitely likely.
LEAST_LOG_KERNEL_KM = float(np.log(0.005))
DEFAULT_KERNEL_KM = float(np.exp(3.0))  # about 20 km


@dataclass(frozen=True)
class RerankerConfig:
    """Size of the reranker.

    Attributes:
        hidden_dim: of the network over candidates; 0 is plain fusion.
        candidates_per_source: number of candidates of each source of each database.
        num_databases: number of databases; each has similarities of its own.

    Raises:
        ConfigError: an impossible value.
    """

    hidden_dim: int = 32
    candidates_per_source: int = 64
    num_databases: int = 1

    def __post_init__(self) -> None:
        if self.hidden_dim < 0 or self.candidates_per_source < 1 or self.num_databases < 1:
            raise ConfigError(
                f"reranker: hidden_dim is {self.hidden_dim}, candidates_per_source {self.candidates_per_source} and "
                f"num_databases {self.num_databases}; expected at least 0, 1 and 1"
            )

    @property
    def num_groups(self) -> int:
        """Number of pairs of a database and a source, as `Evidence.group` counts them."""
        return SOURCES * self.num_databases

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by name."""
        shapes: dict[str, tuple[int, ...]] = {
            "similarity_scale": (self.num_groups,),
            "similarity_bias": (self.num_groups,),
            "log_kernel_km": (self.num_groups,),
            "gate_logit": (),
        }
        h = self.hidden_dim
        if h:
            layers = {
                "candidate": (len(FEATURES), h, h),
                "score": (3 * h, h, 2),
                "global_head": (2 * h, h, 2),
            }
            for name, widths in layers.items():
                for place, (before, after) in zip((0, 2), pairwise(widths), strict=True):
                    shapes[f"{name}.{place}.weight"] = (after, before)
                    shapes[f"{name}.{place}.bias"] = (after,)
        return shapes


@dataclass(frozen=True)
class MixtureWeights:
    """Mixture weights of Q queries.

    Attributes:
        weight: (Q, K) of the candidates; 0 in padding.
        scale_km: (Q, K) kernel widths.
        cell_weight: (Q, C) of the chosen cells' own points, the rest of the cells' mass.
        gate: (Q,) share of retrieval in cells with candidates; 0 without candidates.
    """

    weight: FloatArray
    scale_km: FloatArray
    cell_weight: FloatArray
    gate: FloatArray


class Reranker:
    """A reranker for inference.

    Args:
        config: its size.
        parameters: as `RerankerConfig.shapes` names them.
    """

    def __init__(self, config: RerankerConfig, parameters: Mapping[str, NDArray[np.floating]]) -> None:
        self.config = config
        self.parameters = {name: np.asarray(values, np.float64) for name, values in parameters.items()}

    @classmethod
    def default(cls, kernel_km: Sequence[float] = (DEFAULT_KERNEL_KM,)) -> Reranker:
        """Plain fusion with default scales, for a model without a fitted reranker.

        Args:
            kernel_km: of each database, standard deviation of the distance between a photo and its reference.
        """
        config = RerankerConfig(hidden_dim=0, num_databases=len(kernel_km))
        guess = {
            "similarity_scale": np.full(config.num_groups, 20.0),
            "similarity_bias": np.zeros(config.num_groups),
            "log_kernel_km": np.repeat(np.log(np.asarray(kernel_km, np.float64)), SOURCES),
            "gate_logit": np.zeros(()),
        }
        return cls(config, guess)

    def plain(self) -> Reranker:
        """The reranker without its network: plain fusion as fitted."""
        bare = replace(self.config, hidden_dim=0)
        return Reranker(bare, {name: self.parameters[name] for name in bare.shapes()})

    def mixture_weights(self, evidence: Evidence) -> MixtureWeights:
        """Mixture weights of each query."""
        has_any = np.asarray(evidence.present.any(-1), np.float64)
        if evidence.present.shape[1] == 0:
            nothing = np.zeros_like(evidence.similarity)
            return MixtureWeights(nothing, np.ones_like(nothing), evidence.cells.probability, has_any)
        of, group, present, column = self.parameters, evidence.group, evidence.present, evidence.column
        log_odds = of["similarity_scale"][group] * evidence.similarity + of["similarity_bias"][group]
        log_scale = np.maximum(of["log_kernel_km"][group], LEAST_LOG_KERNEL_KM)
        gate = np.full(len(present), of["gate_logit"])
        probability, num_cells = evidence.cells.probability, evidence.cells.cell_id.shape[1]
        logits = np.log(probability + 1e-30)
        if self.config.hidden_dim:
            score, support, global_out = self._network(evidence, log_odds)
            log_odds = log_odds + score
            gate = gate + global_out[:, 0]
            log_scale = log_scale + 1.5 * np.tanh(global_out[:, 1:])
        within = _softmax_by_cell(log_odds, present, column, num_cells)
        if self.config.hidden_dim:
            logits = logits + _sum_by_cell(within * support, column, num_cells)
        cells = probability.sum(-1, keepdims=True) * _softmax(logits)
        mass = np.where(
            column < 0,
            np.exp(evidence.cell_log_prob),
            np.take_along_axis(cells, np.maximum(column, 0), 1),
        )
        share = expit(gate) * has_any
        covered = _sum_by_cell(present.astype(np.float64), column, num_cells) > 0
        return MixtureWeights(
            share[:, None] * mass * within,
            np.exp(log_scale),
            cells * (1 - share[:, None] * covered),
            share,
        )

    def _network(self, evidence: Evidence, log_odds: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Network over candidates: score (Q, K), cell support (Q, K), global outputs for gate and width (Q, 2)."""
        present = evidence.present
        hidden = _gelu(self._mlp("candidate", features(evidence, log_odds)))
        plain = np.where(present, log_odds, -np.inf)
        plain = _softmax(np.where(present.any(-1, keepdims=True), plain, 0.0)) * present
        mean = (plain[..., None] * hidden).sum(-2)
        max_pool = np.where(present[..., None], hidden, -1e4).max(-2)
        pooled = np.concatenate([mean, max_pool], -1)
        broadcast = np.broadcast_to(pooled[:, None], (*hidden.shape[:2], pooled.shape[-1]))
        both = self._mlp("score", np.concatenate([hidden, broadcast], -1))
        return both[..., 0], both[..., 1], self._mlp("global_head", pooled)

    def _mlp(self, name: str, x: FloatArray) -> FloatArray:
        of = self.parameters
        hidden = _gelu(x @ of[f"{name}.0.weight"].T + of[f"{name}.0.bias"])
        return np.asarray(hidden @ of[f"{name}.2.weight"].T + of[f"{name}.2.bias"])


def _gelu(x: FloatArray) -> FloatArray:
    return np.asarray(x * 0.5 * (1 + erf(x / np.sqrt(2))))


def _softmax(logits: FloatArray) -> FloatArray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


# Candidates outside the chosen cells form one group of their own: the column before the cells'.


def _softmax_by_cell(logits: FloatArray, present: NDArray[np.bool_], column: IntArray, c: int) -> FloatArray:
    """Each candidate's share among those of its cell, (Q, K) -> (Q, K); 0 in padding."""
    rows, group = np.arange(len(logits))[:, None], column + 1
    largest = np.full((len(logits), c + 1), -1e30)
    np.maximum.at(largest, (rows, group), np.where(present, logits, -1e30))
    weight = np.where(present, np.exp(np.minimum(logits - largest[rows, group], 0.0)), 0.0)
    total = np.zeros_like(largest)
    np.add.at(total, (rows, group), weight)
    return np.asarray(weight / np.maximum(total[rows, group], 1e-30))


def _sum_by_cell(values: FloatArray, column: IntArray, c: int) -> FloatArray:
    """Sums over the candidates of each chosen cell, (Q, K) -> (Q, C)."""
    total = np.zeros((len(values), c + 1))
    np.add.at(total, (np.arange(len(values))[:, None], column + 1), values)
    return total[:, 1:]
