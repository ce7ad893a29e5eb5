"""FAISS's structures for the search of references. The only folder that imports FAISS.

"flat", "fp16", "sq8" and "pq" have the cells of a quadtree as inverted lists. "hnsw" and "ivfpq" search the whole
database, for models without cells.
"""

from typing import Final, Literal, get_args

from geoloc.errors import ConfigError
from geoloc.search.structures.cache import IndexCache
from geoloc.search.structures.everywhere import WholeIndex
from geoloc.search.structures.lists import CellLists

Structure = Literal["exact", "flat", "fp16", "sq8", "pq", "hnsw", "ivfpq"]

IN_CELLS: Final = ("exact", "flat", "fp16", "sq8", "pq")  # these search the whole database, too
EVERYWHERE: Final = ("hnsw", "ivfpq")

__all__ = [
    "EVERYWHERE",
    "IN_CELLS",
    "CellLists",
    "IndexCache",
    "Structure",
    "WholeIndex",
    "check_searches_cells",
    "check_structure",
]


def check_structure(structure: str) -> Structure:
    """The structure, if there is one of that name.

    Raises:
        ConfigError: there is none.
    """
    for known in get_args(Structure):
        if structure == known:
            found: Structure = known
            return found
    raise ConfigError(f"structure must be one of {', '.join(get_args(Structure))}; found {structure!r}")


def check_searches_cells(structure: str) -> None:
    """Refuse a structure that searches the whole database only.

    Raises:
        ConfigError: it does.
    """
    if structure in EVERYWHERE:
        raise ConfigError(
            f"structure={structure!r} searches the whole database, for models without cells; inside cells search "
            f"{', '.join(IN_CELLS)}"
        )
