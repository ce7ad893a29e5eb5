"""The reranker against its formula by hand, and what it learns where the right answer is known."""

import numpy as np
import pytest
import torch

from geoloc.errors import ConfigError
from geoloc.posterior.evidence import NOWHERE, CellEvidence, Evidence, chord_km, features
from geoloc.posterior.reranker import Reranker, RerankerConfig
from geoloc.posterior.reranker_network import RerankerNetwork, fit_reranker
from geoloc.search.candidates import Candidates
from quadtree.sphere import haversine_km, latlon_to_unit


def made_up(num_queries: int, seed: int, *, telling: float = 1.0, k: int = 12) -> tuple[Evidence, np.ndarray]:
    """Queries whose right reference (at 20 km or so) has the larger similarity; cells know only some 500 km."""
    rng = np.random.default_rng(seed)
    lat = rng.uniform(-60, 60, num_queries)
    truth = np.stack([lat, rng.uniform(-180, 180, num_queries)], -1)
    off = rng.normal(0, 3.0, (num_queries, k, 2))
    off[:, 0] = rng.normal(0, 0.15, (num_queries, 2))
    place = truth[:, None] + off
    similarity = rng.normal(0.3, 0.1, (num_queries, k))
    similarity[:, 0] += 0.25 * telling
    order = rng.permuted(np.tile(np.arange(k), (num_queries, 1)), axis=1)
    place, similarity = (
        place[np.arange(num_queries)[:, None], order],
        np.take_along_axis(similarity, order, 1),
    )
    center = truth + rng.normal(0, 4.0, truth.shape)
    cells = CellEvidence(
        np.zeros((num_queries, 1), np.int64),
        latlon_to_unit(center)[:, None],
        np.full((num_queries, 1), 0.9),
        np.full((num_queries, 1), 400.0),
    )
    row_id = np.arange(num_queries * k).reshape(num_queries, k)
    source = np.zeros((num_queries, k), np.uint8)
    evidence = Evidence.of_candidates(
        cells,
        Candidates(row_id, similarity.astype(np.float32), place, source),
        np.zeros((num_queries, k), np.int64),
        np.full((num_queries, k), np.log(0.9)),
        np.zeros((num_queries, k), np.int64),
    )
    return evidence, latlon_to_unit(truth)


def log_likelihood(reranker: Reranker, evidence: Evidence, truth_unit: np.ndarray) -> float:
    """Mean log density of the truth under the mixture, by the formula."""
    weighed = reranker.mixture_weights(evidence)
    d = chord_km(evidence.unit, truth_unit[:, None])[..., 0]
    kernel = np.exp(-0.5 * (d / weighed.scale_km) ** 2) / (2 * np.pi * weighed.scale_km**2)
    cells = (evidence.cells.kernels(truth_unit[:, None])[:, 0] * weighed.cell_weight).sum(-1)
    density = (weighed.weight * kernel).sum(-1) + cells + NOWHERE
    return float(np.log(density).mean())


def test_plain_fusion_by_hand():
    evidence, _ = made_up(3, 0)
    reranker = RerankerNetwork(RerankerConfig(hidden_dim=0))
    with torch.no_grad():
        reranker.similarity_scale[0] = 7.0
        reranker.gate_logit.fill_(1.0)
        reranker.log_kernel_km[0] = 2.0
    weighed = reranker.reranker().mixture_weights(evidence)
    logits = 7.0 * evidence.similarity
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    gate = 1 / (1 + np.exp(-1.0))
    assert weighed.gate == pytest.approx(np.full(3, gate), abs=1e-6)
    assert weighed.weight == pytest.approx(
        gate * 0.9 * share, abs=1e-6
    )  # all are in the one cell, which has 0.9
    assert weighed.cell_weight == pytest.approx(np.full((3, 1), (1 - gate) * 0.9), abs=1e-6)
    assert weighed.scale_km == pytest.approx(np.full((3, 12), np.exp(2.0)), rel=1e-6)


def test_sources_come_to_one_scale():
    evidence, _ = made_up(2, 0)
    evidence.source[:, ::2] = 1
    reranker = RerankerNetwork(RerankerConfig(hidden_dim=0))
    with torch.no_grad():
        reranker.similarity_scale[:2] = torch.tensor([10.0, 30.0])
        reranker.similarity_bias[:2] = torch.tensor([0.0, -5.0])
    logits = np.where(evidence.source == 1, 30 * evidence.similarity - 5, 10 * evidence.similarity)
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    weighed = reranker.reranker().mixture_weights(evidence)
    assert weighed.weight / weighed.gate[:, None] / 0.9 == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize("hidden_dim", [0, 16])
