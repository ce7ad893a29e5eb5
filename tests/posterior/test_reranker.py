"""The mixture in NumPy against the network of torch that is fitted."""

import numpy as np
import pytest
import torch

from geoloc.posterior.evidence import CellEvidence, Evidence, features
from geoloc.posterior.reranker import Reranker
from geoloc.posterior.reranker_network import RerankerConfig, RerankerNetwork, _covered, _masses
from geoloc.search.candidates import Candidates
from quadtree.sphere import latlon_to_unit

Q, K, C = 5, 12, 4


def made_up(seed: int, num_databases: int = 1) -> Evidence:
    """Candidates of three sources in and beside cells; one query has none, and others have padding."""
    rng = np.random.default_rng(seed)
    latlon = np.stack([rng.uniform(-5, 5, (Q, K)), rng.uniform(-5, 5, (Q, K))], -1)
    cells = CellEvidence(
        np.tile(np.arange(C), (Q, 1)),
        latlon_to_unit(latlon[:, :C]),
        rng.dirichlet(np.ones(C), Q) * 0.9,
        rng.uniform(10, 100, (Q, C)),
    )
    row_id = np.where(rng.random((Q, K)) < 0.8, rng.integers(0, 99, (Q, K)), -1)
    row_id[0] = -1
    return Evidence.of_candidates(
        cells,
        Candidates(
            row_id,
            rng.uniform(0.2, 1, (Q, K)).astype(np.float32),
            latlon,
            rng.integers(0, 3, (Q, K)).astype(np.uint8),
        ),
        rng.integers(0, num_databases, (Q, K)),
        np.log(rng.uniform(0.01, 0.5, (Q, K))),
        rng.integers(0, C + 2, (Q, K)),
    )


@pytest.mark.parametrize("num_databases", [1, 3])
@pytest.mark.parametrize("hidden_dim", [0, 8])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_the_fitted_network_says(hidden_dim, seed, num_databases):
    torch.manual_seed(seed)
    reranker = RerankerNetwork(RerankerConfig(hidden_dim=hidden_dim, num_databases=num_databases)).double()
    for parameter in reranker.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    evidence = made_up(seed, num_databases)
    source, present, column = (
        torch.from_numpy(a) for a in (evidence.group, evidence.present, evidence.column)
    )
    with torch.no_grad():
        log_odds = reranker.log_odds(torch.from_numpy(evidence.similarity), source)
        seen = torch.from_numpy(features(evidence, log_odds.numpy()))
        log_within, support, log_scale, gate = reranker(log_odds, source, present, column, C, seen)
        elsewhere = torch.from_numpy(evidence.cell_log_prob).exp()
        cells, mass = _masses(torch.from_numpy(evidence.cells.probability), support, elsewhere, column)
        share = gate.sigmoid() * present.any(-1)
        weight = share[:, None] * mass * log_within.exp()
        own = cells * (1 - share[:, None] * _covered(present, column, C))
    found = Reranker(
        reranker.config, {name: t.numpy() for name, t in reranker.state_dict().items()}
    ).mixture_weights(evidence)
    assert np.allclose(found.weight, weight, rtol=1e-9, atol=1e-12)
    assert np.allclose(found.scale_km, log_scale.exp(), rtol=1e-9)
    assert np.allclose(found.cell_weight, own, rtol=1e-9, atol=1e-12)
    assert np.allclose(found.gate, share, rtol=1e-9)
    assert found.weight[0].tolist() == [0.0] * K


def test_shapes_are_those_of_the_parameters():
    for hidden_dim in (0, 16):
        config = RerankerConfig(hidden_dim=hidden_dim)
        state = RerankerNetwork(config).state_dict()
        assert config.shapes() == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_without_parameters_it_is_the_first_guess_of_plain_fusion():
    evidence = made_up(0)
    expected = RerankerNetwork(RerankerConfig(hidden_dim=0)).reranker().mixture_weights(evidence)
    found = Reranker.default().mixture_weights(evidence)
    assert np.array_equal(found.weight, expected.weight)
    assert np.array_equal(found.cell_weight, expected.cell_weight)


def test_plain_fusion_leaves_the_network_out():
    torch.manual_seed(0)
    network = RerankerNetwork(RerankerConfig(hidden_dim=8)).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    bare = RerankerNetwork(RerankerConfig(hidden_dim=0)).double()
    bare.load_state_dict({name: network.state_dict()[name] for name in bare.state_dict()})
    evidence = made_up(1)
    found = network.reranker().plain().mixture_weights(evidence)
    expected = bare.reranker().mixture_weights(evidence)
    assert np.allclose(found.weight, expected.weight, rtol=1e-5, atol=1e-9)
    assert np.allclose(found.cell_weight, expected.cell_weight, rtol=1e-5, atol=1e-9)
