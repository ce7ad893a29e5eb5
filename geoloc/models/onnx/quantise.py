"""The backbone's arithmetic in 8 bits, with ranges from real pictures, as far as the answers stay what they are.

Weights have a scale for each output channel, activations one for each tensor; what is between stays in float32. What
is quantised are convolutions and products with weights: attention's products of two activations, and all heads, stay. A
clip or a ReLU goes with the operator before it, whose range would else be that before the clip.

A trunk of depthwise convolutions with linear bottlenecks (MobileNet, EfficientNet) does not bear 8 bits everywhere: its
first layers and the sums that it passes on need more. So operators stay in float32 from the front on, as many as it
takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import CheckpointError, ConfigError
from geoloc.models.onnx.export import TracedNetwork
from geoloc.models.onnx.graph import HEADS, IMAGES, import_onnx

# See `agreement`. Of pictures unlike those given about five times as many change: `earthview` on ETOPO1's relief, with
# judges from photographic mosaics, keeps 99.1 % where the judges say 99.8 %, and 98.4 % where they say 99.7 %.
LEAST_AGREEMENT = 0.998
_WITH_WEIGHTS, _CUT = ("Conv", "Gemm", "MatMul"), ("Clip", "Relu")
_BATCH = 16


@dataclass(frozen=True)
class Quantised:
    """A graph with operators in 8 bits.

    Attributes:
        data: the whole graph, serialised.
        num_quantised: convolutions and products with weights in 8 bits.
        num_operators: that the backbone has of them.
    """

    data: bytes
    num_quantised: int
    num_operators: int


def quantise(
    traced: TracedNetwork, pictures: NDArray[np.float32], least_agreement: float = LEAST_AGREEMENT
) -> Quantised:
    """A traced network with as much of its backbone in 8 bits as keeps the most probable cells.

    Args:
        traced: the network; without a cell head all of its backbone is quantised.
        pictures: (N, 3, S, S), like those that the model will meet, two hundred or more: every other one sets the
            ranges, and the rest judge.
        least_agreement: share of the pictures whose most probable cell must stay, in (0, 1]; see `agreement`.

    Raises:
        ConfigError: `least_agreement` is no such share.
        CheckpointError: not even the last operator bears it.
    """
    if not 0 < least_agreement <= 1:
        raise ConfigError(f"least_agreement is a share in (0, 1]; found {least_agreement}")
    onnx = import_onnx()
    from onnxruntime.quantization.shape_inference import quant_pre_process

    judges = pictures[1::2] if len(pictures) > 1 else pictures
    expected = _logits(traced.joined(), judges)
    with TemporaryDirectory() as folder:
        plain, prepared = Path(folder, "plain.onnx"), Path(folder, "prepared.onnx")
        plain.write_bytes(traced.backbone.SerializeToString())
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        ranges = _ranges(prepared, pictures[::2], Path(folder, "augmented.onnx"))
        operators = [node.name for node in _operators(onnx.load(prepared).graph)]

        def candidate(first: int) -> bytes:
            return traced.joined(_in_8_bits(onnx.load(prepared), set(operators[first:]), ranges))

        # The fewest operators in float32 before the first one in 8 bits, by bisection; all but always it is 0.
        good, bad, data = len(operators), -1, b""
        first = 0
        while good - bad > 1:
            found = candidate(first)
            if expected is None or agreement(expected, _logits(found, judges)) >= least_agreement:
                good, data = first, found
            else:
                bad = first
            first = (good + bad) // 2
    if not data:
        raise CheckpointError(
            f"no operator of the backbone bears 8 bits: on {len(judges)} images the most probable cell would stay for "
            f"less than {least_agreement:.1%}. Export in fp32, or ask for less (least_agreement)"
        )
    return Quantised(data, len(operators) - good, len(operators))


def _operators(graph: Any) -> Iterator[Any]:
    """What can be quantised, in the order of the graph."""
    weights = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _WITH_WEIGHTS and node.input[1] in weights:
            yield node


def _ranges(prepared: Path, pictures: NDArray[np.float32], augmented: Path) -> Any:
    """Least and largest value of every activation that could be quantised."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    calibrator = create_calibrator(
        prepared,
        [*_WITH_WEIGHTS, *_CUT],
        augmented_model_path=str(augmented),
        calibrate_method=CalibrationMethod.MinMax,
    )
    calibrator.collect_data(_Reader(pictures))
    return calibrator.compute_data()


def _in_8_bits(model: Any, names: set[str], ranges: Any) -> Any:
    from onnxruntime.quantization import QDQQuantizer, QuantType

    outputs = {output for node in model.graph.node if node.name in names for output in node.output}
    cut = {node.name for node in model.graph.node if node.op_type in _CUT and node.input[0] in outputs}
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[*names, *cut],
        nodes_to_exclude=[],
        op_types_to_quantize=[*_WITH_WEIGHTS, *_CUT],
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def agreement(expected: NDArray[np.float32], found: NDArray[np.float32] | None) -> float:
    """Share of pictures whose most probable cell stays, as far as few pictures can tell, (N, C), (N, C) -> ().

    A hundred pictures seldom have one whose two best cells are nearly level, and of thousands some do. So the change of
    the gap between the two best logits, as seen on each picture, is tried on the gap of every other one: the share of
    all pairs that keep their order.
    """
    assert found is not None
    if expected.shape[1] < 2:
        return 1.0
    rows = np.arange(len(expected))
    second, best = np.argsort(expected, axis=-1)[:, -2:].T
    gap = expected[rows, best] - expected[rows, second]
    change = found[rows, best] - found[rows, second] - gap
    return float(np.mean(gap[:, None] + change > 0))


def _logits(data: bytes, pictures: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The cell logits of each picture, by a whole graph; None where it has no cell head."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = HEADS[0]
    if name not in {output.name for output in session.get_outputs()}:
        return None
    logits = [session.run([name], {IMAGES: batch})[0] for batch in _batches(pictures)]
    return np.concatenate(logits)


def _batches(pictures: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(pictures), _BATCH):
        yield pictures[start : start + _BATCH]


class _Reader:
    """What onnxruntime asks for calibration data: one set of inputs after the other, then None."""

    def __init__(self, pictures: NDArray[np.float32]) -> None:
        self._batches = _batches(pictures)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch."""
        batch = next(self._batches, None)
        return None if batch is None else {IMAGES: batch}
