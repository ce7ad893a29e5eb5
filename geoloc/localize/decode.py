"""Batches of a shard's images, decoded by threads ahead of the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

from geoloc.errors import BadImageError
from geoloc.photos.sources import Payload, SourceImage, Stamp, read_images, stamp_of

MAX_DECODING_THREADS = 8


class DecodedImage(NamedTuple):
    """An image on its way to the network.

    Attributes:
        id: its name in the output.
        input: of the network; None for an unusable image.
        error: why it is unusable; None for a usable one.
        stamp: size and modification time of its file before it was read; None where it has no file of its own.
        extra: what `inspect` returned for its bytes.
    """

    id: str
    input: Any
    error: str | None
    stamp: Stamp | None
    extra: Any


class BatchDecoder:
    """Decodes the batches of one shard after the other; the next batch while the caller works on one, and no more.

    Args:
        load: encoded bytes -> input of the network; raises BadImageError.
        batch_size: images of a batch.
        num_threads: None is one for each core, up to eight.
        inspect: called with the bytes of each image that can be read, for `DecodedImage.extra`.
    """

    def __init__(
        self,
        load: Callable[[bytes], Any],
        batch_size: int,
        num_threads: int | None = None,
        inspect: Callable[[bytes], Any] = lambda data: None,
    ) -> None:
        self._load, self._inspect, self._batch_size = load, inspect, batch_size
        num_threads = num_threads or min(MAX_DECODING_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(num_threads, "geoloc-decode")
        self._following: Payload | None = None
        self._started: tuple[Payload, Iterator[SourceImage], list[Future[DecodedImage]]] | None = None

    def announce(self, payload: Payload) -> None:
        """Name the shard after the present one: its first batch is decoded during the last batch of this one."""
        self._following = payload

    def batches(self, payload: Payload) -> Iterator[list[DecodedImage]]:
        """The images of a shard in their order, batch by batch."""
        if self._started is not None and self._started[0] == payload:
            _, images, ahead = self._started
        else:
            images = read_images(payload)
            ahead = self._submit(images)
        self._started = None
        while ahead:
            current, ahead = ahead, self._submit(images)
            if not ahead and self._following is not None:
                following, self._following = self._following, None
                upcoming = read_images(following)
                self._started = (following, upcoming, self._submit(upcoming))
            yield [future.result() for future in current]

    def close(self) -> None:
        """Stop the threads; images that were not begun are dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, images: Iterator[SourceImage]) -> list[Future[DecodedImage]]:
        return [self._pool.submit(self._decode, image) for image in islice(images, self._batch_size)]

    def _decode(self, image: SourceImage) -> DecodedImage:
        stamp = None if image.path is None else stamp_of(image.path)
        network_input, error, extra = None, None, None
        try:
            data = image.read()
            extra = self._inspect(data)
            network_input = self._load(data)
        except BadImageError as bad:
            error = bad.reason
        return DecodedImage(image.id, network_input, error, stamp, extra)
