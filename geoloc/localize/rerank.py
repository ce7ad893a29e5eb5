"""The reranker: from cells and candidates to the weights, widths and gate of one mixture over the Earth.

    log w_j   = a_s sim_j + b_s + log P(cell of j) + f(candidate j, all candidates)
    log P'(c) = log P(c) + beta max(log_odds of the candidates in c), scaled to the same sum
    density   = g sum_j w_j N(y; r_j, sigma_s e^delta) + (1 - g) sum_c P'(c) N(y; p_c, sigma_c) + a little everywhere

So retrieval speaks twice: for the places of its references, and for the cells that they lie in. A cell without a
candidate counts as one a little worse than the worst candidate. a, b and sigma bring every source (aerial, street,
location) to one scale; the gate g says how much of the truth lies with retrieval, and delta how wide it is, both from
the whole set of candidates. With hidden_dim 0 there is no f, g and delta are constants: plain fusion. All of it is
fitted at once by the likelihood of held-out places, plain part first. Knows nothing about images or files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.localize.evidence import FEATURES, NOWHERE, SOURCES, Evidence, chord_km, features

FloatArray = NDArray[np.float64]


# A reference at the very place of a query would make a kernel of no width infinitely likely: 5 m, as good as GPS is.
LEAST_LOG_KERNEL_KM = float(np.log(0.005))


@dataclass(frozen=True)
class RerankerConfig:
    """Size of the reranker.

    Attributes:
        hidden_dim: of the network over candidates; 0 leaves plain fusion.
        candidates_per_source: how many references of each source are weighed.

    Raises:
        ConfigError: an impossible value.
    """

    hidden_dim: int = 32
    candidates_per_source: int = 64

    def __post_init__(self) -> None:
        if self.hidden_dim < 0 or self.candidates_per_source < 1:
            raise ConfigError(
                f"reranker: hidden_dim is {self.hidden_dim} and candidates_per_source is "
                f"{self.candidates_per_source}; expected at least 0 and at least 1"
            )


@dataclass(frozen=True)
class Weighed:
    """The mixture of each query.

    Attributes:
        weight: (Q, K) of the candidates, the gate's share included; 0 in padding.
        scale_km: (Q, K) kernel widths.
        gate: (Q,) share of retrieval; 0 where there is no candidate.
        cell_probability: (Q, C) of the chosen cells, after retrieval spoke for some of them.
    """

    weight: FloatArray
    scale_km: FloatArray
    gate: FloatArray
    cell_probability: FloatArray


class Reranker(nn.Module):
    """See the module's docstring; float32 parameters, small enough for JSON."""

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__()
        self.config = config
        self.similarity_scale = nn.Parameter(torch.full((SOURCES,), 20.0))
        self.similarity_bias = nn.Parameter(torch.zeros(SOURCES))
        self.log_kernel_km = nn.Parameter(torch.full((SOURCES,), 3.0))
        self.gate_logit = nn.Parameter(torch.zeros(()))
        self.cell_support = nn.Parameter(torch.zeros(()))
        h = config.hidden_dim
        if h:
            self.candidate = nn.Sequential(nn.Linear(len(FEATURES), h), nn.GELU(), nn.Linear(h, h), nn.GELU())
            self.score = nn.Sequential(nn.Linear(3 * h, h), nn.GELU(), nn.Linear(h, 1))
            self.whole = nn.Sequential(nn.Linear(2 * h, h), nn.GELU(), nn.Linear(h, 2))
            for parameter in (*self.score[-1].parameters(), *self.whole[-1].parameters()):
                nn.init.zeros_(parameter)  # it begins as plain fusion

    def plain(self) -> Reranker:
        """The same without the network over candidates: plain fusion as it was fitted."""
        bare = Reranker(replace(self.config, hidden_dim=0))
        bare.load_state_dict({name: self.state_dict()[name] for name in bare.state_dict()})
        return bare.eval().requires_grad_(False)

    def log_odds(self, similarity: Tensor, source: Tensor) -> Tensor:
        """Similarities of all sources on one scale, (Q, K), (Q, K) -> (Q, K)."""
        return self.similarity_scale[source] * similarity + self.similarity_bias[source]

    def forward(
        self, log_odds: Tensor, source: Tensor, cell_log_prob: Tensor, present: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights within retrieval (Q, K), log widths in km (Q, K), gate logits (Q,).

        Args:
            seen: (Q, K, F) of `features`.
        """
        logits = log_odds + cell_log_prob
        log_scale = self.log_kernel_km[source].clamp(min=LEAST_LOG_KERNEL_KM)
        gate = self.gate_logit.expand(len(logits))
        if self.config.hidden_dim:
            inner = self.candidate(seen)
            plain = logits.masked_fill(~present, -torch.inf).softmax(-1).nan_to_num(0.0)
            mean = (plain[..., None] * inner).sum(-2)
            most = inner.masked_fill(~present[..., None], -1e4).amax(-2)
            pooled = torch.cat([mean, most], -1)
            both = torch.cat([inner, pooled[:, None].expand(-1, inner.shape[1], -1)], -1)
            logits = logits + self.score(both)[..., 0]
            whole = self.whole(pooled)
            gate = gate + whole[:, 0]
            log_scale = log_scale + 1.5 * torch.tanh(whole[:, 1:])
        return logits.masked_fill(~present, -torch.inf).log_softmax(-1), log_scale, gate

    def weigh(self, evidence: Evidence) -> Weighed:
        """The mixture of each query."""
        has_any = np.asarray(evidence.present.any(-1), np.float64)
        if evidence.present.shape[1] == 0:
            nothing = np.zeros_like(evidence.similarity)
            return Weighed(nothing, np.ones_like(nothing), has_any, evidence.cells.probability)
        with torch.inference_mode():
            inputs = self._inputs(evidence)
            log_weight, log_scale, gate = self(*inputs)
            probability = torch.from_numpy(evidence.cells.probability)
            cells = self.supported(probability, inputs[0].double(), *_membership(evidence))
            share = np.asarray(torch.sigmoid(gate).double().numpy() * has_any)
            weight = np.where(evidence.present, log_weight.double().exp().numpy(), 0.0)
        weight = np.nan_to_num(weight) * share[:, None]
        return Weighed(weight, np.exp(log_scale.double().numpy()), share, cells.numpy())

    def supported(self, probability: Tensor, log_odds: Tensor, present: Tensor, within: Tensor) -> Tensor:
        """The chosen cells' probabilities after retrieval spoke for those that hold good candidates.

        Args:
            probability: (Q, C) before.
            log_odds: (Q, K) of the candidates.
            present: (Q, K) False in padding.
            within: (Q, K, C) whether the cell holds the candidate.
        """
        worst = log_odds.masked_fill(~present, torch.inf).amin(-1, keepdim=True)
        worst = torch.where(present.any(-1, keepdim=True), worst - 1.0, 0.0)
        best = log_odds[..., None].masked_fill(~within, -torch.inf).amax(1)
        logits = torch.log(probability + 1e-30) + self.cell_support * torch.maximum(best, worst)
        return probability.sum(-1, keepdim=True) * logits.softmax(-1)

    def _inputs(self, evidence: Evidence) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        source = torch.from_numpy(evidence.source)
        log_odds = self.log_odds(torch.from_numpy(evidence.similarity).float(), source)
        seen = np.zeros((*evidence.present.shape, len(FEATURES)))
        if self.config.hidden_dim:
            seen = features(evidence, log_odds.detach().double().numpy())
        return (
            log_odds,
            source,
            torch.from_numpy(evidence.cell_log_prob).float(),
            torch.from_numpy(evidence.present),
            torch.from_numpy(seen).float(),
        )


def _membership(evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Which candidates there are, (Q, K), and in which of the chosen cells they lie, (Q, K, C)."""
    present, column = torch.from_numpy(evidence.present), torch.from_numpy(evidence.column)
    within = column[..., None] == torch.arange(evidence.cells.cell_id.shape[1])
    return present, within & present[..., None]


def fit_reranker(
    evidence: Evidence, truth_unit: FloatArray, config: RerankerConfig, *, seed: int = 0, epochs: int = 40
) -> Reranker:
    """The reranker under which the true places are most likely.

    Args:
        evidence: of Q held-out queries.
        truth_unit: (Q, 3) where they were taken.
        config: its size.
        seed: of initial weights and of the order of queries.
        epochs: passes over the queries that train the network over candidates.

    Raises:
        ConfigError: no query has a candidate.
    """
    if not evidence.present.any():
        raise ConfigError(
            "no query has a candidate, so there is nothing to fit: is the database of the places of the queries?"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reranker = Reranker(config)
        found = np.flatnonzero(evidence.present.any(-1))
        evidence, truth_unit = evidence[found], truth_unit[found]
        off_km = torch.from_numpy(chord_km(evidence.unit, truth_unit[:, None])[..., 0]).float()
        kernels = torch.from_numpy(evidence.cells.kernels(truth_unit[:, None])[:, 0]).float()
        probability = torch.from_numpy(evidence.cells.probability).float()
        raw = torch.from_numpy(evidence.similarity).float()
        source, (present, within) = torch.from_numpy(evidence.source), _membership(evidence)
        cell = torch.from_numpy(evidence.cell_log_prob).float()

        def loss(rows: Tensor, seen: Tensor) -> Tensor:
            log_odds = reranker.log_odds(raw[rows], source[rows])
            log_weight, log_scale, gate = reranker(log_odds, source[rows], cell[rows], present[rows], seen)
            kernel = -0.5 * (off_km[rows] / log_scale.exp()) ** 2 - 2 * log_scale - float(np.log(2 * np.pi))
            retrieval = (log_weight + kernel).logsumexp(-1)
            cells = reranker.supported(probability[rows], log_odds, present[rows], within[rows])
            regression = torch.log(NOWHERE + (cells * kernels[rows]).sum(-1))
            mixture = torch.logaddexp(
                nn.functional.logsigmoid(gate) + retrieval, nn.functional.logsigmoid(-gate) + regression
            )
            return -torch.logaddexp(mixture, torch.tensor(float(np.log(NOWHERE)))).mean()

        everything = torch.arange(len(raw))
        plain = [
            reranker.similarity_scale,
            reranker.similarity_bias,
            reranker.log_kernel_km,
            reranker.gate_logit,
            reranker.cell_support,
        ]
        blank = torch.zeros(*raw.shape, len(FEATURES))
        optimizer: torch.optim.Optimizer = torch.optim.Adam(
            [{"params": plain[:1], "lr": 0.5}, {"params": plain[1:], "lr": 0.05}]
        )
        for _ in range(200):
            optimizer.zero_grad()
            loss(everything, blank).backward()
            optimizer.step()
        if config.hidden_dim:
            for parameter in plain:  # features are made of them, and plain fusion stays what it is
                parameter.requires_grad_(False)
            # In pieces, since a query's features look at every pair of its candidates.
            pieces = np.array_split(np.arange(len(raw)), -(-len(raw) // 256))
            seen = torch.cat([reranker._inputs(evidence[rows])[4] for rows in pieces])
            learnt = [p for p in reranker.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(learnt, lr=2e-3, weight_decay=1e-2)
            batch = 256
            steps = epochs * -(-len(raw) // batch)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(epochs):
                for rows in torch.randperm(len(raw)).split(batch):
                    optimizer.zero_grad()
                    loss(rows, seen[rows]).backward()
                    optimizer.step()
                    schedule.step()
    return reranker.eval().requires_grad_(False)
