"""Layout of SF-XL and the Deep VG benchmark's sets (Pitts, Tokyo 24/7, MSLS, St Lucia, Nordland, …).

Coordinates are parsed from the file name, below `images/` or not:

    images/test/queries/@UTM_east@UTM_north@zone@letter@latitude@longitude@panorama@tile@heading@pitch@roll@height@time@note@.jpg

A split is a folder: "train/database", "val/queries", "test/queries_v1", …; "train" takes all below it, and "" the
folder itself. Fields may be empty, and trailing ones missing, except for the coordinates: UTM with zone and letter, or
latitude and longitude. If both are given, they must agree, and UTM is used, precise to the centimetre. The letter
is a latitude band (N to X are north), so S is in the north.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from geoloc.data.layouts.assemble import assemble
from geoloc.data.layouts.findings import Findings, Kind
from geoloc.data.layouts.image_tree import ImageTree, strip_suffix
from geoloc.data.sample import SampleTable
from geoloc.errors import NotFoundError
from geoloc.files.tables import PointTable
from geoloc.geo.utm import BANDS, NUM_ZONES, from_utm, to_utm, utm_band, zone_of_epsg
from quadtree.sphere import haversine_km

SPLITS: Final = (
    *("train", "train/database", "train/queries", "val/database", "val/queries", "test/database"),
    *("test/queries", "test/queries_v1", "test/queries_v2", "*"),
)
FIELDS: Final = (
    *("east", "north", "zone", "letter", "latitude", "longitude", "panorama", "tile", "heading", "pitch"),
    *("roll", "height", "time", "note"),
)
PATTERN: Final = "@UTM_east@UTM_north@zone@letter@latitude@longitude@…@.jpg"
MAX_DISAGREEMENT_M: Final = 5.0  # between UTM and degrees; five decimals of a degree are precise to 0.8 m
_BAND_SLACK_DEG: Final = 0.5  # towns at a border of bands may be kept in one band

Texts = NDArray[np.object_]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def vg_stem(
    latlon_deg: tuple[float, float],
    *,
    panorama: str = "",
    heading_deg: float | None = None,
    time: str = "",
    note: str = "",
) -> str:
    """File name without suffix: coordinates in UTM and degrees, and the other fields that are known.

    Args:
        latlon_deg: location.
        panorama: name of the panorama.
        heading_deg: in [0, 360).
        time: YYYYMMDD_hhmmss, or its beginning.
        note: any text without "@".

    >>> vg_stem((37.7, -122.4), panorama="p1", heading_deg=90)
    '@0552892.52@4172699.61@10@S@37.70000@-122.40000@p1@@090@@@@@@'
    """
    utm = to_utm(np.array([latlon_deg]))
    band = str(utm_band(latlon_deg[0]))
    heading = "" if heading_deg is None else f"{round(heading_deg) % 360:03}"
    return (
        f"@{utm.east_m[0]:010.2f}@{utm.north_m[0]:010.2f}@{utm.zone[0]:02}@{band}@{latlon_deg[0]:08.5f}"
        f"@{latlon_deg[1]:09.5f}@{panorama}@@{heading}@@@@{time}@{note}@"
    )


def read(folder: Path, split: str, findings: Findings, utm_epsg: int | None = None) -> SampleTable:
    """The samples of a split's folder.

    Args:
        folder: folder of the data set.
        split: a folder below it or below its `images`.
        findings: receives the problems.
        utm_epsg: UTM zone of images with neither zone nor degrees.

    Raises:
        NotFoundError: there is no such folder, or no image in it.
        ConfigError: `utm_epsg` is not the code of a UTM zone.
    """
    zone = None if utm_epsg is None else zone_of_epsg(utm_epsg)
    tree = ImageTree(folder, _split_folder(folder, split))
    if not len(tree.files):
        raise NotFoundError(f"{folder} has no image of the split {split!r}: expected names such as {PATTERN}")
    names = _Names(folder, tree.files, findings, zone)
    points, files = names.points(), tree.files.filter(pa.array(names.is_good))
    where = lambda rows: [f"{folder / points.ids[row]}" for row in rows]  # noqa: E731
    return assemble(folder, points, files, findings, where=where)


def _split_folder(folder: Path, split: str) -> str:
    for below in (f"images/{split}", split):
        if (folder / below).is_dir():
            return below
    base = folder / "images" if (folder / "images").is_dir() else folder
    there = sorted(
        path.relative_to(base).as_posix()
        for pattern in ("*/", "*/*/")
        for path in base.glob(pattern)
        if path.is_dir()
    )
    raise NotFoundError(
        f"{base} has no folder {split!r}; "
        + (f"it has {', '.join(there[:20])}" if there else "an empty split takes the images right in it")
    )


class _Names:
    """Fields of the images' names; images with problems are added to the findings and marked as unusable."""

    def __init__(
        self, folder: Path, files: pa.Array, findings: Findings, zone: tuple[int, bool] | None
    ) -> None:
        self.folder, self.files, self.findings, self.zone = folder, files, findings, zone
        self.is_good = np.ones(len(files), np.bool_)
        stems = strip_suffix(pc.replace_substring_regex(files, r"^.*/", ""))
        is_like = pc.match_substring_regex(stems, r"^@[^@]*@[^@]*").to_numpy(zero_copy_only=False)
        self._leave_out(
            "bad metadata",
            ~is_like,
            lambda row: (
                f"its name is not like {PATTERN}: "
                "rename it, or put its location into a table and use the layout 'photos'"
            ),
        )
        padded = pc.binary_join_element_wise(stems, "@" * (len(FIELDS) + 1), "")
        fields = pc.split_pattern(padded, "@")
        self.texts = {
            name: pc.utf8_trim_whitespace(pc.list_element(fields, place))
            for place, name in enumerate(FIELDS, 1)
        }

    def points(self) -> PointTable:
        """The usable images; ids are paths below the data set's folder."""
        latlon_deg = self._positions()
        heading = self._numbers("heading")
        others = {
            "heading_deg": pa.array(heading % 360, from_pandas=True),
            "captured_at": _seconds(self.texts["time"]),
            "is_night": _flag(self.texts["note"], "night", "day"),
            "is_sideways": _flag(self.texts["note"], "sideways", "forward|backward"),
        }
        good = pa.array(self.is_good)
        return PointTable(
            self.folder,
            np.asarray(self.files.filter(good).to_numpy(zero_copy_only=False), np.object_),
            latlon_deg[self.is_good],
            {
                name: pa.chunked_array([column.filter(good)])
                for name, column in others.items()
                if column.null_count < len(column)
            },
        )

    def _positions(self) -> FloatArray:
        east, north, zone, latitude, longitude = map(
            self._numbers, ("east", "north", "zone", "latitude", "longitude")
        )
        degrees = np.stack([latitude, longitude], -1)
        has_degrees = np.isfinite(latitude) & np.isfinite(longitude)
        has_metres = np.isfinite(east) & np.isfinite(north)
        zone, is_north, has_zone = self._zones(zone, latitude)
        self._leave_out(
            "bad coordinate",
            has_metres & ~has_zone & ~has_degrees,
            lambda row: (
                "its name has neither a UTM zone (number and letter) nor latitude and longitude: give the zone of "
                "all such images as --utm-epsg, 326 and its number in the north, 327 and its number in the south; "
                "if the metres are in no real zone, any zone works within this set"
                + (
                    f"; if {east[row]:g} and {north[row]:g} are degrees, they belong after the fifth @"
                    if abs(east[row]) <= 90 and abs(north[row]) <= 180
                    else ""
                )
            ),
        )
        self._leave_out(
            "bad coordinate",
            ~has_metres & ~has_degrees,
            lambda row: (
                "its name has neither UTM east and north nor latitude and longitude: add one of the two, or remove it"
            ),
        )
        rows = np.flatnonzero(self.is_good & has_metres & has_zone)
        found = np.full_like(degrees, np.nan)
        found[rows] = from_utm(east[rows], north[rows], zone[rows].astype(np.int64), is_north[rows])
        is_invalid = np.zeros(len(east), np.bool_)
        is_invalid[rows] = np.isnan(found[rows]).any(-1)
        self._leave_out(
            "bad coordinate",
            is_invalid,
            lambda row: (
                f"UTM has no east {east[row]:.2f}, north {north[row]:.2f} (east is at most 1,000,000 m and north at "
                "most 10,000,000 m): correct them, or empty them if latitude and longitude are given"
            ),
        )
        self._check_bands(found, has_degrees)
        is_both = self.is_good & np.isfinite(found).all(-1) & has_degrees & (np.abs(latitude) <= 90)
        apart_m = np.zeros(len(east))
        apart_m[is_both] = haversine_km(found[is_both], degrees[is_both]) * 1000
        self._leave_out(
            "bad coordinate",
            apart_m > MAX_DISAGREEMENT_M,
            lambda row: (
                f"its UTM coordinates are {apart_m[row]:,.0f} m from its latitude and longitude: empty the wrong "
                "fields, or correct the zone"
            ),
        )
        return np.where(np.isfinite(found).all(-1, keepdims=True), found, degrees)

    def _zones(self, zone: FloatArray, latitude: FloatArray) -> tuple[FloatArray, BoolArray, BoolArray]:
        """Zone, whether it is in the north, and whether both are known, of each image."""
        letters = np.asarray(self.texts["letter"].to_numpy(zero_copy_only=False), np.object_).astype(np.str_)
        letters = np.char.upper(letters)
        is_empty = letters == ""
        is_band = np.isin(letters, list(BANDS))
        with np.errstate(invalid="ignore"):
            is_wrong = np.isfinite(zone) & ~((zone >= 1) & (zone <= NUM_ZONES) & (zone % 1 == 0))
        self._leave_out(
            "bad coordinate",
            is_wrong | ~(is_band | is_empty),
            lambda row: (
                f"there is no UTM zone {self.texts['zone'][row].as_py()}{letters[row]}: zones are 1 to {NUM_ZONES}, "
                f"letters are {BANDS[0]} to {BANDS[-1]} without I and O; correct it, or empty both if latitude and "
                "longitude are given"
            ),
        )
        is_north = np.where(is_empty, latitude >= 0, letters >= "N")
        has_zone = np.isfinite(zone) & (is_band | np.isfinite(latitude)) & ~is_wrong
        if self.zone is None:
            return zone, is_north, has_zone
        is_default = ~has_zone & ~np.isfinite(latitude)
        return (
            np.where(is_default, self.zone[0], zone),
            np.where(is_default, self.zone[1], is_north),
            has_zone | is_default,
        )

    def _check_bands(self, found: FloatArray, has_degrees: BoolArray) -> None:
        """Reject letters of bands far from the metres' latitude, most often an S that means "south".

        N is accepted, since it means "north" in either sense. Images with degrees are checked by those.
        """
        rows = np.flatnonzero(self.is_good & np.isfinite(found).all(-1) & ~has_degrees)
        letters = np.char.upper(
            np.asarray(self.texts["letter"].to_numpy(zero_copy_only=False), np.object_).astype(np.str_)
        )
        fits = np.ones(len(letters), np.bool_)
        fits[rows] = (letters[rows] == "N") | (letters[rows] == "")
        for shift_deg in (-_BAND_SLACK_DEG, _BAND_SLACK_DEG):
            fits[rows] |= utm_band(found[rows, 0] + shift_deg) == letters[rows]
        self._leave_out(
            "bad coordinate",
            ~fits,
            lambda row: (
                f"its letter {letters[row]} is the band of latitudes from {8 * BANDS.index(letters[row]) - 80} on, but "
                f"its metres are at {found[row, 0]:.1f}: correct the metres, or the letter, which is M or an earlier "
                "one in the south"
            ),
        )

    def _numbers(self, name: str) -> FloatArray:
        """A field as numbers, NaN if empty."""
        texts = self.texts[name]
        is_number = pc.match_substring_regex(texts, r"^[-+]?(\d+\.?\d*|\.\d+)$")
        is_empty = pc.equal(texts, "")
        self._leave_out(
            "bad metadata",
            ~pc.or_(is_number, is_empty).to_numpy(zero_copy_only=False),
            lambda row: (
                f"the {name} in its name is {texts[row].as_py()!r}, which is no number; leave it empty if it is unknown"
            ),
        )
        unsigned = pc.replace_substring_regex(texts, r"^\+", "")
        values = pc.if_else(is_number, unsigned, pa.scalar(None, pa.string())).cast(pa.float64())
        return np.asarray(values.fill_null(float("nan")).to_numpy(zero_copy_only=False), np.float64)

    def _leave_out(self, kind: Kind, bad: BoolArray, what: Callable[[int], str]) -> None:
        rows = np.flatnonzero(bad & self.is_good)

        def where(rows: Sequence[int]) -> list[str]:
            return [f"{self.folder / self.files[row].as_py()}" for row in rows]

        self.findings.add_rows(kind, rows, where, what)
        self.is_good[rows] = False


