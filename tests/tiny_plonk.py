"""A model that draws places, and its image tower, in milliseconds: PLONK's and transformers' files with random numbers.

Their answers mean nothing, but they differ from image to image, and everything about them is real.
"""

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

WIDTH, FEATURE_DIM = 16, 32

_LAYERS = {
    "time_embedder.map_time.0": (16, 4),
    "time_embedder.map_time.2": (WIDTH, 16),
    "cond_mapper": (WIDTH, FEATURE_DIM),
    "initial_mapper": (WIDTH, 3),
    "blocks.0.ada_map.1": (3 * WIDTH, WIDTH),
    "blocks.0.mlp.0": (32, WIDTH),
    "blocks.0.mlp.3": (WIDTH, 32),
    "final_adaln.1": (2 * WIDTH, WIDTH),
    "final_linear": (3, WIDTH),
}


def plonk_state() -> dict[str, Tensor]:
    """PLONK's network."""
    generator = torch.Generator().manual_seed(0)
    state = {"time_embedder.encode_time.freqs": torch.tensor([1.0, 0.01])}
    for name, shape in _LAYERS.items():
        gain = 0.2 if name == "final_linear" else 1.0  # a gentle field, which is followed in few steps
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * gain * shape[1] ** -0.5
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return state


def plonk_files() -> dict[str, bytes]:
    """A repository of PLONK's."""
    sizes = {"input_dim": 3, "dim": WIDTH, "depth": 1, "expansion": 2, "cond_dim": FEATURE_DIM}
    return {
        "config.json": json.dumps(sizes).encode(),
        "model.safetensors": safetensors.torch.save(plonk_state()),
    }


def street_files() -> dict[str, bytes]:
    """A CLIP as transformers saves it, with an image tower of 32 features for pictures of 28 px."""
    made = Path(__file__).parent / "adapters" / "fixtures" / "plonk_pipeline.json"
    street = json.loads(made.read_text())["street_clip"]
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in street["tensors"].items()}
    return {
        "config.json": json.dumps(street["config"]).encode(),
        "model.safetensors": safetensors.torch.save(state),
    }
