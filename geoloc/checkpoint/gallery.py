"""A gallery of places as a model's own references: encoded once, then found in the cache.

The softmax of scaled cosines over all places of the gallery is the posterior, so all of them are weighed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from geoloc.adapters.adapted import Gallery
from geoloc.hub.foreign import cache_for
from geoloc.posterior.evidence import SOURCES
from geoloc.posterior.reranker import Reranker, RerankerConfig
from geoloc.reference.database import ReferenceDatabase

KERNEL_KM = 25.0  # about how far a place stands for itself where photos are many; nothing that GeoCLIP says


def gallery_database(gallery: Gallery, model_fingerprint: str) -> ReferenceDatabase:
    """The gallery's places with their vectors.

    Args:
        gallery: of a model.
        model_fingerprint: of the model's image side.
    """
    coordinates = np.ascontiguousarray(gallery.latlon_deg).tobytes()
    key = hashlib.sha256(f"{gallery.fingerprint} {model_fingerprint} ".encode() + coordinates).hexdigest()[
        :32
    ]
    parent = cache_for("galleries")
    folder = parent / key
    if not folder.exists():
        unfinished = Path(mkdtemp(prefix=f".{key}.", dir=parent))
        try:
            _build(unfinished / key, gallery, model_fingerprint)
            os.rename(unfinished / key, folder)
        except OSError:
            if not folder.exists():  # else another process was quicker
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return ReferenceDatabase.open(folder, model_fingerprint=model_fingerprint)


def _build(folder: Path, gallery: Gallery, model_fingerprint: str) -> None:
    dim = gallery.encode(gallery.latlon_deg[:1]).shape[1]
    database = ReferenceDatabase.create(folder, dim=dim, model_fingerprint=model_fingerprint)
    database.add_locations(
        gallery.latlon_deg, gallery.encode, provenance=gallery.provenance, licence=gallery.licence
    )


def gallery_reranker(gallery: Gallery) -> Reranker:
    """How the places are weighed: as the model's own softmax does it."""
    parameters = {
        "similarity_scale": np.full(SOURCES, gallery.logit_scale),
        "similarity_bias": np.zeros(SOURCES),
        "log_kernel_km": np.full(SOURCES, np.log(KERNEL_KM)),
        "gate_logit": np.zeros(()),
    }
    return Reranker(RerankerConfig(hidden_dim=0, candidates_per_source=len(gallery.latlon_deg)), parameters)
