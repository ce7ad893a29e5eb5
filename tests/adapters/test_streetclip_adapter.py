"""transformers' CLIP gave the logits in fixtures/streetclip.json; see HOW.md there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from named_numbers import digest, pictures, state_of
from tiny import tiny_image

from geoloc import Geolocalizer
from geoloc.adapters.options import Options
from geoloc.adapters.streetclip import adapt_both
from geoloc.errors import CheckpointError, ConfigError
from geoloc.localize.zero_shot import ZeroShot

MADE: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "streetclip.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streetclip")
    tensors = state_of(MADE["tensors"], 1.2)
    assert digest(tensors) == MADE["sha256"]
    safetensors.torch.save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(MADE["config"]))
    return path


def test_the_same_logits_as_transformers(folder: Path) -> None:
    adapted, texts = adapt_both(folder, Options())
    assert [[t for t in row if t] for row in texts.tower._tokenize(MADE["sentences"]).tolist()] == MADE[
        "token_ids"
    ]
    network, tower = adapted.network.double(), texts.tower.double()
    with torch.inference_mode():
        of_texts = torch.nn.functional.normalize(tower(MADE["sentences"]), dim=-1)
        cosines = network.embed_images(pictures(28).double(), "query") @ of_texts.T
    logits = texts.logit_scale * cosines
    # The peer's are in single precision.
    theirs = np.array(MADE["logits_per_image"])
    np.testing.assert_allclose(cosines, theirs / texts.logit_scale, rtol=0, atol=1e-6)
    np.testing.assert_allclose(logits.softmax(-1), MADE["probabilities"], rtol=0, atol=5e-6)


def test_country_then_city(folder: Path) -> None:
    model = ZeroShot.from_pretrained(folder)
    cities = {"Japan": ["Kyoto", "Nagasaki"], "France": ["Paris", "Lyon", "Nice"], "Brazil": ["Recife"]}
    countries, found = model.country_and_city(tiny_image(1), cities)
    assert [name for name, _ in countries] == [n for n, _ in model.choose(tiny_image(1), list(cities))]
    assert sum(p for _, p in countries) == pytest.approx(1)
    assert countries[0][1] == max(p for _, p in countries)
    assert {name for name, _ in found} == set(cities[countries[0][0]])
    assert sum(p for _, p in found) == pytest.approx(1)
    other = model.choose(tiny_image(1), list(cities), "A Street View photo in {}.")
    assert dict(other) != pytest.approx(dict(countries))
    for names, template in (([], "{}"), (["a", "a"], "{}"), (["a"], "no place")):
        with pytest.raises(ConfigError, match="none of them twice"):
            model.choose(tiny_image(1), names, template)


def test_its_image_side_is_an_embedding(folder: Path) -> None:
    model = Geolocalizer.from_pretrained(folder)
    assert model.embedding_dim == 16
    assert model.preprocess.image_size_px == 28
    assert model.preprocess.floors_centre


def test_the_activation_matters_and_tensors_are_counted(folder: Path, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    config = json.loads(json.dumps(MADE["config"]))
    config["text_config"]["hidden_act"] = "gelu"
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.inference_mode():
        wrong = adapt_both(tmp_path, Options())[1].tower(["Japan"])
        right = adapt_both(folder, Options())[1].tower(["Japan"])
    assert float((wrong - right).abs().max()) > 1e-3
    safetensors.torch.save_file(tensors | {"strange": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="strange"):
        adapt_both(tmp_path, Options())
