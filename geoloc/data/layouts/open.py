"""Open a data set by the name of its layout.

table = open_layout("osv5m", "datasets/osv5m", "train")     # or an error that names the first bad row
table, findings = check_layout("osv5m", "datasets/osv5m")   # the good rows, and what is wrong with the others
queries = open_layout("vg", "datasets/pitts30k", "test/queries")
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from geoloc.data.layouts import gsv_cities, im2gps, osv5m, photos, statewide, vg, webdataset, yfcc
from geoloc.data.layouts.findings import Findings
from geoloc.data.sample import SampleTable
from geoloc.errors import BadTableError, ConfigError, NotFoundError


@dataclass(frozen=True)
class Layout:
    """A way in which data sets lie on the disk.

    Attributes:
        holds: what is there, for people.
        read: from a path and a split to the good samples; what is wrong with the others goes to the findings.
        splits: their names, the first is the default; () where there is one only; "*" stands for any other.
        takes_utm_zone: whether `read` also takes `utm_epsg`, a zone for points that do not say theirs.
    """

    holds: str
    read: Callable[..., SampleTable]
    splits: tuple[str, ...] = ()
    takes_utm_zone: bool = False


LAYOUTS: Final[Mapping[str, Layout]] = MappingProxyType(
    {
        "osv5m": Layout("train.csv, test.csv and images/", osv5m.read, osv5m.SPLITS),
        "statewide": Layout("dataset.json, latlons.npz and images/", statewide.read),
        "im2gps": Layout("info.json or im2gps_places365.csv, and images/", im2gps.read),
        "im2gps3k": Layout("info.json or im2gps3k_places365.csv, and images/", im2gps.read),
        "yfcc4k": Layout("info.txt or yfcc4k_places365.csv, and images/", yfcc.read),
        "yfcc26k": Layout("yfcc25600_places365.csv and images", yfcc.read),
        "photos": Layout("photos beside a table, or with a position in their EXIF", photos.read),
        "gsv_cities": Layout("Dataframes/CITY.csv and Images/CITY/", gsv_cities.read, gsv_cities.SPLITS),
        "vg": Layout("folders of images that are called @east@north@zone@…@.jpg", vg.read, vg.SPLITS, True),
        "webdataset": Layout(".tar shards with a JSON beside each picture", webdataset.read, ("", "*")),
    }
)


def open_layout(
    name: str, path: str | Path, split: str | None = None, *, utm_epsg: int | None = None
) -> SampleTable:
    """All samples of a data set.

    Args:
        name: of the layout, see `LAYOUTS`.
        path: of the data set.
        split: None takes the layout's first.
        utm_epsg: of "vg", the EPSG code of the zone of images that do not say theirs.

    Raises:
        ConfigError: no such layout or split, or no such zone.
        NotFoundError: there is no such data set.
        BadTableError: a row cannot be used; names the first, how many there are and how to see them all.
    """
    table, findings = check_layout(name, path, split, utm_epsg=utm_epsg)
    if findings:
        raise BadTableError(
            f"{len(findings):,} rows cannot be used, and {len(table):,} can; the first: {findings.named[0].text}; "
            f"`geoloc data verify {name} {path}{f' --split {split}' if split else ''}` lists them"
        )
    return table


def check_layout(
    name: str, path: str | Path, split: str | None = None, *, utm_epsg: int | None = None
) -> tuple[SampleTable, Findings]:
    """The samples of a data set that can be used, and what is wrong with the others.

    Args:
        name, path, split, utm_epsg: as of `open_layout`.

    Raises:
        ConfigError: no such layout or split, or no such zone.
        NotFoundError: there is no such data set.
        BadTableError: its table cannot be read at all.
    """
    if name not in LAYOUTS:
        known = "; ".join(f"{known} ({layout.holds})" for known, layout in LAYOUTS.items())
        raise ConfigError(f"there is no layout {name!r}; known are {known}")
    layout, path = LAYOUTS[name], Path(path)
    if not path.exists():
        raise NotFoundError(f"there is no {path}; for {name} it should contain {layout.holds}")
    splits = layout.splits or ("",)
    if split is not None and split not in splits and "*" not in splits:
        raise ConfigError(
            f"{name} has no split {split!r}; "
            + (f"it has {', '.join(layout.splits)}" if layout.splits else "it has one only: leave it out")
        )
    if utm_epsg is not None and not layout.takes_utm_zone:
        taking = ", ".join(known for known, layout in LAYOUTS.items() if layout.takes_utm_zone)
        raise ConfigError(f"the points of {name} are in no UTM zone: utm_epsg is for {taking} alone")
    zone = {"utm_epsg": utm_epsg} if layout.takes_utm_zone else {}
    findings = Findings()
    return layout.read(path, splits[0] if split is None else split, findings, **zone), findings
