"""Embed the images of a shard: a Parquet table of `id`, `embedding` (D numbers) and `error`.

    work = EmbedWork("MegaLoc.pth", EmbedOptions(role="street"))
    job = ShardJob("embeddings/", plan_shards(["photos/"]), work.identity())
    job.run(work, engine="ray", num_workers=2)

An image that cannot be read gets a row with its error. Every process uses the same number of threads, and batches are
cut inside a shard, so the bytes of a shard's file depend on no engine and no number of workers.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from geoloc import __version__
from geoloc.errors import ConfigError
from geoloc.files import atomic_write
from geoloc.images.query import MERGES, QueryMode, check_query_mode
from geoloc.localize.decode import BatchDecoder
from geoloc.localize.embedder import Embedder
from geoloc.photos.sources import Payload
from geoloc.reference.embedder import embed_images

if TYPE_CHECKING:
    from typing_extensions import Self

Role = Literal["query", "aerial", "street"]


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Options that decide embeddings, besides the model and the images.

    Attributes:
        role: which of the model's embeddings.
        query: how a query image becomes network inputs, see `geoloc.images.query`.
        batch_size: images that go through the network together.
        dtype: of the numbers.
        device: "cpu", "cuda", …
        num_threads: CPU threads of the network.

    Raises:
        ConfigError: the query mode does not exist, gives an image several embeddings, or was given for a role of
            references, which has none.
    """

    role: Role = "query"
    query: QueryMode = "central_crop"
    batch_size: int = 16
    dtype: Literal["float16", "float32"] = "float16"
    device: str = "cpu"
    num_threads: int = 1

    def __post_init__(self) -> None:
        check_query_mode(self.query)
        if self.role != "query" and self.query != "central_crop":
            raise ConfigError(
                f"query mode {self.query} is for queries, and {self.role} is a role of references"
            )
        if self.query in MERGES:
            raise ConfigError(
                f"query mode {self.query} searches with several embeddings of an image; five_crops averages them into "
                "one"
            )


class EmbedWork:
    """Work of an embedding job. Picklable; each process loads the model once.

    Args:
        model: a bundled model, a folder, a file or a Hub id.
        options: see `EmbedOptions`.
        model_options: of a published file that leaves something open, as `Geolocalizer.from_pretrained` takes them.
    """

    def __init__(
        self,
        model: str,
        options: EmbedOptions | None = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_name, self.options = model, options or EmbedOptions()
        self.model_options = dict(model_options or {})

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded model: every process loads its own."""
        return {name: self.__dict__[name] for name in ("model_name", "options", "model_options")}

    @cached_property
    def embedder(self) -> Embedder:
        """The model, loaded on first use."""
        return Embedder.from_pretrained(
            self.model_name,
            device=self.options.device,
            num_threads=self.options.num_threads,
            **self.model_options,
        )

    @cached_property
    def on_cpu(self) -> Self:
        """This work on the CPU, for a driver that has no device of its workers and only needs the identity."""
        if self.options.device == "cpu":
            return self
        twin = copy.copy(self)
        twin.options = replace(self.options, device="cpu")
        return twin

    @cached_property
    def _decoder(self) -> BatchDecoder:
        if self.options.role == "query":
            return BatchDecoder(
                lambda data: self.embedder.load_query(data, self.options.query), self.options.batch_size
            )
        return BatchDecoder(self.embedder.load, self.options.batch_size)

    def identity(self) -> dict[str, Any]:
        """For `ShardJob`."""
        return {
            "task": "embed",
            "geoloc": __version__,
            "torch": importlib.metadata.version("torch"),
            "model": self.on_cpu.embedder.identity,
            **asdict(self.options),
        }

    def prefetch(self, payload: Payload) -> None:
        """See `geoloc.jobs.work.Work`."""
        self._decoder.announce(payload)

    def __call__(self, payload: Payload, output: Path) -> None:
        """Embed the images of a shard."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        ids: list[str] = []
        errors: list[str | None] = []
        rows: list[NDArray[Any] | None] = []
        for batch in self._decoder.batches(payload):
            inputs = [image.input for image in batch if image.error is None]
            vectors = iter(self._embed(inputs) if inputs else ())
            ids += [image.id for image in batch]
            errors += [image.error for image in batch]
            rows += [
                None if image.error is not None else next(vectors).astype(self.options.dtype)
                for image in batch
            ]
        kind = pa.list_(pa.type_for_alias(self.options.dtype), self.embedder.embedding_dim)
        table = pa.table(
            {
                "id": pa.array(ids, pa.string()),
                "embedding": pa.array(rows, kind),
                "error": pa.array(errors, pa.string()),
            }
        )
        with atomic_write(output, "wb") as file:
            pq.write_table(table, file, compression="zstd")

    def _embed(self, inputs: list[Any]) -> NDArray[np.float32]:
        if self.options.role == "query":
            return self.embedder.embed_query(inputs)
        return embed_images(self.embedder, inputs, self.options.role)
