"""Trainable parameters of a tower: none, all, the last blocks, or low-rank updates of the attentions.

Blocks are found by structure, in open_clip's and timm's towers of any depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoloc.errors import ConfigError
from geoloc.models.lora import LoraQkvLinear, LoraSelfAttention


@dataclass(frozen=True)
class FineTune:
    """Trainable parameters of a backbone.

    Attributes:
        mode: "frozen": none; "full": all; "last_blocks": the last blocks and all parts after them;
            "lora": low-rank updates of the attentions' query, key and value projections.
        num_blocks: for "last_blocks": transformer blocks, or stages of a convolutional trunk.
        lora_rank: rank of the update; this and the next two are for "lora", with OSV-5M's defaults.
        lora_alpha: the update is scaled by lora_alpha / lora_rank.
        lora_dropout: dropout on the input of the update.
        freeze_batch_norm: whether batch norms keep their statistics in training mode; scale and shift train as `mode`
            says.
        freeze_before: for "full": everything before this part of the trunk is frozen, such as "layer3", "features.24"
            or "blocks.4".
        freeze_blocks: for "full": number of first blocks, or stages, that are frozen with everything before them.

    Raises:
        ConfigError: freeze_before or freeze_blocks with another mode, or both.
    """

    mode: Literal["frozen", "full", "last_blocks", "lora"]
    num_blocks: int = 1
    lora_rank: int = 32
    lora_alpha: float = 256
    lora_dropout: float = 0.1
    freeze_batch_norm: bool = True
    freeze_before: str | None = None
    freeze_blocks: int | None = None

    def __post_init__(self) -> None:
        if self.freeze_before is None and self.freeze_blocks is None:
            return
        if self.mode != "full":
            raise ConfigError(
                f"freeze_before and freeze_blocks are for fine-tuning in 'full'; found the mode {self.mode!r}"
            )
        if self.freeze_before is not None and self.freeze_blocks is not None:
            raise ConfigError("freeze by name (freeze_before) or by depth (freeze_blocks), not both")


def let_train(tower: nn.Module, strategy: FineTune) -> None:
    """Set `requires_grad` of a tower's parameters; `eval_frozen` sets the modes.

    Raises:
        ConfigError: the tower has no such blocks or attentions, or has LoRA already.
    """
    if any(isinstance(module, LoraQkvLinear | LoraSelfAttention) for module in tower.modules()):
        raise ConfigError("this backbone has LoRA already: build it anew and load merge_lora()'s weights")
    tower.requires_grad_(strategy.mode == "full")
    if strategy.freeze_before is not None:
        _freeze_before(trunk_of(tower), strategy.freeze_before)
    elif strategy.freeze_blocks is not None:
        names = block_names(tower)
        if not 0 <= strategy.freeze_blocks < len(names):
            raise ConfigError(
                f"freeze_blocks is {strategy.freeze_blocks}, but this tower has {len(names)} blocks; use the mode "
                "'frozen' to train none of them"
            )
        _freeze_before(trunk_of(tower), names[strategy.freeze_blocks])
    if strategy.mode == "last_blocks":
        for part in _last_parts(tower, strategy.num_blocks):
            part.requires_grad_(True)
    elif strategy.mode == "lora":
        _add_lora(tower, strategy)


def trunk_of(tower: nn.Module) -> nn.Module:
    """The module that part names are relative to: a timm trunk under open_clip's head, or the tower itself."""
    return cast(nn.Module, getattr(tower, "trunk", tower))


def path_to(trunk: nn.Module, name: str) -> Iterator[tuple[nn.Module, list[str], int]]:
    """The path to a named part: each parent, its children's names in order, and the index of the next one.

    Raises:
        ConfigError: there is no such part.
    """
    parent = trunk
    for step in name.split("."):
        children = [child for child, _ in parent.named_children()]
        if step not in children:
            raise ConfigError(
                f"{type(trunk).__name__} has no part {name!r}: where {step!r} should be, it has "
                f"{', '.join(children) or 'nothing'}"
            )
        yield parent, children, children.index(step)
        parent = cast(nn.Module, getattr(parent, step))


