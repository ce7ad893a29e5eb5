"""Load a model: a checkpoint of geoloc as it is, or a published model as a checkpoint in memory."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from geoloc.adapters.options import Options
from geoloc.adapters.registry import find_published
from geoloc.checkpoint.folder import Checkpoint, Saved, embedding_fingerprint_of, read_checkpoint
from geoloc.checkpoint.resolve import ModelSource
from geoloc.errors import ConfigError
from geoloc.models.plain import to_plain
from geoloc.posterior.calibration import Calibration

if TYPE_CHECKING:
    from geoloc.adapters.adapted import Adapted


def read_model(
    source: ModelSource, device: Any = "cpu", num_threads: int | None = None
) -> tuple[Checkpoint, Saved]:
    """The checkpoint of a model, with its batch norms folded, and its identity.

    Args:
        source: from `resolve_model`.
        device: where its tensors go, as torch names it.
        num_threads: CPU threads of the network; None leaves it to the library.

    Raises:
        As `Geolocalizer.from_pretrained`.
    """
    if source.samples_locations:
        raise ConfigError(
            f"{source.name!r} samples locations, which a Geolocalizer does not: use "
            "geoloc.localize.sampler.LocationSampler.from_pretrained, or geoloc localize"
        )
    if source.is_published:
        return _read_published(source, device, num_threads)
    if source.options != Options():
        given = [name for name, value in to_plain(source.options).items() if value is not None]
        raise ConfigError(
            f"{', '.join(given)} was given for {source.name!r}, a checkpoint of geoloc, which leaves nothing open; "
            "leave it out"
        )
    return read_checkpoint(source.path, device, num_threads)


def _read_published(source: ModelSource, device: Any, num_threads: int | None) -> tuple[Checkpoint, Saved]:
    # Imported here, since they need torch, which an exported model does without.
    from geoloc.adapters.formats import adapt
    from geoloc.checkpoint.gallery import gallery_database, gallery_reranker
    from geoloc.checkpoint.tensors import ready, self_contained

    adapted = adapt(source.path, source.options)
    network = ready(adapted.network, device, num_threads)
    # As of a checkpoint of geoloc, so that references stay valid when the model is saved as one.
    preprocess = adapted.preprocess.to_dict()
    fingerprint = embedding_fingerprint_of(network, self_contained(network), preprocess)
    tree = None if adapted.quadtree is None else adapted.quadtree.fingerprint
    reranker = reference = None
    if (gallery := adapted.gallery) is not None:
        reference = gallery_database(gallery, fingerprint)
        reranker = gallery_reranker(gallery)
    checkpoint = Checkpoint(
        source.name,
        network,
        adapted.preprocess,
        adapted.quadtree,
        Calibration(),
        _card(source.name, adapted),
        reranker,
        reference,
    )
    return checkpoint, Saved(_digest([fingerprint, tree]), fingerprint)


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _card(name: str, adapted: Adapted) -> str:
    published = find_published(name)
    lines = [f"# {name}", "", "Weights published by others, in geoloc's form: not calibrated here."]
    if published is not None:
        lines += [
            "",
            f"- weights: {published.weights}; licence: {published.weights_licence}",
            f"- its authors' code: {published.code_licence}",
            f"- numbers that its authors publish: {published.numbers}",
        ]
    config = adapted.network.config
    heads = [part for part in ("cells", "offsets", "regression") if getattr(config, part) is not None]
    lines += ["", f"It has {', '.join([*heads, *(f'an embedding ({role})' for role in config.embeddings)])}."]
    return "\n".join(lines) + "\n"
