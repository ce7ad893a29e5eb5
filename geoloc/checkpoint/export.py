"""Export a model as a checkpoint that runs without torch: its network as an ONNX graph, with a parity report.

report = model.export_onnx("exported/", images)
Geolocalizer.from_pretrained("exported/").localize("photo.jpg")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from geoloc.checkpoint.folder import ONNX_NAMES, Checkpoint, Exported, Saved, write_checkpoint
from geoloc.errors import CheckpointError, ConfigError
from geoloc.images.decode import ImageSource
from geoloc.images.query import load_query_views
from geoloc.models.network import GeoNetwork
from geoloc.models.onnx.export import trace
from geoloc.models.onnx.graph import FEATURES, HEADS, embedding_output
from geoloc.models.onnx.quantise import LEAST_AGREEMENT, quantise
from geoloc.models.onnx.runner import OnnxRunner
from geoloc.posterior.retrieve import Retriever
from quadtree.sphere import haversine_km, unit_to_latlon

TOLERANCE = 1e-4  # largest difference of any output of an fp32 graph
PARITY_NAME = "parity.json"
ENOUGH_IMAGES, MAX_IMAGES = 200, 512  # int8 needs; used at most
_BATCH = 16

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Parity:
    """Differences between a graph and the network that it was exported from, on the same images.

    Attributes:
        max_abs_difference: of every output, by its name.
        same_top_cell: share of images with the same most probable cell; None without a cell head.
        median_km: median distance of the predictions, with the model's own references; None for a model that only
            embeds.
    """

    max_abs_difference: Mapping[str, float]
    same_top_cell: float | None
    median_km: float | None

    @property
    def worst(self) -> float:
        """The largest difference of any output."""
        return max(self.max_abs_difference.values())


@dataclass(frozen=True)
class ExportReport:
    """Content of `parity.json`.

    Attributes:
        num_images: that were compared.
        precision: of the exported backbone.
        fp32: the graph as it was traced.
        int8: the quantised graph, if there is one.
        num_quantised: convolutions and products with weights in 8 bits, of `num_operators` in the backbone.
        num_operators: of the backbone; 0 for fp32.
        left_out: roles whose embeddings were not exported: those of several views, or with a tower of their own.
    """

    num_images: int
    precision: Literal["fp32", "int8"]
    fp32: Parity
    int8: Parity | None
    num_quantised: int
    num_operators: int
    left_out: tuple[str, ...]


def export_onnx(
    checkpoint: Checkpoint,
    saved: Saved,
    folder: str | Path,
    images: Sequence[ImageSource],
    *,
    int8: bool = False,
    least_agreement: float = LEAST_AGREEMENT,
) -> ExportReport:
    """Write a model as a checkpoint whose network is an ONNX graph.

    Cells, calibration, reranker and references are included, and references stay comparable with the model's.

    Args:
        checkpoint: of the model, with a network of torch.
        saved: its identity.
        folder: where to; it is made, or must hold a checkpoint.
        images: real ones of the kind that the model will meet, of which at most `MAX_IMAGES`, evenly spread, are used
            for the comparison and for the ranges of int8, which needs `ENOUGH_IMAGES`.
        int8: quantise as much of the backbone as keeps the most probable cells.
        least_agreement: least share of images with the same most probable cell in 8 bits; less is smaller and faster.

    Returns:
        The report, also in the folder.

    Raises:
        CheckpointError: the outputs of graph and network differ, and nothing is written.
        ConfigError: there are no images, the model takes images in their own size, a part of the network cannot be
            exported, or `least_agreement` is not a share.
        MissingDependencyError: onnx or onnxruntime is not installed.
        BadImageError: an image is unusable.
        OutputMismatchError: the folder holds something else.
    """
    network = _torch_network(checkpoint)
    identity, fingerprint = saved.identity, saved.embedding_fingerprint
    assert identity is not None
    if not images:
        raise ConfigError("an export is compared with its model on real images: give some")
    preprocess = checkpoint.preprocess
    if preprocess.resize == "native":
        raise ConfigError(
            f"{checkpoint.name!r} takes images in their own size, and an exported graph takes one size: load it with "
            "image_size_px="
        )
    spread = np.linspace(0, len(images) - 1, min(MAX_IMAGES, len(images))).round().astype(int)
    inputs = np.stack([load_query_views(images[i], preprocess, "central_crop")[0] for i in spread])
    traced = trace(network, preprocess.size_hw)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / ONNX_NAMES["fp32"]
        path.write_bytes(traced.joined())
        exported = _exported(checkpoint, path, Exported("fp32", identity, fingerprint))
        fp32, eight = _parity(checkpoint, exported, inputs), None
        if not fp32.worst <= TOLERANCE:  # a NaN fails, too
            name = max(fp32.max_abs_difference, key=lambda name: fp32.max_abs_difference[name])
            raise CheckpointError(
                f"the graph of {checkpoint.name!r} and its network differ by {fp32.worst:.2g} in {name!r}, more than "
                f"the {TOLERANCE:g} that rounding explains: nothing was exported. Please report it, with the model's "
                "config"
            )
        operators = (0, 0)
        if int8:
            path = Path(scratch) / ONNX_NAMES["int8"]
            quantised = quantise(traced, inputs, least_agreement)
            path.write_bytes(quantised.data)
            operators = (quantised.num_quantised, quantised.num_operators)
            exported = _exported(checkpoint, path, Exported("int8", identity, fingerprint))
            eight = _parity(checkpoint, exported, inputs)
        report = ExportReport(
            len(inputs), "int8" if int8 else "fp32", fp32, eight, *operators, traced.left_out
        )
        exported = replace(exported, card=_card(checkpoint.card, report))
        write_checkpoint(exported, folder, reports={PARITY_NAME: asdict(report)})
    return report


def _torch_network(checkpoint: Checkpoint) -> GeoNetwork:
    if isinstance(checkpoint.network, OnnxRunner):
        raise ConfigError(
            f"{checkpoint.name!r} is an exported model already: load the checkpoint that it was exported from"
        )
    return checkpoint.network


def _exported(checkpoint: Checkpoint, graph: Path, exported: Exported) -> Checkpoint:
    num_cells = 0 if checkpoint.quadtree is None else checkpoint.quadtree.num_cells
    runner = OnnxRunner(graph, checkpoint.network.config, num_cells)
    return replace(checkpoint, network=runner, exported=exported)


def _parity(checkpoint: Checkpoint, exported: Checkpoint, inputs: NDArray[np.float32]) -> Parity:
    network, runner = _torch_network(checkpoint), exported.network
    assert isinstance(runner, OnnxRunner)
    worst: dict[str, float] = {}
    same: list[bool] = []
    apart_km: list[float] = []
    sides = [_Answers(side) for side in (checkpoint, exported)]
    for start in range(0, len(inputs), _BATCH):
        batch = inputs[start : start + _BATCH]
        found = runner.run(batch)
        expected = _outputs(network, batch, found)
        for name, values in expected.items():
            worst[name] = float(np.maximum(worst.get(name, 0.0), np.abs(values - found[name]).max()))
        if "cell_logits" in expected:
            same += (expected["cell_logits"].argmax(-1) == found["cell_logits"].argmax(-1)).tolist()
        if sides[0].answers:
            apart_km += haversine_km(*(side.latlon_deg(batch) for side in sides)).tolist()
    return Parity(
        worst, float(np.mean(same)) if same else None, float(np.median(apart_km)) if apart_km else None
    )


class _Answers:
    """Predicted points of a checkpoint with its own references."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.pipeline, self.calibration = checkpoint.pipeline(), checkpoint.calibration
        database = checkpoint.reference
        self.answers = database is not None or self.pipeline.has_location_head
        device = str(self.pipeline.runner.device)
        self.retriever = (
            None if database is None else Retriever([database], checkpoint.quadtree, device=device)
        )

    def latlon_deg(self, batch: NDArray[np.float32]) -> NDArray[np.float64]:
        images = [self.pipeline.runner.as_input(image) for image in batch]
        outputs = self.pipeline.run(images, embed=self.retriever is not None)
        posteriors, _ = self.pipeline.posteriors(outputs, self.calibration, self.retriever, top_k=1)
        utility = self.pipeline.default_utility
        return unit_to_latlon(np.stack([posterior.point(utility) for posterior in posteriors]))