def _seconds(times: pa.Array) -> pa.Array:
    """Seconds since 1970 of YYYYMMDD_hhmmss or its beginning; null if it is empty or invalid."""
    parts = pc.extract_regex(
        times,
        r"^(?P<year>\d{4})(?P<month>\d{2})?(?P<day>\d{2})?(?:_(?P<hour>\d{2})?(?P<minute>\d{2})?(?P<second>\d{2})?)?$",
    )

    def part(name: str, unknown: tuple[str, ...], default: str) -> pa.Array:
        texts = pc.struct_field(parts, name)
        return pc.if_else(pc.is_in(texts, value_set=pa.array(unknown)), default, texts)

    year = pc.struct_field(parts, "year")
    month, day = part("month", ("", "00"), "01"), part("day", ("", "00"), "01")
    clock = [part(name, ("",), "00") for name in ("hour", "minute", "second")]
    joined = pc.binary_join_element_wise(year, month, day, *clock, "-")
    moments = pc.strptime(joined, format="%Y-%m-%d-%H-%M-%S", unit="s", error_is_null=True)
    return moments.cast(pa.int64()).cast(pa.float64())


def _flag(notes: pa.Array, yes: str, no: str) -> pa.Array:
    """1.0 for notes with the word `yes`, 0.0 for notes with `no`, else null; words are separated by underscores."""
    has = [pc.match_substring_regex(notes, rf"(?i)(^|_)({word})(_|$)") for word in (yes, no)]
    return pc.case_when(pc.make_struct(*has), pa.scalar(1.0), pa.scalar(0.0))
