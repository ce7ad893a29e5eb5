"""ONNX Runtime backend of `geoloc.models.runner`, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import CheckpointError, ConfigError
from geoloc.models.config import NetworkConfig
from geoloc.models.onnx.graph import HEADS, IMAGES, VIEWS, embedding_output, read_graph
from geoloc.models.runner import HeadOutput, Queries, wrong_shape

Arrays = dict[str, NDArray[np.float32]]


class OnnxRunner:
    """`Runner` of an exported network, on the CPU.

    Args:
        path: path of the graph; it is checked before it is run.
        config: config of the exported network.
        num_cells: C of the cell head; 0 without cell head.
        num_threads: threads of onnxruntime; None for one per core.

    Attributes:
        path: path of the graph.
        num_parameters: number of weights in the graph.

    Raises:
        CheckpointError: the graph is damaged, has unsupported parts, or does not fit the config.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """

    def __init__(
        self, path: Path, config: NetworkConfig, num_cells: int, num_threads: int | None = None
    ) -> None:
        graph = read_graph(path)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or 0
        options.log_severity_level = 3  # errors only; its warnings are general advice
        try:
            session = onnxruntime.InferenceSession(graph.data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has many exception types
            raise CheckpointError(f"{path} cannot be run: {' '.join(str(error).split())}") from error
        self.path, self.config, self.num_cells = path, config, num_cells
        self.num_parameters = graph.num_parameters
        self._session = session
        height, width = session.get_inputs()[0].shape[-2:]
        self._size_hw = (int(height), int(width))
        self._outputs: dict[str, list[Any]] = {value.name: value.shape for value in session.get_outputs()}
        self._check_outputs()

    def _check_outputs(self) -> None:
        config = self.config
        needed: dict[str, int | None] = {}
        if config.cells is not None:
            needed["cell_logits"] = self.num_cells
        if config.offsets is not None:
            needed["offsets"] = 2
        if config.regression is not None:
            needed["latlon_rad"] = 2
        for name in (name for name in HEADS if name in self._outputs or name in needed):
            found = self._outputs.get(name, [None])[-1]
            if found != needed.get(name):
                raise CheckpointError(
                    f"{self.path} gives {found} values as {name!r}, but config.json and the quadtree need "
                    f"{needed.get(name)}; take both from the same checkpoint"
                )
        for role, embedding in config.embeddings.items():
            found = self._outputs.get(embedding_output(role), [embedding.dim])[-1]
            if found != embedding.dim:
                raise CheckpointError(
                    f"{self.path} gives {role!r} embeddings of {found} values, but config.json needs "
                    f"{embedding.dim}; take both from the same checkpoint"
                )

    @property
    def device(self) -> str:
        """Always "cpu"."""
        return "cpu"

    def as_input(self, pictures: NDArray[np.float32], /) -> NDArray[np.float32]:
        """See `Runner`; returns its argument."""
        return pictures

    def run(self, images: NDArray[np.float32], views: int = 1) -> Arrays:
        """All outputs by name for images (N, 3, S, S); see `geoloc.models.onnx.graph`.

        Raises:
            ConfigError: images of another shape than exported.
        """
        height, width = images.shape[-2:]
        if (height, width) != self._size_hw:
            raise ConfigError(wrong_shape(self._size_hw, height, width, "the exported size"))
        feeds = {IMAGES: np.ascontiguousarray(images, np.float32), VIEWS: np.array([views], np.int64)}
        return dict(zip(self._outputs, self._session.run(list(self._outputs), feeds), strict=True))

    def read(self, views: Sequence[Any], queries: Queries) -> tuple[HeadOutput, list[NDArray[np.float32]]]:
        """See `Runner`."""
        counts = [len(part) for part in views]
        if len(set(counts)) > 1:  # one by one
            parts = [self.read([part], "none" if queries == "none" else "merged") for part in views]
            together = [_joined([getattr(output, name) for output, _ in parts]) for name in HEADS]
            found = [np.concatenate([q[0] for _, q in parts])] if queries != "none" else []
            return HeadOutput(*together), found
        images = np.concatenate([np.asarray(part) for part in views])
        outputs = self.run(images, counts[0])
        head = HeadOutput(*(outputs.get(name) for name in HEADS))
        if queries == "none":
            return head, []
        name, aggregated = self._embedding("query"), self.aggregates("query")
        if queries == "each":
            of_views = outputs if aggregated or counts[0] == 1 else self.run(images)
            return head, list(of_views[name].reshape(len(views), counts[0], -1).swapaxes(0, 1))
        found_query = outputs[name]
        if aggregated:  # vectors of views are averaged instead of features
            mean = found_query.reshape(len(views), counts[0], -1).mean(1)
            found_query = mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
        return head, [found_query]

    def embed_images(self, images: Any, role: str) -> NDArray[np.float32]:
        """See `Runner`."""
        name, images = self._embedding(role), np.asarray(images)
        if images.ndim == 5 and images.shape[1] != 1:
            raise ConfigError(f"an exported model embeds single pictures; found {images.shape[1]} views")
        return self.run(images.reshape(-1, *images.shape[-3:]))[name]

    def aggregates(self, role: str) -> bool:
        """See `Runner`."""
        self._embedding(role)
        return self.config.embeddings[self.config.embedding_of(role)].aggregation is not None

    def _embedding(self, role: str) -> str:
        name = embedding_output(self.config.embedding_of(role))
        if name not in self._outputs:
            known = (
                ", ".join(sorted(n for n in self._outputs if n.startswith(embedding_output("")))) or "none"
            )
            raise ConfigError(
                f"this exported model has no embedding for {role!r} (its outputs: {known}); use the checkpoint "
                "that it was exported from"
            )
        return name


def _joined(parts: list[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None
