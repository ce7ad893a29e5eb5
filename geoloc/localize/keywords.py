"""Keywords of `Geolocalizer.localize`, for type checkers and editors: two signatures share them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from geoloc.images.query import QueryMode
    from geoloc.localize.references import Reference
    from geoloc.posterior.utility import Utility


class LocalizeKeywords(TypedDict, total=False):
    """As `Geolocalizer.localize` describes them."""

    query: QueryMode
    reference: Reference
    utility: str | Utility | None
    top_k: int
    abstain_above_km: float | None
    max_precision_km: float | None
    places: bool
    batch_size: int
