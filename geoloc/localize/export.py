"""A model as a folder that runs without torch: its network as an ONNX graph, and a report that both say the same.

report = export_onnx(model, "exported/", images)
Geolocalizer.from_pretrained("exported/").localize("photo.jpg")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from geoloc.errors import CheckpointError, ConfigError
from geoloc.images.decode import ImageSource
from geoloc.localize.checkpoint import ONNX_NAMES, Checkpoint, Exported, Saved, write_checkpoint
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.network import GeoNetwork
from geoloc.models.onnx.export import trace
from geoloc.models.onnx.graph import FEATURES, HEADS, embedding_output
from geoloc.models.onnx.quantise import LEAST_AGREEMENT, quantise
from geoloc.models.onnx.runner import OnnxRunner
from quadtree.sphere import haversine_km

TOLERANCE = 1e-4  # of every number that an fp32 graph gives
PARITY_NAME = "parity.json"
ENOUGH_IMAGES, MOST_IMAGES = 200, 512  # that int8 wants; that are looked at
_BATCH = 16

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Parity:
    """How a graph's answers differ from those of the network that it was exported from, on the same pictures.

    Attributes:
        max_abs_difference: of every output, by its name.
        same_top_cell: share of pictures with the same most probable cell; None without a cell head.
        median_km: between the answers, with the model's own references; None for a model that only embeds.
    """

    max_abs_difference: Mapping[str, float]
    same_top_cell: float | None
    median_km: float | None

    @property
    def worst(self) -> float:
        """The largest difference of any number."""
        return max(self.max_abs_difference.values())


@dataclass(frozen=True)
class ExportReport:
    """What `parity.json` holds.

    Attributes:
        num_images: that both sides saw.
        precision: of the exported backbone.
        fp32: the graph as it was traced.
        int8: its quantised twin, where that was asked for.
        num_quantised: convolutions and products with weights in 8 bits, of `num_operators` in the backbone.
        num_operators: see there; 0 for fp32.
        left_out: roles whose embeddings were not exported: of several views together, or of a tower of their own.
    """

    num_images: int
    precision: Literal["fp32", "int8"]
    fp32: Parity
    int8: Parity | None
    num_quantised: int
    num_operators: int
    left_out: tuple[str, ...]


def export_onnx(
    model: Geolocalizer,
    folder: str | Path,
    images: Sequence[ImageSource],
    *,
    int8: bool = False,
    least_agreement: float = LEAST_AGREEMENT,
) -> ExportReport:
    """Write a model as a checkpoint of its own whose network is an ONNX graph.

    Cells, calibration, reranker and references come with it, and its references stay comparable with the model's.

    Args:
        model: loaded or saved.
        folder: where to; it is made, or must hold a checkpoint.
        images: real pictures of the kind that the model will meet, of which at most `MOST_IMAGES` evenly spread ones
            are used: both sides see them, and int8 takes its ranges from them; it wants `ENOUGH_IMAGES`.
        int8: the backbone in 8 bits, as much of it as keeps the most probable cells.
        least_agreement: share of pictures whose most probable cell must stay in 8 bits; less is smaller and faster.

    Returns:
        The report, also in the folder.

    Raises:
        CheckpointError: the graph does not say the same as the network, and nothing is written; or the model was
            neither loaded nor saved.
        ConfigError: there are no images, pictures have no size of the model's own, a part of the network has no form in
            ONNX, or `least_agreement` is no share.
        MissingDependencyError: onnx or onnxruntime is not installed.
        BadImageError: an image is unusable.
        OutputMismatchError: the folder holds something else.
    """
    identity, fingerprint = model.identity, model.embedding_fingerprint
    if not images:
        raise ConfigError("an export is compared with its model on real images: give some")
    if model.preprocess.resize == "native":
        raise ConfigError(
            f"{model.name!r} takes pictures as they are, "
            "and an exported graph takes one size: load it with image_size_px="
        )
    spread = np.linspace(0, len(images) - 1, min(MOST_IMAGES, len(images))).round().astype(int)
    pictures = np.stack([np.asarray(model.load(images[i])) for i in spread])
    traced = trace(model.network, model.preprocess.size_hw)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / ONNX_NAMES["fp32"]
        path.write_bytes(traced.joined())
        checkpoint = _exported(model, path, Exported("fp32", identity, fingerprint))
        fp32, eight = _parity(model, checkpoint, pictures), None
        if not fp32.worst <= TOLERANCE:  # a NaN is no parity, either
            name = max(fp32.max_abs_difference, key=lambda name: fp32.max_abs_difference[name])
            raise CheckpointError(
                f"the graph of {model.name!r} and its network differ by {fp32.worst:.2g} in {name!r}, more than the "
                f"{TOLERANCE:g} that rounding explains: nothing was exported. Please report it, with the model's config"
            )
        operators = (0, 0)
        if int8:
            path = Path(scratch) / ONNX_NAMES["int8"]
            quantised = quantise(traced, pictures, least_agreement)
            path.write_bytes(quantised.data)
            operators = (quantised.num_quantised, quantised.num_operators)
            checkpoint = _exported(model, path, Exported("int8", identity, fingerprint))
            eight = _parity(model, checkpoint, pictures)
        report = ExportReport(
            len(pictures), "int8" if int8 else "fp32", fp32, eight, *operators, traced.left_out
        )
        checkpoint = replace(checkpoint, card=_card(model.card, report))
        write_checkpoint(checkpoint, folder, reports={PARITY_NAME: asdict(report)})
    return report


def _exported(model: Geolocalizer, graph: Path, exported: Exported) -> Checkpoint:
    return Checkpoint(
        model.name,
        OnnxRunner(graph, model.network.config, model.runner.num_cells),
        model.preprocess,
        model.quadtree,
        model.calibration,
        model.card,
        model.reranker,
        model.reference,
        exported,
    )


def _batches(pictures: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(pictures), _BATCH):
        yield pictures[start : start + _BATCH]


def _parity(model: Geolocalizer, checkpoint: Checkpoint, pictures: NDArray[np.float32]) -> Parity:
    runner = checkpoint.network
    assert isinstance(runner, OnnxRunner)
    twin = Geolocalizer.of_checkpoint(checkpoint, Saved(None, model.embedding_fingerprint))
    worst: dict[str, float] = {}
    same, apart_km = [], []
    answers = model.reference is not None or model.runner.num_cells or model.runner.config.regression
    for batch in _batches(pictures):
        found = runner.run(batch)
        expected = _outputs(model.network, batch, found)
        for name, values in expected.items():
            worst[name] = float(np.maximum(worst.get(name, 0.0), np.abs(values - found[name]).max()))
        if "cell_logits" in expected:
            same += (expected["cell_logits"].argmax(-1) == found["cell_logits"].argmax(-1)).tolist()
        if answers:
            places = [
                [
                    (p.lat, p.lon)
                    for p in side.localize_batch([side.runner.as_input(x) for x in batch], places=False)
                ]
                for side in (model, twin)
            ]
            apart_km += haversine_km(*places).tolist()
    return Parity(
        worst, float(np.mean(same)) if same else None, float(np.median(apart_km)) if apart_km else None
    )


def _outputs(network: GeoNetwork, pictures: NDArray[np.float32], wanted: Arrays) -> Arrays:
    """What the network says under the names of a graph's outputs."""
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
    """The model's card with what the export changed."""
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
