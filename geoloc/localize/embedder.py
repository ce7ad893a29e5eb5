"""A loaded network with its preprocessing: images in, embeddings out. `Geolocalizer` adds locations to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoloc.checkpoint.folder import Checkpoint, Saved, runner_of
from geoloc.checkpoint.published import read_model
from geoloc.checkpoint.resolve import resolve_model
from geoloc.errors import CheckpointError, ConfigError
from geoloc.images.decode import ImageSource
from geoloc.images.preprocess import Preprocess
from geoloc.images.query import QueryMode, load_query_views
from geoloc.models.onnx.runner import OnnxRunner
from geoloc.models.runner import check_finite
from geoloc.posterior.pipeline import Images
from geoloc.reference.embedder import mean_of_views
from geoloc.reference.manifest import ModelOrigin

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from geoloc.models.network import GeoNetwork


class Embedder:
    """A network that turns images into vectors for retrieval. What embedding jobs and reference databases need.

    Args:
        name: of the model.
        network: a network of torch, which is switched to evaluation; or an exported one, which needs no torch.
        preprocess: how the network takes its images.

    Attributes:
        name, preprocess: as given.
        runner: runs the network, by torch or by onnxruntime.
        origin: how it was loaded; a database remembers it. None for a network in memory.
    """

    origin: ModelOrigin | None = None

    def __init__(self, name: str, network: GeoNetwork | OnnxRunner, preprocess: Preprocess) -> None:
        self.name, self.preprocess = name, preprocess
        self.runner = runner_of(network, preprocess)
        self._saved: Saved | None = None
        self._checkpoint: Checkpoint | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        device: Any = "cpu",
        num_threads: int | None = None,
        **options: Any,
    ) -> Self:
        """Load a model: a bundled name ("earthview"), a folder, a Hub id, or a published file of another system.

        `geoloc models` lists the other systems ("osv5m/baseline", …): by a name there, or by the path of a folder or
        file in their format, which is recognised by its content.

        Only the checkpoint is read or downloaded; nothing in it is unpickled or imported. What came from the Hub stays
        in a cache, so that a second time needs no network; HF_HUB_OFFLINE=1 forbids asking it.

        Args:
            name: a folder comes before a bundled model, and that before the Hub.
            revision: of the Hub's repository: a branch, tag, commit (which never changes) or "refs/pr/N".
            subfolder: of the folder or repository, where the model is not at its top.
            device: where its tensors go, as torch names it; an exported model stays on the CPU.
            num_threads: CPU threads of the network (of all of torch, for a network of torch); None leaves it to the
                library.
            options: for a published file that leaves something open, see `geoloc.adapters.options.Options`: `quadtree`,
                `tower`, `image_size_px`, ….

        Raises:
            NotFoundError: there is no such model, or it is not here and the Hub cannot be reached.
            IntegrityError: a file is missing or differs from the manifest.
            ConfigError: config.json or calibration.json has an unknown key or an impossible value.
            CheckpointError: the tensors do not fit the network of config.json, or the quadtree cannot be read.
            FingerprintMismatchError: the quadtree is not the one that the cell head was trained on.
        """
        source = resolve_model(name, revision, subfolder, options)
        model = cls.of_checkpoint(*read_model(source, device, num_threads))
        model.origin = source.origin
        return model

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, saved: Saved | None = None) -> Self:
        """The embedder of a checkpoint in memory, with its identity if it is on the disk."""
        embedder = cls(checkpoint.name, checkpoint.network, checkpoint.preprocess)
        embedder._saved, embedder._checkpoint = saved, checkpoint
        return embedder

    @property
    def network(self) -> GeoNetwork:
        """The network of torch.

        Raises:
            ConfigError: the model was exported, and has none.
        """
        network: GeoNetwork | None = getattr(self.runner, "network", None)
        if network is None:
            raise ConfigError(
                f"{self.name!r} is an exported model, whose network cannot be changed or read: load the checkpoint "
                "that it was exported from"
            )
        return network

    @property
    def device(self) -> Any:
        """Where the network's tensors are: a torch.device, or "cpu" for an exported model."""
        return self.runner.device

    @property
    def identity(self) -> str:
        """Digest of the checkpoint's manifest: two models with the same one give the same predictions.

        Raises:
            CheckpointError: the model was never saved, or was fitted since.
        """
        identity = self._as_saved().identity
        if identity is None:
            raise CheckpointError(
                "the model was fitted since it was saved, and has an identity once it is saved again: call "
                "save_pretrained first"
            )
        return identity

    @property
    def embedding_fingerprint(self) -> str:
        """Digest of network and preprocessing: vectors of models with the same one may be compared.

        Calibration and card are not in it, so fitting a model keeps its reference databases valid.

        Raises:
            CheckpointError: the model was neither loaded nor saved.
        """
        return self._as_saved().embedding_fingerprint

    def as_checkpoint(self) -> Checkpoint:
        """The checkpoint that this network was loaded from, in memory.

        Raises:
            CheckpointError: it was not loaded from one.
        """
        if self._checkpoint is None:
            raise CheckpointError(
                f"{self.name!r} was not loaded from a checkpoint: load it by from_pretrained, which keeps what a copy "
                "of it needs"
            )
        return self._checkpoint

    @property
    def saved(self) -> Saved:
        """Identity of the checkpoint on the disk.

        Raises:
            CheckpointError: the model was neither loaded nor saved.
        """
        return self._as_saved()

    def _as_saved(self) -> Saved:
        if self._saved is None:
            raise CheckpointError("a model has an identity once it is saved: call save_pretrained first")
        return self._saved

    @property
    def embedding_dim(self) -> int:
        """Width of the embeddings for retrieval, the same for queries and references.

        Raises:
            ConfigError: the network has no embedding, or embeddings of several widths.
        """
        dims = {config.dim for config in self.runner.config.embeddings.values()}
        if len(dims) != 1:
            raise ConfigError(
                f"the model {self.name!r} has embeddings of {len(dims)} widths, and references need one: take a "
                "model that was trained for retrieval"
            )
        return dims.pop()

    def load(self, source: ImageSource) -> Any:
        """Decode and preprocess one image: path, bytes, PIL image or array -> (3, S, S), or (3, height, width).

        A tensor, or an array for an exported model.

        Raises:
            BadImageError: the image is unusable.
        """
        return self.load_query(source)[0]

    def load_query(self, source: ImageSource, query: QueryMode = "central_crop") -> Any:
        """Decode one image into the views of a query mode, (V, 3, h, w); see `geoloc.images.query`.

        Raises:
            BadImageError: the image is unusable.
            ConfigError: there is no such mode.
        """
        return self.runner.as_input(load_query_views(source, self.preprocess, query))

    def embed_query(self, images: Tensor | Sequence[Images]) -> NDArray[np.float32]:
        """Unit vectors of query images, (B, 3, S, S), or B sets of views, each (V, 3, h, w) -> (B, D).

        Raises:
            ConfigError: the network has no query embedding.
        """
        views = [image if image.ndim == 4 else image[None] for image in images]
        _, (vectors,) = self.runner.read(views, "merged")
        check_finite(self.name, [vectors])
        return vectors

    def embed_reference(self, images: Images, source: str) -> NDArray[np.float32]:
        """Unit vectors of preprocessed reference images, (B, 3, S, S) -> (B, D).

        Args:
            images: as `load` makes them, stacked; or (B, V, 3, S, S) for a network that sees V views together.
            source: "aerial" or "street"; the network must have an embedding of that name.

        Raises:
            ConfigError: it has none.
        """
        return self.runner.embed_images(images, source)

    def embed_views(
        self, views: Images, present: NDArray[np.bool_], gsd_m_per_px: tuple[float, ...]
    ) -> NDArray[np.float32]:
        """Unit vectors of cells from their aerial views, (B, V, 3, S, S) -> (B, D).

        A network whose aerial embedding aggregates sees the views together, in the order that it was trained with, and
        a missing one as zeros; of any other network it is the mean over the views.

        Args:
            views: as `load` makes them.
            present: (B, V), which views there are.
            gsd_m_per_px: (V,) of the views.

        Raises:
            ConfigError: the network has no aerial embedding, or one of another number of views.
        """
        if self.runner.aggregates("aerial"):
            joint = views if views.shape[1] > 1 else views[:, 0]
            return self.embed_reference(joint, "aerial")
        return mean_of_views(self, views, present)