def _freeze_before(trunk: nn.Module, name: str) -> None:
    for parent, children, position in path_to(trunk, name):
        for parameter in parent.parameters(recurse=False):  # position embeddings come before all blocks
            parameter.requires_grad_(False)
        for child in children[:position]:
            cast(nn.Module, getattr(parent, child)).requires_grad_(False)


def block_names(tower: nn.Module) -> list[str]:
    """Names of the tower's blocks in order: transformer blocks, or stages of a convolutional trunk.

    Raises:
        ConfigError: no blocks were found.
    """
    trunk = trunk_of(tower)
    children = dict(trunk.named_children())
    for name in ("transformer", "blocks", "stages", "layers"):
        if name in children:
            if hasattr(children[name], "resblocks"):
                name = f"{name}.resblocks"
            return [f"{name}.{child}" for child, _ in trunk.get_submodule(name).named_children()]
    # ResNets, open_clip's and timm's, have no container around layer1 … layer4.
    names = [name for name in children if name.startswith("layer") and name[5:].isdigit()]
    if not names:
        raise ConfigError(
            f"{type(trunk).__name__} has no known blocks: fine-tune it 'full' or leave it 'frozen'"
        )
    return names


def _split_at_blocks(tower: nn.Module) -> tuple[list[nn.Module], list[nn.Module | nn.Parameter]]:
    """The tower's blocks in order, and all parts after them."""
    trunk, names = trunk_of(tower), block_names(tower)
    children = dict(trunk.named_children())
    order = list(children)
    last = names[-1].split(".")[0]
    after: list[nn.Module | nn.Parameter] = [children[name] for name in order[order.index(last) + 1 :]]
    if trunk is not tower:
        after.append(cast(nn.Module, tower.head))
    elif isinstance(projection := getattr(tower, "proj", None), nn.Parameter):
        after.append(projection)
    return [trunk.get_submodule(name) for name in names], after


def _last_parts(tower: nn.Module, num_blocks: int) -> Iterator[nn.Module | nn.Parameter]:
    blocks, after = _split_at_blocks(tower)
    if not 1 <= num_blocks <= len(blocks):
        raise ConfigError(f"num_blocks is {num_blocks}, but this tower has {len(blocks)} blocks")
    yield from blocks[-num_blocks:]
    yield from after


def _add_lora(tower: nn.Module, strategy: FineTune) -> None:
    """Adapt every self-attention in the blocks; a pooling attention after them is not adapted."""
    options = (strategy.lora_rank, strategy.lora_alpha, strategy.lora_dropout)
    blocks, _ = _split_at_blocks(tower)
    found = 0
    for parent in [module for block in blocks for module in block.modules()]:
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.MultiheadAttention):
                setattr(parent, name, LoraSelfAttention(layer, *options))
            # timm's EVA keeps q and v biases beside its qkv layer and does not call the layer: skip it.
            elif name == "qkv" and isinstance(layer, nn.Linear) and getattr(parent, "q_bias", None) is None:
                setattr(parent, name, LoraQkvLinear(layer, *options))
            else:
                continue
            found += 1
    if not found:
        raise ConfigError(
            f"LoRA adapts packed query-key-value projections, and {type(tower).__name__} has none in its "
            "blocks: use 'last_blocks' or 'full'"
        )


def eval_frozen(module: nn.Module, *, freeze_batch_norm: bool) -> None:
    """Set fully frozen modules to evaluation mode, and batch norms on request."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    if freeze_batch_norm and isinstance(module, _BatchNorm):
        module.eval()
    for child in module.children():
        eval_frozen(child, freeze_batch_norm=freeze_batch_norm)
