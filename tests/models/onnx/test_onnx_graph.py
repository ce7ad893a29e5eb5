"""Graphs that do anything but compute are refused before they are run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from tiny import tiny_geolocalizer

from geoloc.errors import CheckpointError
from geoloc.models.onnx import graph as graph_module
from geoloc.models.onnx.export import trace
from geoloc.models.onnx.graph import read_graph


@pytest.fixture(scope="module")
def data() -> bytes:
    return trace(tiny_geolocalizer().network, (32, 32)).joined()


def elsewhere(model: Any, location: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def node(op: str, domain: str = "", **attributes: Any) -> Callable[[Any], None]:
    return lambda model: model.graph.node.append(
        helper.make_node(op, ["features"], ["x"], domain=domain, **attributes)
    )


def branch() -> Any:
    return helper.make_graph([], "inner", [], [])


def other_constant(model: Any) -> None:
    constant = helper.make_tensor("far", onnx.TensorProto.FLOAT, [1], [0.0])
    constant.data_location = onnx.TensorProto.EXTERNAL
    node("Constant", value=constant)(model)


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "external data": (lambda m: elsewhere(m, "weights.bin"), "keeps the tensor .* in another file"),
    "external data outside": (lambda m: elsewhere(m, "../../secret"), "keeps the tensor .* in another file"),
    "external data, absolute": (lambda m: elsewhere(m, "/etc/passwd"), "keeps the tensor .* in another file"),
    "external constant": (other_constant, "keeps the tensor 'far' in another file"),
    "a domain": (
        lambda m: m.opset_import.append(helper.make_opsetid("com.evil", 1)),
        "of the domain 'com.evil'",
    ),
    "a custom operator": (node("Run", "com.microsoft"), "operator 'Run' of the domain 'com.microsoft'"),
    "a loop": (node("Loop", body=branch()), "has a graph inside its operator 'Loop'"),
    "a branch": (
        node("If", then_branch=branch(), else_branch=branch()),
        "has a graph inside its operator 'If'",
    ),
    "functions": (
        lambda m: m.functions.append(
            helper.make_function("", "f", [], [], [], [helper.make_opsetid("", 17)])
        ),
        "brings functions of its own, or a training graph",
    ),
    "training": (lambda m: m.training_info.add(), "or a training graph"),
    "sparse tensors": (lambda m: m.graph.sparse_initializer.add(), "has sparse tensors"),
    "other inputs": (
        lambda m: m.graph.input.append(helper.make_tensor_value_info("path", onnx.TensorProto.STRING, [1])),
        r"has the inputs \['images', 'path', 'views'\]",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_graphs(data: bytes, tmp_path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    model = onnx.load_model_from_string(data)
    change(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=rf"{message}, which our graphs do not: it is refused"):
        read_graph(path)


@pytest.mark.parametrize("junk", [b"\xff" * 100, b"\x80\x04K\x01."])
def test_other_files(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(junk)
    with pytest.raises(CheckpointError, match=r"is not a readable ONNX file"):
        read_graph(path)


def test_truncated(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"is not a readable ONNX file|which our graphs do not"):
        read_graph(path)


def test_too_large(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    monkeypatch.setattr(graph_module, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"bytes; an ONNX file has at most 1,000"):
        read_graph(path)


def test_our_own(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    checked = read_graph(path)
    assert checked.data == data
    assert {opset.domain for opset in onnx.load(path).opset_import} == {""}
