"""Continents of countries and density classes of locations, for breakdowns.

Countries are assigned to seven continents as by GeoNames (Russia to Europe, Turkey and the Caucasus states to Asia).
"""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.geo.places import load_places
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, validate_latlon_deg

_CODES: Final = {
    "Africa": (
        "AO BF BI BJ BW CD CF CG CI CM CV DJ DZ EG EH ER ET GA GH GM GN GQ GW KE KM LR LS LY MA MG ML MR MU MW MZ NA "
        "NE NG RE RW SC SD SH SL SN SO SS ST SZ TD TG TN TZ UG YT ZA ZM ZW"
    ),
    "Antarctica": "AQ BV GS HM TF",
    "Asia": (
        "AE AF AM AZ BD BH BN BT CC CN CX GE HK ID IL IN IO IQ IR JO JP KG KH KP KR KW KZ LA LB LK MM MN MO MV MY NP "
        "OM PH PK PS QA SA SG SY TH TJ TM TR TW UZ VN YE"
    ),
    "Europe": (
        "AD AL AT AX BA BE BG BY CH CY CZ DE DK EE ES FI FO FR GB GG GI GR HR HU IE IM IS IT JE LI LT LU LV MC MD ME "
        "MK MT NL NO PL PT RO RS RU SE SI SJ SK SM UA VA XK"
    ),
    "North America": (
        "AG AI AW BB BL BM BQ BS BZ CA CR CU CW DM DO GD GL GP GT HN HT JM KN KY LC MF MQ MS MX NI PA PM PR SV SX TC "
        "TT US VC VG VI"
    ),
    "Oceania": "AS AU CK FJ FM GU KI MH MP NC NF NR NU NZ PF PG PN PW SB TK TL TO TV UM VU WF WS",
    "South America": "AR BO BR CL CO EC FK GF GY PE PY SR UY VE",
}

CONTINENT_OF: Final[dict[str, str]] = {code: name for name, codes in _CODES.items() for code in codes.split()}

DENSITY_CLASSES: Final = ("no city", "1 to 3 cities", "4 to 15 cities", "16 cities or more")

# Cells of equal area: rows are equal steps of sin(latitude).
_NUM_ROWS, _NUM_COLUMNS = 160, 320
DENSITY_CELL_KM2: Final = 4 * np.pi * EARTH_MEAN_RADIUS_KM**2 / (_NUM_ROWS * _NUM_COLUMNS)  # 9,962 km²


def density_class(latlon_deg: ArrayLike) -> NDArray[np.object_]:
    """Class of the number of GeoNames cities in a point's cell of about 10,000 km², (n, 2) -> (n,).

    Raises:
        InvalidCoordinateError: a coordinate is invalid.
    """
    counts = _cities_in_cells()[_equal_area_cell(validate_latlon_deg(latlon_deg).reshape(-1, 2))]
    return np.array(DENSITY_CLASSES, dtype=np.object_)[np.searchsorted([1, 4, 16], counts, side="right")]


@cache
def _cities_in_cells() -> NDArray[np.int64]:
    return np.bincount(_equal_area_cell(load_places().latlon_deg), minlength=_NUM_ROWS * _NUM_COLUMNS)


def _equal_area_cell(latlon_deg: NDArray[np.float64]) -> NDArray[np.int64]:
    height = (np.sin(np.radians(latlon_deg[:, 0])) + 1) / 2
    row = np.minimum((height * _NUM_ROWS).astype(np.int64), _NUM_ROWS - 1)
    column = ((latlon_deg[:, 1] + 180) / 360 * _NUM_COLUMNS).astype(np.int64)
    return np.asarray(row * _NUM_COLUMNS + np.minimum(column, _NUM_COLUMNS - 1))
