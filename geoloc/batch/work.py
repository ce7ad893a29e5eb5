"""What is done with one shard of images: localise them, or embed them. Picklable, and the model is loaded once.

    job = ShardJob("predictions/", plan_shards(["photos/"]), LocalizeWork("earthview").identity())
    job.run(LocalizeWork("earthview"), engine="ray", num_workers=2)

An image that cannot be read gets a row with its error, and stops nothing. Batches are cut inside a shard, and every
process uses the same number of threads: the bytes of a shard's file depend on no engine and no number of workers.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from geoloc import __version__
from geoloc.batch.sources import Payload, read_images
from geoloc.errors import BadImageError
from geoloc.files import atomic_write
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.localize.output import Row, make_row, write_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

Role = Literal["query", "aerial", "street"]


class _Model:
    """A model in this process, loaded when first asked; it does not travel with the work."""

    def __init__(self, name: str, device: str, num_threads: int) -> None:
        self.name, self.device, self.num_threads = name, device, num_threads
        self._loaded: Geolocalizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}

    def get(self) -> Geolocalizer:
        """The model."""
        if self._loaded is None:
            torch.set_num_threads(self.num_threads)
            self._loaded = Geolocalizer.from_pretrained(self.name, device=self.device)
        return self._loaded


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """What decides a shard's file beside its images.

    Attributes:
        batch_size: images that go through the network together.
        top_k: candidates of a prediction.
        utility: what a predicted point should be good at, see `LocalizeOptions`.
    """

    batch_size: int = 16
    top_k: int = 5
    utility: str = "geoscore"


class _ModelWork:
    """A model over the images of a shard, batch by batch."""

    def __init__(
        self, model: str, options: WorkOptions | None = None, *, device: str = "cpu", num_threads: int = 1
    ) -> None:
        self.options = options or WorkOptions()
        self._model = _Model(model, device, num_threads)

    @property
    def model(self) -> Geolocalizer:
        """The model, loaded when first asked."""
        return self._model.get()

    def _identity(self, task: str) -> dict[str, Any]:
        return {
            "task": task,
            "geoloc": __version__,
            "torch": importlib.metadata.version("torch"),
            "model": self.model.identity,
            "device": self._model.device,
            "num_threads": self._model.num_threads,
            **asdict(self.options),
        }

    def _batches(self, payload: Payload) -> Iterator[list[tuple[str, Tensor | str]]]:
        """Ids with their tensors (3, S, S), or with the reason why there is none."""
        images = read_images(payload)
        while batch := list(islice(images, self.options.batch_size)):
            yield [(image_id, self._load(data)) for image_id, data in batch]

    def _load(self, data: bytes | BadImageError) -> Tensor | str:
        if isinstance(data, BadImageError):
            return data.reason
        try:
            return self.model.load(data)
        except BadImageError as error:
            return error.reason


class LocalizeWork(_ModelWork):
    """Predictions of a shard, in the table that `geoloc localize` writes."""

    def identity(self) -> dict[str, Any]:
        """For `ShardJob`."""
        return self._identity("localize")

    def __call__(self, payload: Payload, output: Path) -> None:
        """Localise the images of a shard."""
        write_rows(output, self._rows(payload))

    def _rows(self, payload: Payload) -> Iterator[Row]:
        for batch in self._batches(payload):
            tensors = [tensor for _, tensor in batch if isinstance(tensor, Tensor)]
            predictions = iter(
                self.model.localize_batch(tensors, utility=self.options.utility, top_k=self.options.top_k)
                if tensors
                else ()
            )
            for image_id, tensor in batch:
                if isinstance(tensor, Tensor):
                    yield make_row(image_id, next(predictions))
                else:
                    yield make_row(image_id, None, tensor)


class EmbedWork(_ModelWork):
    """Embeddings of a shard: a Parquet table of `id`, `embedding` (D float16) and `error`.

    Args:
        role: "query", "aerial" or "street": which of the model's embeddings.
    """

    def __init__(self, model: str, role: Role = "query", **options: Any) -> None:
        super().__init__(model, **options)
        self.role: Role = role

    def identity(self) -> dict[str, Any]:
        """For `ShardJob`."""
        return self._identity("embed") | {"role": self.role}

    def __call__(self, payload: Payload, output: Path) -> None:
        """Embed the images of a shard."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        ids, errors, vectors = [], [], []
        for batch in self._batches(payload):
            tensors = [tensor for _, tensor in batch if isinstance(tensor, Tensor)]
            vectors += list(self._embed(torch.stack(tensors))) if tensors else []
            ids += [image_id for image_id, _ in batch]
            errors += [tensor if isinstance(tensor, str) else None for _, tensor in batch]
        following = iter(vectors)
        rows = [None if error is not None else next(following).astype(np.float16) for error in errors]
        kind = pa.list_(pa.float16(), self.model.embedding_dim)
        table = pa.table(
            {"id": ids, "embedding": pa.array(rows, kind), "error": pa.array(errors, pa.string())}
        )
        with atomic_write(output, "wb") as file:
            pq.write_table(table, file, compression="zstd")

    def _embed(self, images: Tensor) -> NDArray[np.float32]:
        if self.role != "query":
            return self.model.embed_reference(images, self.role)
        (queries,) = self.model.read(images, embed=True).queries
        return queries
