"""What is done with one shard of images: localise them, or embed them. Picklable, and the model is loaded once.

    job = ShardJob("predictions/", plan_shards(["photos/"]), LocalizeWork("earthview").identity())
    job.run(LocalizeWork("earthview"), engine="ray", num_workers=2)

An image that cannot be read gets a row with its error, and stops nothing. Batches are cut inside a shard, and every
process uses the same number of threads: the bytes of a shard's file depend on no engine and no number of workers.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from geoloc import __version__
from geoloc.batch.sources import Payload, read_images
from geoloc.errors import BadImageError, ConfigError
from geoloc.files import atomic_write
from geoloc.images.query import MERGES, QueryMode, check_query_mode
from geoloc.localize.asking import BatchLocalizer, open_asking
from geoloc.localize.coarse import CoarseGrid
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.localize.output import Row, make_row, write_rows
from geoloc.localize.prediction import Prediction
from geoloc.reference.embedder import embed_images

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

Role = Literal["query", "aerial", "street"]
Input = Any  # pictures as a model loads them: a tensor, or an array for an exported model


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """How images go through the model of a worker.

    Attributes:
        query: how a picture is shown to the network, see `geoloc.images.query`.
        batch_size: images that go through the network together.
        device: "cpu", "cuda", …
        num_threads: CPU threads of the network.

    Raises:
        ConfigError: there is no such query mode.
    """

    query: QueryMode = "central_crop"
    batch_size: int = 16
    device: str = "cpu"
    num_threads: int = 1

    def __post_init__(self) -> None:
        check_query_mode(self.query)


class _ModelWork:
    """A model over the images of a shard, batch by batch."""

    def __init__(
        self, model: str, options: WorkOptions | None = None, model_options: Mapping[str, Any] | None = None
    ) -> None:
        self.model_name = model
        self.options = options or WorkOptions()
        self.model_options = dict(model_options or {})

    def __getstate__(self) -> dict[str, Any]:
        """Without what was loaded: every process loads its own."""
        loaded = ("model", "asking", "in_driver")
        return {name: value for name, value in self.__dict__.items() if name not in loaded}

    @cached_property
    def model(self) -> Geolocalizer:
        """The model, loaded when first asked."""
        return Geolocalizer.from_pretrained(
            self.model_name,
            device=self.options.device,
            num_threads=self.options.num_threads,
            **self.model_options,
        )

    @cached_property
    def in_driver(self) -> Self:
        """This work on the CPU, for who only wants to know about it: a driver may not have its workers' device."""
        if self.options.device == "cpu":
            return self
        twin = copy.copy(self)
        twin.options = replace(self.options, device="cpu")
        return twin

    def _identity(self, task: str, model_identity: str) -> dict[str, Any]:
        return {
            "task": task,
            "geoloc": __version__,
            "torch": importlib.metadata.version("torch"),
            "model": model_identity,
            **asdict(self.options),
        }

    def _batches(
        self, payload: Payload, load: Callable[[bytes], Input]
    ) -> Iterator[list[tuple[str, Input | str]]]:
        """Ids with their pictures as `load` makes them, or with the reason why there is none."""

        def loaded(data: bytes | BadImageError) -> Input | str:
            if isinstance(data, BadImageError):
                return data.reason
            try:
                return load(data)
            except BadImageError as error:
                return error.reason

        images = read_images(payload)
        while batch := list(islice(images, self.options.batch_size)):
            yield [(image_id, loaded(data)) for image_id, data in batch]


