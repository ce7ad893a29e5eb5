"""Open a data set by the name of its layout.

table = open_layout("osv5m", "datasets/osv5m", "train")     # an error names the first bad row
table, findings = check_layout("osv5m", "datasets/osv5m")   # the usable rows, and the problems of the others
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
    """A layout of data sets on disk.

    Attributes:
        holds: description of its files.
        read: from a path and a split to the usable samples; problems of others are added to the findings.
        splits: names of the splits, the default first; () if there is one only; "*" stands for any other name.
        takes_utm_zone: whether `read` also takes `utm_epsg`, a UTM zone for points without one.
    """

    holds: str
    read: Callable[..., SampleTable]
    splits: tuple[str, ...] = ()
    takes_utm_zone: bool = False


LAYOUTS: Final[Mapping[str, Layout]] = MappingProxyType(
    {
        "osv5m": Layout("train.csv, test.csv and images/", osv5m.read, osv5m.SPLITS),
        "statewide": Layout("dataset.json, latlons.npz and images/", statewide.read, statewide.SPLITS),
        "im2gps": Layout("info.json or im2gps_places365.csv, and images/", im2gps.read),
        "im2gps3k": Layout("info.json or im2gps3k_places365.csv, and images/", im2gps.read),
        "yfcc4k": Layout("info.txt or yfcc4k_places365.csv, and images/", yfcc.read),
        "yfcc26k": Layout("yfcc25600_places365.csv and images", yfcc.read),
        "photos": Layout("photos beside a table, or with a location in their EXIF", photos.read),
        "gsv_cities": Layout("Dataframes/CITY.csv and Images/CITY/", gsv_cities.read, gsv_cities.SPLITS),
        "vg": Layout("folders of images named @east@north@zone@…@.jpg", vg.read, vg.SPLITS, True),
        "webdataset": Layout(".tar shards with a JSON per image", webdataset.read, ("", "*")),
    }
)


def open_layout(
    name: str, path: str | Path, split: str | None = None, *, utm_epsg: int | None = None
) -> SampleTable:
    """All samples of a data set; see `check_layout` for the arguments.

    Raises:
        ConfigError, NotFoundError: as `check_layout`.
        BadTableError: a row is unusable; names the first, their number and the command that lists them.
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
    """The usable samples of a data set, and the problems of the others.

    Args:
        name: name of the layout, see `LAYOUTS`.
        path: path of the data set.
        split: name of the split; None takes the layout's first.
        utm_epsg: for "vg", the EPSG code of the UTM zone of images without zone.

    Raises:
        ConfigError: unknown layout, split or zone.
        NotFoundError: there is no such data set.
        BadTableError: its table cannot be read.
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
        raise ConfigError(f"the layout {name} does not use UTM: utm_epsg is for {taking} only")
    zone = {"utm_epsg": utm_epsg} if layout.takes_utm_zone else {}
    findings = Findings()
    return layout.read(path, splits[0] if split is None else split, findings, **zone), findings
