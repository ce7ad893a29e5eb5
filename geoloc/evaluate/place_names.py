"""Administrative names of predicted and true coordinates, by the protocol's rule."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from geoloc.evaluate.matching import Matched
from geoloc.files.tables import Strings
from geoloc.geo.countries import COUNTRY_NAMES
from geoloc.geo.places import NearestPlaces, load_places
from geoloc.metrics.admin import LEVELS, UNKNOWN, joined_keys
from geoloc.metrics.protocols import AdminRule

# Columns of the truth by level: OSV-5M's joined keys, or plain names.
JOINED_COLUMNS: Final = {
    "country": "unique_country",
    "region": "unique_region",
    "sub_region": "unique_sub-region",
    "city": "unique_city",
}
PLAIN_COLUMNS: Final = {
    "country": ("country", "country_code"),
    "region": ("region", "admin1"),
    "sub_region": ("sub-region", "sub_region", "admin2"),
    "city": ("city", "name"),
}
# Missing values of pandas.read_csv (its documentation, `na_values`)
PANDAS_MISSING: Final = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)


@dataclass(frozen=True)
class Names:
    """Names of n images.

    Attributes:
        predicted: level -> (n,) keys; "" for an image without a prediction.
        true: level -> (n,) keys.
        known: level -> (n,) whether the true key is known.
        true_country: (n,) ISO codes, "" if not known.
        predicted_country: (n,) ISO codes.
        source: description of the source of the true names.
    """

    predicted: dict[str, Strings]
    true: dict[str, Strings]
    known: dict[str, NDArray[np.bool_]]
    true_country: Strings
    predicted_country: Strings
    source: str


def name_places(matched: Matched, rule: AdminRule) -> Names:
    """Names of all images under a rule; "none" and "polygon" use the nearest city, for breakdowns only."""
    known_prediction = np.isfinite(matched.predicted_latlon_deg[:, 0])
    predicted = _blank_where_missing(
        _keys(matched.predicted_latlon_deg[known_prediction], rule), known_prediction
    )
    true, source = _true_keys(matched, rule)
    country = true["country"]
    if rule == "osv5m":
        known = {level: np.ones(len(matched), bool) for level in true}
        true = {level: _as_pandas_reads(keys) for level, keys in true.items()}
    else:
        known = {level: _is_none_of(keys, UNKNOWN) for level, keys in true.items()}
    return Names(predicted, true, known, country, predicted["country"], source)


def _nearest(latlon_deg: NDArray[np.float64], rule: AdminRule) -> NearestPlaces:
    places = load_places()
    return places.nearest_in_degrees(latlon_deg) if rule == "osv5m" else places.nearest(latlon_deg)


def _keys(latlon_deg: NDArray[np.float64], rule: AdminRule) -> dict[str, Strings]:
    """The four keys of points, joined once per city."""
    found = _nearest(latlon_deg, rule)
    rows, index = np.unique(found.place_id, return_inverse=True)
    places = load_places()
    keys = joined_keys(
        places.country_codes[rows], places.admin1[rows], places.admin2[rows], places.names[rows]
    )
    return {level: values[index] for level, values in keys.items()}


def _blank_where_missing(keys: dict[str, Strings], known: NDArray[np.bool_]) -> dict[str, Strings]:
    blank = {level: np.full(len(known), "", dtype=np.object_) for level in keys}
    for level, values in keys.items():
        blank[level][known] = values
    return blank


def _true_keys(matched: Matched, rule: AdminRule) -> tuple[dict[str, Strings], str]:
    columns = matched.truth.others
    joined = {level: name for level, name in JOINED_COLUMNS.items() if name in columns}
    if "country" in joined:
        return (
            {level: matched.truth_text(name) for level, name in joined.items()},
            f"the truth's columns {', '.join(joined.values())}",
        )
    plain = {level: name for level, names in PLAIN_COLUMNS.items() for name in names if name in columns}
    if "country" not in plain:
        how = "in raw degrees, as reverse_geocoder finds it" if rule == "osv5m" else "on the sphere"
        return _keys(matched.truth_latlon_deg, rule), f"the city nearest to the true position, {how}"
    parts = {level: matched.truth_text(name) for level, name in plain.items()}
    parts["country"] = _to_codes(parts["country"])
    keys, key = {"country": parts["country"]}, parts["country"]
    for level in LEVELS[1:]:
        if level not in parts:
            break  # a key contains all levels above
        key = parts[level] + "_" + key
        key[~_is_none_of(parts[level], UNKNOWN)] = ""
        keys[level] = key
    return keys, f"the truth's columns {', '.join(plain[level] for level in keys)}"


def _as_pandas_reads(keys: Strings) -> Strings:
    """Keys as OSV-5M's loader reads them: values that pandas treats as missing become "NaN".

    OSV-5M's metric filters "nan", not "NaN", so these rows (all of Namibia, code NA, included) count as wrong.
    """
    read = keys.copy()
    read[~_is_none_of(keys, PANDAS_MISSING)] = "NaN"
    return read


def _to_codes(countries: Strings) -> Strings:
    """ISO codes of English country names; other texts are unchanged."""
    code_of = {name: code for code, name in COUNTRY_NAMES.items()}
    return np.array([code_of.get(text, text) for text in countries], dtype=np.object_)


def _is_none_of(keys: Strings, words: tuple[str, ...]) -> NDArray[np.bool_]:
    import pyarrow as pa
    import pyarrow.compute as pc

    is_word = pc.is_in(pa.array(keys, pa.string()), value_set=pa.array(words))
    return np.asarray(~is_word.to_numpy(zero_copy_only=False))