def test_fitting_raises_the_likelihood_of_places_it_did_not_see(hidden_dim):
    train, test = made_up(600, 1), made_up(300, 2)
    fitted = fit_reranker(*train, RerankerConfig(hidden_dim=hidden_dim), epochs=15)
    before = log_likelihood(Reranker.default(), *test)
    after = log_likelihood(fitted, *test)
    cells_alone = float(np.log(test[0].cells.density(test[1][:, None])[:, 0]).mean())
    assert after > before + 0.5
    assert after > cells_alone + 0.5
    # The kernel is what the right references are off by: 0.15 degrees are 17 km.
    assert 10 < float(np.exp(fitted.parameters["log_kernel_km"][0])) < 40
    if hidden_dim:
        assert after > log_likelihood(fitted.plain(), *test) - 0.05


def test_references_that_tell_nothing_leave_the_gate_shut():
    evidence, truth = made_up(400, 3, telling=0.0)
    away = latlon_to_unit(np.random.default_rng(0).uniform(-60, 60, (400, 12, 2)))
    useless = Evidence.of_candidates(
        evidence.cells,
        Candidates(
            evidence.row_id,
            evidence.similarity.astype(np.float32),
            np.random.default_rng(0).uniform(-60, 60, (400, 12, 2)),
            evidence.source.astype(np.uint8),
        ),
        evidence.database,
        evidence.cell_log_prob,
        np.zeros((400, 12), np.int64),
    )
    assert useless.unit == pytest.approx(away)
    fitted = fit_reranker(useless, truth, RerankerConfig(hidden_dim=0))
    assert fitted.mixture_weights(useless).gate.max() < 0.1


def test_padding_changes_nothing_and_no_candidate_is_no_gate():
    evidence, truth = made_up(40, 4)
    fitted = fit_reranker(evidence, truth, RerankerConfig(hidden_dim=8), epochs=3)
    pad = ((0, 0), (0, 5))
    padded = Evidence(
        evidence.cells,
        np.pad(evidence.similarity, pad),
        np.pad(evidence.present, pad),
        np.pad(evidence.source, pad),
        np.pad(evidence.database, pad),
        np.concatenate([evidence.unit, np.tile([0.0, 0, 1], (40, 5, 1))], 1),
        np.pad(evidence.cell_log_prob, pad),
        np.pad(evidence.column, pad, constant_values=-1),
        np.pad(evidence.row_id, pad, constant_values=-1),
        np.pad(evidence.latlon_deg, (*pad, (0, 0))),
    )
    a, b = fitted.mixture_weights(evidence), fitted.mixture_weights(padded)
    assert b.weight[:, :12] == pytest.approx(a.weight, abs=1e-6)
    assert not b.weight[:, 12:].any()
    assert b.gate == pytest.approx(a.gate, abs=1e-6)
    padded.present[7] = False
    none = fitted.mixture_weights(padded)
    assert none.gate[7] == 0
    assert not none.weight[7].any()
    assert np.isfinite(none.weight).all()
    assert fitted.mixture_weights(Evidence.nothing(evidence.cells)).gate.tolist() == [0.0] * 40


