"""What a graph of ours looks like, and the refusal of any other: a file from elsewhere is data, and not trusted.

    images (N, 3, S, S), views (1,) -> features (N, D) and the heads' outputs, (N / views, …)

N pictures are N / views images of as many views each, whose features are averaged before the heads; views is 1 unless
it is given. Embeddings that aggregate feature maps are of pictures, (N, dim). A graph holds all of its weights, uses
operators of the ONNX standard alone, and has no branches and loops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoloc.errors import CheckpointError, MissingDependencyError

IMAGES, VIEWS, FEATURES = "images", "views", "features"
HEADS = ("cell_logits", "offsets", "latlon_rad")
MAX_BYTES = 2**31 - 1  # of a protocol buffer

_STANDARD = ("", "ai.onnx")


def embedding_output(role: str) -> str:
    """What the output with a role's embeddings is called."""
    return f"embedding_{role}"


@dataclass(frozen=True)
class CheckedGraph:
    """The bytes of a graph that was looked through.

    Attributes:
        data: of the file.
        num_parameters: numbers that it holds.
    """

    data: bytes
    num_parameters: int


def read_graph(path: Path) -> CheckedGraph:
    """Read a graph, and refuse one that would touch anything but itself.

    Raises:
        CheckpointError: it is too large, no ONNX, refers to other files, or uses what our graphs do not.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    onnx = import_onnx()
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes; an ONNX file has at most {MAX_BYTES:,}")
    data = path.read_bytes()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # of whichever protocol buffers are installed
        raise CheckpointError(f"{path} is not a readable ONNX file: {error}; {_REMEDY}") from error
    if complaint := next(_complaints(model, onnx.TensorProto.EXTERNAL), None):
        raise CheckpointError(f"{path} {complaint}, and our graphs do not: it is refused. {_REMEDY}")
    return CheckedGraph(data, sum(math.prod(tensor.dims) for tensor in model.graph.initializer))


_REMEDY = "Export the model again, or fetch it from who made it"


def _complaints(model: Any, external: int) -> Iterator[str]:
    for opset in model.opset_import:
        if opset.domain not in _STANDARD:
            yield f"uses operators of the domain {opset.domain!r}"
    if model.functions or model.training_info:
        yield "brings functions of its own, or a training graph"
    graph = model.graph
    if graph.sparse_initializer:
        yield "has sparse tensors"
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.domain not in _STANDARD:
            yield f"uses the operator {node.op_type!r} of the domain {node.domain!r}"
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                yield f"has a graph inside its operator {node.op_type!r}"
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                yield "has sparse tensors"
            tensors += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
    for tensor in tensors:
        if tensor.data_location == external or tensor.external_data:
            yield f"keeps the tensor {tensor.name!r} in another file"
    inputs = {value.name for value in graph.input}
    if inputs != {IMAGES, VIEWS}:
        yield f"has the inputs {sorted(inputs)}"


def import_onnx() -> Any:
    """The package onnx.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"exported models need onnx and onnxruntime ({error}): pip install 'geoloc-vision[onnx]'"
        ) from error
    return onnx