class LocalizeWork(_ModelWork):
    """Predictions of a shard, in the table that `geoloc localize` writes.

    Args:
        model: a bundled model, a folder or a Hub id.
        options: how images go through it.
        reference: what is searched, see `open_reference`.
        top_k: candidates of a prediction.
        utility: what a predicted point should be good at, see `LocalizeOptions`.
        max_precision_km: no place is said more exactly, see `LocalizeOptions`.
        model_options: of a published file that leaves something open, as `Geolocalizer.from_pretrained` takes them.

    Raises:
        ConfigError: an impossible precision.
    """

    def __init__(
        self,
        model: str,
        options: WorkOptions | None = None,
        *,
        reference: str = "own",
        top_k: int = 5,
        utility: str | None = None,
        max_precision_km: float | None = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, options, model_options)
        self.reference, self.top_k, self.utility = reference, top_k, utility
        self.max_precision_km = max_precision_km
        if max_precision_km is not None:
            CoarseGrid(max_precision_km)  # refuses what is impossible before a model is loaded

    @cached_property
    def asking(self) -> BatchLocalizer:
        """The model with its query mode and its references, loaded when first asked."""
        return open_asking(
            self.model_name,
            self.options.query,
            self.reference,
            device=self.options.device,
            num_threads=self.options.num_threads,
            options=self.model_options,
        )

    def identity(self) -> dict[str, Any]:
        """For `ShardJob`.

        Raises:
            GeolocError: the model or the references cannot be loaded, or do not belong together.
        """
        asking = self.in_driver.asking
        return self._identity("localize", asking.model_identity) | {
            "reference": asking.database,
            "top_k": self.top_k,
            "utility": self.utility,
            "max_precision_km": self.max_precision_km,
        }

    def __call__(self, payload: Payload, output: Path) -> None:
        """Localise the images of a shard."""
        write_rows(output, self._rows(payload))

    def _rows(self, payload: Payload) -> Iterator[Row]:
        for batch in self._batches(payload, self.asking.load):
            tensors = [tensor for _, tensor in batch if not isinstance(tensor, str)]
            predictions = iter(self._localized(tensors) if tensors else ())
            for image_id, tensor in batch:
                if isinstance(tensor, str):
                    yield make_row(image_id, None, tensor)
                else:
                    yield make_row(image_id, next(predictions))

    def _localized(self, images: list[Input]) -> list[Prediction]:
        return self.asking.localize_batch(
            images,
            utility=self.utility,
            top_k=self.top_k,
            abstain_above_km=None,
            max_precision_km=self.max_precision_km,
        )


class EmbedWork(_ModelWork):
    """Embeddings of a shard: a Parquet table of `id`, `embedding` (D numbers) and `error`.

    Args:
        model: a bundled model, a folder or a Hub id.
        role: "query", "aerial" or "street": which of the model's embeddings.
        options: how images go through it.
        model_options: as for `LocalizeWork`.
        dtype: of the numbers.

    Raises:
        ConfigError: the query mode gives an image several embeddings, or the role is that of a reference, which
            has no query mode.
    """

    def __init__(
        self,
        model: str,
        role: Role = "query",
        options: WorkOptions | None = None,
        *,
        model_options: Mapping[str, Any] | None = None,
        dtype: Literal["float16", "float32"] = "float16",
    ) -> None:
        super().__init__(model, options, model_options)
        self.role: Role = role
        self.dtype = dtype
        query = self.options.query
        if role != "query" and query != "central_crop":
            raise ConfigError(f"query mode {query} is for queries, and {role} is a role of references")
        if query in MERGES:
            raise ConfigError(
                f"query mode {query} searches with several embeddings of an image; five_crops averages them into one"
            )

    def identity(self) -> dict[str, Any]:
        """For `ShardJob`."""
        return self._identity("embed", self.in_driver.model.identity) | {
            "role": self.role,
            "dtype": self.dtype,
        }

    def __call__(self, payload: Payload, output: Path) -> None:
        """Embed the images of a shard."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        ids, errors, vectors = [], [], []
        for batch in self._batches(payload, self._load):
            tensors = [tensor for _, tensor in batch if not isinstance(tensor, str)]
            vectors += list(self._embed(tensors)) if tensors else []
            ids += [image_id for image_id, _ in batch]
            errors += [tensor if isinstance(tensor, str) else None for _, tensor in batch]
        following = iter(vectors)
        rows = [None if error is not None else next(following).astype(self.dtype) for error in errors]
        kind = pa.list_(pa.type_for_alias(self.dtype), self.model.embedding_dim)
        table = pa.table(
            {"id": ids, "embedding": pa.array(rows, kind), "error": pa.array(errors, pa.string())}
        )
        with atomic_write(output, "wb") as file:
            pq.write_table(table, file, compression="zstd")

    def _load(self, data: bytes) -> Input:
        return (
            self.model.load_query(data, self.options.query) if self.role == "query" else self.model.load(data)
        )

    def _embed(self, images: list[Input]) -> NDArray[np.float32]:
        if self.role != "query":
            return embed_images(self.model, images, self.role)
        (queries,) = self.model.read(images, embed=True).queries
        return queries
