"""Comparisons in double precision, and how far rounding alone moves what a network returns in single precision."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SINGLE_ROUNDING = 2.0**-24  # of a number in single precision, relative
FACTOR = 50.0  # a network rounds in every step, not its weights alone; up to 15 times was measured


@contextmanager
def double_precision() -> Iterator[None]:
    """Networks built within are in double precision, so that no rounding of what they resample stays in them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def doubled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with its floating-point tensors in double precision."""
    return {name: t.double() if t.is_floating_point() else t for name, t in state.items()}


def rounding_sensitivity(network: nn.Module, run: Callable[[nn.Module], Tensor]) -> float:
    """The largest change of `run(network)` in double precision, when every weight moves by one rounding to single."""
    exact = copy.deepcopy(network).double()
    moved = copy.deepcopy(exact)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for tensor in moved.state_dict().values():
            if tensor.is_floating_point():
                signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
                tensor.mul_(1 + SINGLE_ROUNDING * signs)
        return float((run(moved) - run(exact)).abs().max())
