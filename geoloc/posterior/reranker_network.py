"""The reranker as a network: the formula of the mixture over the Earth, and its fit.

    log v_j   = a_s sim_j + b_s + f(candidate j, all candidates), scaled to sum 1 over the candidates of one cell
    log P'(c) = log P(c) + sum_{j in c} v_j h(candidate j, all candidates), scaled to the same sum
    density   = sum_c P'(c) [g sum_{j in c} v_j N(y; r_j, sigma_s e^delta) + (1 - g) N(y; p_c, sigma_c)]
                + NOWHERE

The classifier gives the probability of a cell, and retrieval the location in the cell: cosines of different cells are
compared only by the learnt cell support h. A cell without candidates keeps its own point. a, b and sigma bring every
source (aerial, street, location) to one scale. The gate g is the share of retrieval, and delta changes its width; both
depend on the whole set of candidates. With hidden_dim 0 there is no f and no h, and g and delta are constants: plain
fusion. All parameters are fitted by maximum likelihood of held-out locations, those of plain fusion first.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.posterior.evidence import FEATURES, NOWHERE, Evidence, chord_km, features
from geoloc.posterior.reranker import LEAST_LOG_KERNEL_KM, Reranker, RerankerConfig

FloatArray = NDArray[np.float64]


class RerankerNetwork(nn.Module):
    """The network that is fitted; see the module's docstring."""

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__()
        self.config = config
        self.similarity_scale = nn.Parameter(torch.full((config.num_groups,), 20.0))
        self.similarity_bias = nn.Parameter(torch.zeros(config.num_groups))
        self.log_kernel_km = nn.Parameter(torch.full((config.num_groups,), 3.0))
        self.gate_logit = nn.Parameter(torch.zeros(()))
        h = config.hidden_dim
        if h:
            self.candidate = nn.Sequential(nn.Linear(len(FEATURES), h), nn.GELU(), nn.Linear(h, h), nn.GELU())
            self.score = nn.Sequential(nn.Linear(3 * h, h), nn.GELU(), nn.Linear(h, 2))
            self.global_head = nn.Sequential(nn.Linear(2 * h, h), nn.GELU(), nn.Linear(h, 2))
            for parameter in (*self.score[-1].parameters(), *self.global_head[-1].parameters()):
                nn.init.zeros_(parameter)  # starts as plain fusion

    def log_odds(self, similarity: Tensor, group: Tensor) -> Tensor:
        """Similarities of all databases and sources on one scale, (Q, K), (Q, K) -> (Q, K)."""
        return self.similarity_scale[group] * similarity + self.similarity_bias[group]

    def forward(
        self, log_odds: Tensor, group: Tensor, present: Tensor, column: Tensor, num_cells: int, seen: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log weights within each cell (Q, K), support of cells (Q, C), log widths in km (Q, K), gate logits (Q,).

        Args:
            column: (Q, K) which of the C = `num_cells` chosen cells holds the candidate; -1 is none of them.
            seen: (Q, K, F) features.
        """
        log_scale = self.log_kernel_km[group].clamp(min=LEAST_LOG_KERNEL_KM)
        gate = self.gate_logit.expand(len(log_odds))
        support_of_candidate = torch.zeros_like(log_odds)
        if self.config.hidden_dim:
            hidden = self.candidate(seen)
            plain = log_odds.masked_fill(~present, -torch.inf).softmax(-1).nan_to_num(0.0)
            mean = (plain[..., None] * hidden).sum(-2)
            max_pool = hidden.masked_fill(~present[..., None], -1e4).amax(-2)
            pooled = torch.cat([mean, max_pool], -1)
            both = torch.cat([hidden, pooled[:, None].expand(-1, hidden.shape[1], -1)], -1)
            score, support_of_candidate = self.score(both).unbind(-1)
            log_odds = log_odds + score
            global_out = self.global_head(pooled)
            gate = gate + global_out[:, 0]
            log_scale = log_scale + 1.5 * torch.tanh(global_out[:, 1:])
        log_within = _log_softmax_by_cell(log_odds, present, column, num_cells)
        support = _sum_by_cell(log_within.exp() * support_of_candidate, column, num_cells)
        return log_within, support, log_scale, gate

    def reranker(self) -> Reranker:
        """The NumPy reranker with the current parameters."""
        return Reranker(
            self.config, {name: t.detach().cpu().numpy() for name, t in self.state_dict().items()}
        )

    def _inputs(self, evidence: Evidence) -> tuple[Tensor, Tensor, Tensor, Tensor, int, Tensor]:
        group = torch.from_numpy(evidence.group)
        log_odds = self.log_odds(torch.from_numpy(evidence.similarity).float(), group)
        seen = np.zeros((*evidence.present.shape, len(FEATURES)))
        if self.config.hidden_dim:
            seen = features(evidence, log_odds.detach().double().numpy())
        return (
            log_odds,
            group,
            torch.from_numpy(evidence.present),
            torch.from_numpy(evidence.column),
            evidence.cells.cell_id.shape[1],
            torch.from_numpy(seen).float(),
        )


# Candidates outside the chosen cells form one group of their own: the column before the cells'.


def _log_softmax_by_cell(values: Tensor, present: Tensor, column: Tensor, num_cells: int) -> Tensor:
    """Log of each candidate's share among those of its cell, (Q, K) -> (Q, K); -inf in padding."""
    group = column + 1
    values = values.masked_fill(~present, -torch.inf)
    largest = values.new_full((len(values), num_cells + 1), -torch.inf)
    largest = largest.scatter_reduce(1, group, values.detach(), "amax").clamp(min=-1e30)
    relative = values - largest.gather(1, group)
    total = torch.zeros_like(largest).scatter_add(1, group, relative.exp())
    return relative - total.clamp(min=1e-30).log().gather(1, group)


def _sum_by_cell(values: Tensor, column: Tensor, num_cells: int) -> Tensor:
    """Sums over the candidates of each chosen cell, (Q, K) -> (Q, C)."""
    total = values.new_zeros(len(values), num_cells + 1)
    return total.scatter_add(1, column + 1, values)[:, 1:]


def _covered(present: Tensor, column: Tensor, num_cells: int) -> Tensor:
    """1 for the chosen cells that hold a candidate, 0 for the others, (Q, C)."""
    return (_sum_by_cell(present.double(), column, num_cells) > 0).double()


def _masses(probability: Tensor, support: Tensor, elsewhere: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Cell probabilities after adding the support (Q, C), and that of each candidate's cell (Q, K).

    Args:
        probability: (Q, C) before; 0 in padding.
        support: (Q, C) added to their logarithms.
        elsewhere: (Q, K) probability of a candidate's cell that was not chosen.
    """
    logits = torch.log(probability + 1e-30) + support
    cells = probability.sum(-1, keepdim=True) * logits.softmax(-1)
    return cells, torch.where(column < 0, elsewhere, cells.gather(1, column.clamp(min=0)))


def fit_reranker(
    evidence: Evidence, truth_unit: FloatArray, config: RerankerConfig, *, seed: int = 0, epochs: int = 40
) -> Reranker:
    """Fit a reranker by maximum likelihood of the true locations.

    Args:
        evidence: of Q held-out queries.
        truth_unit: (Q, 3) true locations.
        config: size of the reranker.
        seed: of initial weights and of the order of queries.
        epochs: passes over the queries that train the network over candidates.

    Raises:
        ConfigError: no query has a candidate.
    """
    if not evidence.present.any():
        raise ConfigError(
            "no query has a candidate, so there is nothing to fit: does the database cover the queries' locations?"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RerankerNetwork(config)
        found = np.flatnonzero(evidence.present.any(-1))
        evidence, truth_unit = evidence[found], truth_unit[found]
        off_km = torch.from_numpy(chord_km(evidence.unit, truth_unit[:, None])[..., 0]).float()
        kernels = torch.from_numpy(evidence.cells.kernels(truth_unit[:, None])[:, 0]).float()
        probability = torch.from_numpy(evidence.cells.probability).float()
        elsewhere = torch.from_numpy(evidence.cell_log_prob).float().exp()
        raw = torch.from_numpy(evidence.similarity).float()
        group, present, column = (
            torch.from_numpy(a) for a in (evidence.group, evidence.present, evidence.column)
        )
        num_cells = probability.shape[1]
        covered = _covered(present, column, num_cells).float()

        def loss(rows: Tensor, seen: Tensor) -> Tensor:
            log_odds = network.log_odds(raw[rows], group[rows])
            log_within, support, log_scale, gate = network(
                log_odds, group[rows], present[rows], column[rows], num_cells, seen
            )
            cells, mass = _masses(probability[rows], support, elsewhere[rows], column[rows])
            kernel = -0.5 * (off_km[rows] / log_scale.exp()) ** 2 - 2 * log_scale - float(np.log(2 * np.pi))
            retrieval = (torch.log(mass + 1e-30) + log_within + kernel).logsumexp(-1)
            share = torch.sigmoid(gate)[:, None] * covered[rows]
            regression = torch.log(NOWHERE + (cells * (1 - share) * kernels[rows]).sum(-1))
            return -torch.logaddexp(nn.functional.logsigmoid(gate) + retrieval, regression).mean()

        everything = torch.arange(len(raw))
        plain = [
            network.similarity_scale,
            network.similarity_bias,
            network.log_kernel_km,
            network.gate_logit,
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
            for parameter in plain:  # the features depend on them, and plain fusion stays as fitted
                parameter.requires_grad_(False)
            # In pieces, since features compare every pair of a query's candidates.
            pieces = np.array_split(np.arange(len(raw)), -(-len(raw) // 256))
            seen = torch.cat([network._inputs(evidence[rows])[-1] for rows in pieces])
            learnt = [p for p in network.parameters() if p.requires_grad]
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
    return network.reranker()