def _outputs(network: GeoNetwork, pictures: NDArray[np.float32], wanted: Arrays) -> Arrays:
    """Outputs of the network under the names of the graph's outputs."""
    images = torch.from_numpy(pictures).to(next(network.parameters()).device)
    with torch.inference_mode():
        output = network(images)
        found = {FEATURES: output.features} | {name: getattr(output, name) for name in HEADS}
        found |= {
            embedding_output(role): network.embed_images(images, role)
            for role in network.config.embeddings
            if embedding_output(role) in wanted
        }
        return {name: t.float().cpu().numpy() for name, t in found.items() if t is not None}


def _card(card: str, report: ExportReport) -> str:
    """The model's card with a section on the export."""
    parity = report.int8 or report.fp32
    said: list[Any] = [
        f"on {report.num_images:,} images the largest difference of any output is {parity.worst:.2g}"
    ]
    if parity.same_top_cell is not None:
        said.append(f"{parity.same_top_cell:.1%} of them have the same most probable cell")
    if parity.median_km is not None:
        said.append(f"and the answers are {parity.median_km:,.3g} km apart in the median")
    kind = {
        "fp32": "float32",
        "int8": f"{report.num_quantised} of {report.num_operators} operators with weights in 8 bits",
    }[report.precision]
    return (
        f"{card.rstrip()}\n\n## Exported\n\nThe network is an ONNX graph with {kind}. Compared with the model that it "
        f"was made from, {', '.join(said)}. `{PARITY_NAME}` has the numbers; figures elsewhere in this card are of the "
        "model before.\n"
    )
