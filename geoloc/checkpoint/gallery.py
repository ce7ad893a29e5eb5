"""The gallery of a published model as its reference database: encoded once, then read from the cache.

The posterior of such a model is the softmax of scaled cosines over all locations of the gallery.
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

KERNEL_KM = 25.0  # our choice of a location's kernel width; GeoCLIP has none


def gallery_database(gallery: Gallery, model_fingerprint: str) -> ReferenceDatabase:
    """The database of a gallery's locations and their vectors.

    Args:
        gallery: of the model.
        model_fingerprint: of the model's image tower.
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
            if not folder.exists():  # otherwise another process has built it
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
    """Plain fusion with the scale of the model's own softmax."""
    parameters = {
        "similarity_scale": np.full(SOURCES, gallery.logit_scale),
        "similarity_bias": np.zeros(SOURCES),
        "log_kernel_km": np.full(SOURCES, np.log(KERNEL_KM)),
        "gate_logit": np.zeros(()),
    }
    return Reranker(RerankerConfig(hidden_dim=0, candidates_per_source=len(gallery.latlon_deg)), parameters)
