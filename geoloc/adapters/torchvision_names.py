"""Convolutional trunks with torchvision's names, complete or numbered by part, as timm's models.

torchvision's ResNets and VGG have timm's own names; those of its EfficientNets differ. Checkpoints of place
recognition keep a trunk as a Sequential of its children, so that names become numbers.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import ConfigError

# Blocks of each stage, whether they are bottlenecks, and the second convolution's inputs in the first of them.
_RESNETS = {
    ((2, 2, 2, 2), False, 64): "resnet18",
    ((3, 4, 6, 3), False, 64): "resnet34",
    ((3, 4, 6, 3), True, 64): "resnet50",
    ((3, 4, 23, 3), True, 64): "resnet101",
    ((3, 8, 36, 3), True, 64): "resnet152",
    ((3, 4, 6, 3), True, 4): "resnext50_32x4d",
    ((3, 4, 23, 3), True, 4): "resnext101_32x4d",
    ((3, 4, 23, 3), True, 8): "resnext101_32x8d",
    ((3, 4, 23, 3), True, 16): "resnext101_32x16d",
}
# Channels of the output, and blocks of the first stage.
_EFFICIENTNETS = {
    (1280, 1): "b0",
    (1280, 2): "b1",
    (1408, 2): "b2",
    (1536, 2): "b3",
    (1792, 2): "b4",
    (2048, 3): "b5",
    (2304, 3): "b6",
    (2560, 4): "b7",
}
_RESNET_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_FEATURES = {  # numbers of the convolutions
    (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28): "vgg16",
    (0, 3, 6, 8, 10): "alexnet",
}


def read_trunk(file: ForeignTensors, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Take the tensors of a trunk.

    Args:
        file: tensors of the file.
        prefix: prefix of the parts' numbers, or of "model." and their names.

    Returns:
        Fields of a BackboneConfig, the state with timm's names, and the stride of the map in pixels.

    Raises:
        ConfigError: the trunk is unknown.
    """
    if file.has(f"{prefix}model."):
        prefix += "model."
        file.drop(f"{prefix}classifier.")  # GSV-Cities keeps it in its EfficientNets
        state = file.take_all(prefix)
        return _efficientnet(file, state, {}) if "conv_stem.weight" in state else _resnet(file, state)
    counted = file.take_all(prefix)
    first = counted.get("0.weight")
    if first is not None and first.shape[-1] == 7:
        names = {
            n: ".".join([_RESNET_CHILDREN.get(n.split(".")[0], "?"), *n.split(".")[1:]]) for n in counted
        }
        return _resnet(file, {names[n]: tensor for n, tensor in counted.items()})
    numbers = [n.split(".")[0] for n in counted if n.endswith("weight") and n.count(".") == 1]
    if all(n.isdigit() for n in numbers) and (name := _FEATURES.get(tuple(sorted(map(int, numbers))))):
        state = {f"features.{n}": tensor for n, tensor in counted.items()}
        return {"timm": name, "crop_after": f"features.{max(map(int, numbers))}"}, state, 16
    if "0.0.0.weight" in counted:
        state = {_efficientnet_name(n.removeprefix("0.")): tensor for n, tensor in counted.items()}
        return _efficientnet(file, state, {"batch_norm_eps": 1e-3})
    raise _unknown(file, counted)


def _resnet(file: ForeignTensors, state: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    stages = [len({n.split(".")[1] for n in state if n.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4)]
    depth = sum(count > 0 for count in stages)
    is_bottleneck = "layer1.0.conv3.weight" in state
    second = state.get("layer1.0.conv2.weight")
    for (blocks, bottleneck, inputs), name in _RESNETS.items():
        same = second is not None and (bottleneck, inputs) == (is_bottleneck, second.shape[1])
        if same and depth and tuple(stages[:depth]) == blocks[:depth]:
            cropped = {} if depth == 4 else {"crop_after": f"layer{depth}"}
            return {"timm": name} | cropped, state, 2 ** (depth + 1)
    raise _unknown(file, state)


def _efficientnet(
    file: ForeignTensors, state: dict[str, Tensor], of_large: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """`of_large`: what torchvision's B5 to B7 have otherwise."""
    head = state.get("conv_head.weight")
    first_stage = {n.split(".")[2] for n in state if n.startswith("blocks.0.")}
    size = None if head is None else _EFFICIENTNETS.get((len(head), len(first_stage)))
    if size is None:
        raise _unknown(file, state)
    return {"timm": f"efficientnet_{size}"} | (of_large if size >= "b5" else {}), state, 32


def _efficientnet_name(name: str) -> str:
    """Timm's name of torchvision's features.`name`."""
    stage, rest = name.split(".", 1)
    if stage in ("0", "8"):
        part = {("0", "0"): "conv_stem", ("0", "1"): "bn1", ("8", "0"): "conv_head", ("8", "1"): "bn2"}
        number, last = rest.split(".", 1)
        return f"{part.get((stage, number), '?')}.{last}"
    match = re.fullmatch(r"(\d+)\.block\.(\d)\.(\w+)\.(\w+)", rest)
    if match is None:
        return f"?.{name}"
    block, part_number, inner, last = match.groups()
    # Blocks of the first stage have no expansion.
    layers = ["conv_pw bn1", "conv_dw bn2", "se", "conv_pwl bn3"]
    if stage == "1":
        layers = ["conv_dw bn1", "se", "conv_pw bn2"]
    names = layers[int(part_number)].split()
    if names == ["se"]:
        names = ["se.conv_reduce", "se.conv_expand"]
    return f"blocks.{int(stage) - 1}.{block}.{names[int(inner[-1]) - (inner[:2] == 'fc')]}.{last}"


def _unknown(file: ForeignTensors, state: dict[str, Tensor]) -> ConfigError:
    begin = ", ".join(list(state)[:3]) or "nothing"
    return ConfigError(
        f"{file.origin} has an unknown trunk (it begins with {begin}): "
        "known are torchvision's ResNets and ResNeXts, VGG-16 and AlexNet without their last ReLU and pooling, "
        "EfficientNets, ViT-B/16, CCT-14/7x2 and Swin V2"
    )