def test_features_by_hand():
    cells = CellEvidence(
        np.array([[4]]), latlon_to_unit(np.array([[[0.0, 0.0]]])), np.array([[0.5]]), np.array([[100.0]])
    )
    place = np.array([[[0.0, 1.0], [0.0, 1.2], [0.0, 30.0]]])
    evidence = Evidence.of_candidates(
        cells,
        Candidates(
            np.array([[0, 1, 2]]),
            np.array([[0.5, 0.7, 0.6]], np.float32),
            place,
            np.array([[0, 1, 2]], np.uint8),
        ),
        np.zeros((1, 3), np.int64),
        np.log([[0.5, 0.5, 0.01]]),
    )
    log_odds = np.array([[1.0, 3.0, 2.0]])
    seen = features(evidence, log_odds)[0]
    assert seen[:, 0] == pytest.approx(log_odds[0] / 5)
    assert seen[:, 1] == pytest.approx([-0.4, 0, -0.2])
    assert seen[:, 2] == pytest.approx(np.log2([3, 1, 2]) / 5)
    assert seen[:, 3] == pytest.approx(np.log([0.5, 0.5, 0.01]) / 5)
    d = haversine_km(np.array([0.0, 0.0]), place[0])
    density = NOWHERE + 0.5 * np.exp(-0.5 * (d / 100) ** 2) / (2 * np.pi * 100**2)
    assert seen[:, 4] == pytest.approx(np.log(density / density.max()) / 5, abs=1e-3)
    assert seen[:, 5] == pytest.approx(np.log1p(d) / 5, abs=5e-3)
    share = np.exp([1.0, 3, 2]) / np.exp([1.0, 3, 2]).sum()
    gap = haversine_km(place[0, 0], place[0, 1])
    near = np.mean([np.exp(-0.5 * (gap / km) ** 2) for km in (30, 100)])
    assert seen[:, 6] == pytest.approx(np.log(1e-3 + near * np.array([share[1], share[0], 0])) / 5, abs=1e-3)
    assert seen[:, 7:].tolist() == [[0, 0], [1, 0], [0, 1]]


def test_nothing_to_fit_and_impossible_sizes_are_refused():
    evidence, truth = made_up(4, 0)
    evidence.present[:] = False
    with pytest.raises(ConfigError, match="no query has a candidate"):
        fit_reranker(evidence, truth, RerankerConfig())
    with pytest.raises(ConfigError, match=r"candidates_per_source 0 and"):
        RerankerConfig(candidates_per_source=0)


def two_cells() -> Evidence:
    """Three chosen cells and a neighbour: one candidate in the first, two in the second, none in the third."""
    cells = CellEvidence(
        np.array([[4, 9, 2]]),
        latlon_to_unit(np.array([[[0.0, 0.0], [0.0, 20.0], [50.0, 0.0]]])),
        np.array([[0.5, 0.3, 0.1]]),
        np.full((1, 3), 100.0),
    )
    return Evidence.of_candidates(
        cells,
        Candidates(
            np.array([[0, 1, 2, 3]]),
            np.array([[0.2, 0.6, 0.5, 0.9]], np.float32),
            np.array([[[0.0, 1.0], [0.0, 20.0], [0.0, 21.0], [0.0, 40.0]]]),
            np.zeros((1, 4), np.uint8),
        ),
        np.zeros((1, 4), np.int64),
        np.log([[0.5, 0.3, 0.3, 0.02]]),
        np.array([[4, 9, 9, 7]]),
    )


def test_retrieval_says_where_in_a_cell_and_not_in_which_by_hand():
    evidence = two_cells()
    assert evidence.column.tolist() == [[0, 1, 1, -1]]
    reranker = RerankerNetwork(RerankerConfig(hidden_dim=0))
    with torch.no_grad():
        reranker.similarity_scale[0] = 10.0
        reranker.gate_logit.fill_(1.0)
    weighed = reranker.reranker().mixture_weights(evidence)
    gate = 1 / (1 + np.exp(-1.0))
    better = 1 / (1 + np.exp(-1.0))  # log-odds of 6 against 5
    assert weighed.weight[0] == pytest.approx(
        gate * np.array([0.5, 0.3 * better, 0.3 * (1 - better), 0.02]), abs=1e-6
    )
    # The third cell has no candidate, and keeps all that it has.
    assert weighed.cell_weight[0] == pytest.approx([0.5 * (1 - gate), 0.3 * (1 - gate), 0.1], abs=1e-6)


def test_the_network_may_support_cells_and_their_sum_stays():
    reranker = RerankerNetwork(RerankerConfig(hidden_dim=8)).eval()
    with torch.no_grad():
        reranker.score[-1].bias.copy_(torch.tensor([0.0, 0.7]))  # every candidate supports its cell alike
    weighed = reranker.reranker().mixture_weights(two_cells())
    by_cell = weighed.cell_weight[0].copy()
    by_cell[0] += weighed.weight[0, 0]
    by_cell[1] += weighed.weight[0, 1:3].sum()
    gained = np.array([0.5, 0.3, 0.1]) * np.exp([0.7, 0.7, 0.0])
    assert by_cell == pytest.approx(0.9 * gained / gained.sum(), abs=1e-5)
