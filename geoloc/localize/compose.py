"""Compose a model of parts that were never trained together.

    model = compose("osv5m/baseline", ["street/", "aerial/"])

The classifier chooses the cells that are searched, each database is searched with vectors of the model that made it,
and all candidates meet in one posterior. Without a classifier every database is searched everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoloc.checkpoint.folder import Saved
from geoloc.errors import ConfigError
from geoloc.localize.embedder import Embedder
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.localize.references import opened, with_embedders

if TYPE_CHECKING:
    from geoloc.localize.references import References
    from geoloc.reference.database import ReferenceDatabase


def compose(
    classifier: str | Path | Geolocalizer | None,
    references: Sequence[str | Path | ReferenceDatabase],
    *,
    name: str | None = None,
    device: Any = "cpu",
    num_threads: int | None = None,
) -> Geolocalizer:
    """A model of a classifier and databases, each database with the model that embedded it.

    Databases of one embedder share its forward, that of the classifier included. Until the reranker and the radii are
    fitted (`fit_reranker`, `calibrate`), the fusion has default scales and there are no radii.

    Args:
        classifier: any model with cells, a regression or a gallery, by name or loaded; None searches everywhere.
        references: folders of databases, or open ones, at least one.
        name: of the composed model; None joins those of the parts.
        device: where tensors go, as torch names it.
        num_threads: CPU threads of the networks; None leaves it to the library.

    Raises:
        ConfigError: there is no database, or a database does not say which model made it.
        FingerprintMismatchError: a database's model is another one now.
        GeolocError: a part cannot be loaded.
    """
    databases = opened(references)
    if not databases:
        raise ConfigError("there is nothing to compose: give at least one reference database")
    if classifier is None:
        base = _of_first_embedder(databases[0], device, num_threads)
    elif isinstance(classifier, Geolocalizer):
        base = classifier
    else:
        base = Geolocalizer.from_pretrained(classifier, device=device, num_threads=num_threads)
    found = with_embedders(base, databases, num_threads=num_threads)
    together = name or " + ".join(
        [*([] if classifier is None else [base.name]), *(d.folder.name for d in databases)]
    )
    checkpoint = replace(
        base.as_checkpoint(),
        name=together,
        card=_card(together, None if classifier is None else base, found),
        reranker=base.reranker if base.reference is not None and _is_gallery_model(base) else None,
        parts=found.as_parts(),
        uses_location_heads=classifier is not None and base.pipeline.uses_location_heads,
    )
    return Geolocalizer.of_checkpoint(checkpoint, Saved(None, base.embedding_fingerprint))


def _is_gallery_model(model: Geolocalizer) -> bool:
    """Whether the model's own database is its classifier, whose softmax is its reranker."""
    return not model.pipeline.has_location_head


def _of_first_embedder(database: ReferenceDatabase, device: Any, num_threads: int | None) -> Geolocalizer:
    """The model that embedded a database, as a model of its own."""
    if isinstance(database.model, Geolocalizer):
        return database.model
    origin = database.model_origin
    if origin is None:
        raise ConfigError(
            f"{database.folder} does not say which model made it: open it with ReferenceDatabase.open(folder, "
            "model=…), or give a classifier"
        )
    return Geolocalizer.from_pretrained(
        origin.path_from(database.folder),
        revision=origin.revision,
        subfolder=origin.subfolder,
        device=device,
        num_threads=num_threads,
        **origin.options,
    )


def _card(name: str, classifier: Embedder | None, references: References) -> str:
    lines = [f"# {name}", "", "A model composed of parts.", ""]
    if classifier is None:
        lines.append("- no classifier: every database is searched everywhere")
    else:
        lines.append(f"- classifier: {classifier.name}")
    for number, database in enumerate(references.databases):
        embedder = references.embedder_of(number)
        by = (
            "the classifier's network"
            if embedder is None and classifier is not None
            else (
                database.model_origin.name
                if embedder is None and database.model_origin is not None
                else "its first network"
                if embedder is None
                else embedder.name
            )
        )
        lines.append(f"- references: {database.folder.name}, {len(database):,} rows, embedded by {by}")
    return "\n".join(lines) + "\n"
