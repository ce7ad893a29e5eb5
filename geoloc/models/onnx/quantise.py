"""8-bit quantisation of a backbone, with ranges from real images, as long as the most probable cells stay.

Weights have a scale per output channel, activations one per tensor. Convolutions and products with weights are
quantised; attention's products of two activations, and all heads, stay in float32. A clip or ReLU is quantised with the
operator before it, so that the range is that after the clip.

In trunks of depthwise convolutions with linear bottlenecks (MobileNet, EfficientNet) 8 bits may be too few in the first
layers. So operators stay in float32 from the first one on, as many as needed.
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

# See `agreement`. On images unlike those given about five times as many cells change: `earthview` on ETOPO1's relief,
# judged by photographic mosaics, keeps 99.1 % where the judges give 99.8 %, and 98.4 % where they give 99.7 %.
LEAST_AGREEMENT = 0.998
_WITH_WEIGHTS, _CUT = ("Conv", "Gemm", "MatMul"), ("Clip", "Relu")
_BATCH = 16


@dataclass(frozen=True)
class Quantised:
    """A graph with 8-bit operators.

    Attributes:
        data: the whole graph, serialised.
        num_quantised: number of 8-bit convolutions and products with weights.
        num_operators: number of these operators in the backbone.
    """

    data: bytes
    num_quantised: int
    num_operators: int


def quantise(
    traced: TracedNetwork, pictures: NDArray[np.float32], least_agreement: float = LEAST_AGREEMENT
) -> Quantised:
    """Quantise as much of a backbone as keeps the most probable cells.

    Args:
        traced: the network; without a cell head the whole backbone is quantised.
        pictures: (N, 3, S, S) images of the model's domain, two hundred or more: every other one sets the ranges, and
            the rest measure the agreement.
        least_agreement: share of the images whose most probable cell must stay, in (0, 1]; see `agreement`.

    Raises:
        ConfigError: `least_agreement` is not in (0, 1].
        CheckpointError: no operator can be quantised.
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

        # Bisection for the smallest number of float32 operators before the first 8-bit one; usually 0.
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
            f"no operator of the backbone can be quantised: on {len(judges)} images the most probable cell would stay "
            f"for less than {least_agreement:.1%}. Export in fp32, or lower least_agreement"
        )
    return Quantised(data, len(operators) - good, len(operators))


def _operators(graph: Any) -> Iterator[Any]:
    """The operators that can be quantised, in the order of the graph."""
    weights = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _WITH_WEIGHTS and node.input[1] in weights:
            yield node


def _ranges(prepared: Path, pictures: NDArray[np.float32], augmented: Path) -> Any:
    """Smallest and largest value of every activation that could be quantised."""
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
    """Estimated share of images whose most probable cell stays, (N, C), (N, C) -> ().

    Few images have two best cells of nearly equal logits. So the change of the gap between the two best logits,
    measured on each image, is applied to the gap of every other image: the share of all pairs that keep their order.
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
    """Cell logits of each image from a whole graph; None without cell head."""
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
    """Calibration data for onnxruntime: one dict of inputs after the other, then None."""

    def __init__(self, pictures: NDArray[np.float32]) -> None:
        self._batches = _batches(pictures)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch."""
        batch = next(self._batches, None)
        return None if batch is None else {IMAGES: batch}
