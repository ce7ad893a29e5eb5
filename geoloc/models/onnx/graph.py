"""Form of our ONNX graphs, and checks that refuse any other.

    images (N, 3, S, S), views (1,) -> features (N, D) and the heads' outputs, (N / views, …)

N images are N / views locations with `views` views each (default 1), whose features are averaged before the heads.
Embeddings that aggregate feature maps are per image, (N, dim). A graph contains all of its weights, standard operators
only, and no control flow.
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
MAX_BYTES = 2**31 - 1  # limit of a protocol buffer

_STANDARD = ("", "ai.onnx")


def embedding_output(role: str) -> str:
    """Name of the output with a role's embeddings."""
    return f"embedding_{role}"


@dataclass(frozen=True)
class CheckedGraph:
    """A checked graph.

    Attributes:
        data: bytes of the file.
        num_parameters: number of weights.
    """

    data: bytes
    num_parameters: int


def read_graph(path: Path) -> CheckedGraph:
    """Read and check a graph.

    Raises:
        CheckpointError: it is too large, no ONNX file, refers to other files, or has unsupported parts.
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
    except Exception as error:  # depends on the installed protobuf version
        raise CheckpointError(f"{path} is not a readable ONNX file: {error}; {_REMEDY}") from error
    if complaint := next(_complaints(model, onnx.TensorProto.EXTERNAL), None):
        raise CheckpointError(f"{path} {complaint}, which our graphs do not: it is refused. {_REMEDY}")
    return CheckedGraph(data, sum(math.prod(tensor.dims) for tensor in model.graph.initializer))


_REMEDY = "Export the model again, or download it again from its author"


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
