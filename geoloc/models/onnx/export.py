"""Export a torch network as one ONNX graph of the form in `geoloc.models.onnx.graph`.

Backbone and heads are traced separately and joined, so that the backbone can be quantised alone.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.models.network import GeoNetwork
from geoloc.models.onnx.graph import FEATURES, HEADS, IMAGES, MAX_BYTES, VIEWS, embedding_output, import_onnx

OPSET = 17  # the first with layer norm as one operator
_IR_VERSION = 8  # version of that opset
_MEAN = "mean_features"


@dataclass(frozen=True)
class TracedNetwork:
    """Backbone and heads as separate graphs.

    Attributes:
        backbone: images -> features, and embeddings that aggregate feature maps.
        heads: mean_features -> the heads' outputs; None without heads.
        feature_dim: D.
        left_out: roles without exported embedding: several views together, or a separate tower.
    """

    backbone: Any
    heads: Any
    feature_dim: int
    left_out: tuple[str, ...]

    def joined(self, backbone: Any | None = None) -> bytes:
        """The joined graph, serialised, optionally with another backbone.

        Raises:
            ConfigError: it is too large for one file.
        """
        onnx = import_onnx()
        graph = _joined(onnx, backbone or self.backbone, self.heads, self.feature_dim)
        if graph.ByteSize() > MAX_BYTES:
            raise ConfigError(
                f"the graph has {graph.ByteSize():,} bytes, and an ONNX file with weights has at most "
                f"{MAX_BYTES:,}: this network is too large to be exported"
            )
        onnx.checker.check_model(graph)
        data: bytes = graph.SerializeToString()
        return data


def trace(network: GeoNetwork, size_hw: tuple[int, int]) -> TracedNetwork:
    """Trace a network on the CPU.

    Args:
        network: network in evaluation mode.
        size_hw: height and width of the images, which become constants.

    Raises:
        ConfigError: a part of it cannot be exported.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    import_onnx()
    own = {
        role: network.embeddings[role]
        for role in network.config.embeddings
        if network.tower_of(role) is network.backbone
    }
    of_maps = {role: head for role, head in own.items() if network.aggregates(role) and head.num_views == 1}
    of_features = {role: head for role, head in own.items() if not network.aggregates(role)}
    pictures = torch.linspace(-1, 1, 2 * 3 * size_hw[0] * size_hw[1]).reshape(2, 3, *size_hw)
    backbone = _graph(
        _Pictures(network.backbone, of_maps),
        pictures.to(next(network.parameters()).device),
        IMAGES,
        [FEATURES, *(embedding_output(role) for role in of_maps)],
    )
    features = torch.linspace(-1, 1, 2 * int(network.backbone.feature_dim)).reshape(2, -1)  # type: ignore[arg-type]
    heads = {
        name: head
        for name, head in zip(HEADS, (network.cells, network.offsets, network.regression), strict=True)
        if head is not None
    } | {embedding_output(role): head for role, head in of_features.items()}
    traced = None
    if heads:
        traced = _graph(_Heads(list(heads.values())), features.to(pictures.device), _MEAN, list(heads))
    left_out = set(network.config.embeddings) - set(of_maps) - set(of_features)
    return TracedNetwork(backbone, traced, features.shape[1], tuple(sorted(left_out)))


class _Pictures(nn.Module):
    def __init__(self, backbone: nn.Module, of_maps: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone, self.of_maps = backbone, nn.ModuleList(of_maps.values())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if not len(self.of_maps):
            return (self.backbone(images),)
        maps = self.backbone.feature_map(images)  # type: ignore[operator]
        return (maps.mean(), *(head(maps) for head in self.of_maps))


class _Heads(nn.Module):
    def __init__(self, heads: list[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return tuple(head(features) for head in self.heads)


def _graph(module: nn.Module, example: Tensor, name: str, outputs: list[str]) -> Any:
    onnx = import_onnx()
    buffer = io.BytesIO()
    module = module.eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused attention cannot be exported
    try:
        with warnings.catch_warnings():
            # The tracing exporter needs no package beyond onnx; torch warns that it is deprecated.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (example,),
                buffer,  # type: ignore[arg-type]
                input_names=[name],
                output_names=outputs,
                dynamic_axes={key: {0: "n"} for key in (name, *outputs)},
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:  # errors of operators that cannot be exported
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"this network cannot be exported to ONNX: {reason}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return onnx.load_model_from_string(buffer.getvalue())


def _joined(onnx: Any, backbone: Any, heads: Any, feature_dim: int) -> Any:
    """Graph of the backbone, the mean over views, and the heads."""
    helper, kinds = onnx.helper, onnx.TensorProto
    views = helper.make_tensor_value_info(VIEWS, kinds.INT64, [1])
    graphs = [onnx.compose.add_prefix(backbone, "backbone/", rename_inputs=False, rename_outputs=False)]
    if heads is not None:
        graphs.append(onnx.compose.add_prefix(heads, "heads/", rename_inputs=False, rename_outputs=False))
    nodes = [node for graph in graphs[:1] for node in graph.graph.node]
    tensors = [tensor for graph in graphs for tensor in graph.graph.initializer]
    tensors.append(helper.make_tensor(VIEWS, kinds.INT64, [1], [1]))
    if heads is not None:
        tensors += [
            helper.make_tensor("mean/any", kinds.INT64, [1], [-1]),
            helper.make_tensor("mean/dim", kinds.INT64, [1], [feature_dim]),
        ]
        nodes += [
            helper.make_node("Concat", ["mean/any", VIEWS, "mean/dim"], ["mean/shape"], axis=0),
            helper.make_node("Reshape", [FEATURES, "mean/shape"], ["mean/by_image"]),
            helper.make_node("ReduceMean", ["mean/by_image"], [_MEAN], axes=[1], keepdims=0),
            *graphs[1].graph.node,
        ]
    outputs = [
        _renamed_axis(output, "images" if i == 0 else "places")
        for i, graph in enumerate(graphs)
        for output in graph.graph.output
    ]
    graph = helper.make_graph(
        nodes, "geoloc", [_renamed_axis(graphs[0].graph.input[0], "images"), views], outputs, tensors
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="geoloc",
    )


def _renamed_axis(value: Any, name: str) -> Any:
    value.type.tensor_type.shape.dim[0].dim_param = name
    return value
