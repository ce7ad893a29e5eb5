"""How far rounding alone moves what a network returns: the bound of a comparison in single precision."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

SINGLE_ROUNDING = 2.0**-24  # of a number in single precision, relative
FACTOR = 50.0  # a network rounds in every step, not its weights alone; up to 15 times was measured


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
