"""Localise the images of a shard: a file of rows, with the stamps of the image files that they came from."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoloc import __version__
from geoloc.errors import ConfigError
from geoloc.files import atomic_write
from geoloc.images.exif import read_exif_latlon_deg
from geoloc.localize.decode import BatchDecoder, DecodedImage
from geoloc.localize.session import Session, SessionOptions, open_session
from geoloc.localize.table import Row, make_row, with_truth
from geoloc.photos.sources import Payload

if TYPE_CHECKING:
    from typing_extensions import Self


class LocalizeWork:
    """Work of a localising job. Picklable; each process opens the session once.

    Args:
        model: a bundled model, a folder, a file or a Hub id; or a session that is open already, for work in this
            process alone.
        options: of the answers; of an open session its own.
        batch_size: images that go through the network together.
        truth_from_exif: add the position in the photo's EXIF to its row. The model never sees it.
        device: "cpu", "cuda", …
        num_threads: CPU threads of the network; None leaves it to the library.
        model_options: of a published file that leaves something open, as `Geolocalizer.from_pretrained` takes them.

    Raises:
        ConfigError: an impossible value.
    """

    def __init__(
        self,
        model: str | Session,
        options: SessionOptions | None = None,
        *,
        batch_size: int = 16,
        truth_from_exif: bool = False,
        device: str = "cpu",
        num_threads: int | None = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_name = model if isinstance(model, str) else model.name
        self.options = (options or SessionOptions()) if isinstance(model, str) else model.options
        self.batch_size, self.truth_from_exif = batch_size, truth_from_exif
        self.device, self.num_threads = device, num_threads
        self.model_options = dict(model_options or {})
        self.on_batch: Callable[[int], object] | None = (
            None  # told the images of each batch, in this process alone
        )
        if not isinstance(model, str):
            self.session = model
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected 1 or more")
        if self.options.max_precision_km is not None and truth_from_exif:
            raise ConfigError(
                "asked for max_precision_km and for the true positions from the photos' EXIF, which are exact: "
                "choose one of them"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without what was loaded: every process loads its own."""
        loaded = ("session", "on_cpu", "_decoder")
        return {name: value for name, value in self.__dict__.items() if name not in loaded} | {
            "on_batch": None
        }

    @cached_property
    def session(self) -> Session:
        """The model with its references, loaded on first use."""
        return open_session(
            self.model_name,
            self.options,
            device=self.device,
            num_threads=self.num_threads,
            model_options=self.model_options,
        )

    @cached_property
    def on_cpu(self) -> Self:
        """This work on the CPU, for a driver that has no device of its workers and only needs the identity."""
        if self.device == "cpu":
            return self
        twin = copy.copy(self)
        twin.device = "cpu"
        return twin

    @property
    def driver_session(self) -> Session:
        """The session of this process: the one that is open, or one on the CPU."""
        return self.__dict__.get("session") or self.on_cpu.session

    def identity(self) -> dict[str, Any]:
        """Plain JSON values that decide the rows, besides the images.

        Raises:
            GeolocError: the model or the references cannot be loaded, or do not belong together.
        """
        return {
            "task": "localize",
            "geoloc": __version__,
            **self.driver_session.identity,
            "batch_size": self.batch_size,
            "truth_from_exif": self.truth_from_exif,
        }

    @cached_property
    def _decoder(self) -> BatchDecoder:
        inspect = read_exif_latlon_deg if self.truth_from_exif else lambda data: None
        return BatchDecoder(self.session.load, self.batch_size, self.num_threads, inspect)

    def prefetch(self, payload: Payload) -> None:
        """See `geoloc.jobs.work.Work`."""
        self._decoder.announce(payload)

    def close(self) -> None:
        """Stop the decoding threads; the session stays open."""
        if "_decoder" in self.__dict__:
            self._decoder.close()
            del self._decoder

    def __call__(self, payload: Payload, output: Path) -> None:
        """Localise the images of a shard."""
        paths = {entry[0]: entry[1] for entry in payload.get("files", ())}
        stamps: list[list[Any]] = []
        rows: list[Row] = []
        for batch in self._decoder.batches(payload):
            rows += self._rows_of(batch)
            if self.on_batch is not None:
                self.on_batch(len(batch))
            stamps += [[paths[image.id], list(image.stamp)] for image in batch if image.stamp is not None]
        with atomic_write(output, "w") as file:
            file.write(json.dumps({"stamps": stamps, "num_rows": len(rows)}) + "\n")
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)

    def _rows_of(self, batch: list[DecodedImage]) -> list[Row]:
        inputs = [image.input for image in batch if image.error is None]
        predictions = iter(self.session.localize(inputs) if inputs else ())
        rows = [
            make_row(image.id, None if image.error is not None else next(predictions), image.error)
            for image in batch
        ]
        if self.truth_from_exif:
            rows = [with_truth(row, image.extra) for row, image in zip(rows, batch, strict=True)]
        return rows


@dataclass(frozen=True)
class ShardRows:
    """The file of a shard that is done.

    Attributes:
        path: of the file.
        num_rows: in it.
        stamps: [path, [size, modification time]] of each image file.
    """

    path: Path
    num_rows: int
    stamps: list[list[Any]]

    def rows(self) -> Iterator[Row]:
        """The rows, one for each image."""
        with open(self.path, encoding="utf-8") as file:
            next(file)
            for line in file:
                yield json.loads(line)


def read_shard(path: Path) -> ShardRows:
    """Open the file of a shard; its rows are read when they are asked for."""
    with open(path, encoding="utf-8") as file:
        head = json.loads(next(file))
    return ShardRows(path, head["num_rows"], head["stamps"])
