"""Webdataset shards: our own with an index, osv5m-wds, and others with a JSON per image.

Only images and JSON are decoded, and images stay in the tars.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from geoloc.data.layouts.assemble import KNOWN_COLUMNS, assemble
from geoloc.data.layouts.findings import Findings
from geoloc.data.sample import SampleTable
from geoloc.errors import BadImageError, ConfigError, NotFoundError
from geoloc.files.tables import PointTable
from geoloc.photos.encoded import TarSample, tar_samples

INDEX_NAME: Final = "index.parquet"

_NAMES: Final = {"latitude": ("latitude", "lat", "LAT"), "longitude": ("longitude", "lon", "lng", "LON")}
_MAX_JSON_BYTES: Final = 2**20


def read(path: Path, split: str, findings: Findings) -> SampleTable:
    """The samples of shards.

    Args:
        path: a folder of `geoloc data shard`, a folder with tars at any depth, or one tar.
        split: "" takes all tars; else those in a folder of that name, or with a name that begins with it.
        findings: receives the problems.

    Raises:
        NotFoundError: there are no shards.
        BadTableError: the index is broken.
    """
    folder = path if path.is_dir() else path.parent
    tars = find_tars(path, split)
    if path.is_dir() and not split and (folder / INDEX_NAME).is_file():
        return _indexed(folder, tars, findings)
    tables, ids, latlon_deg = [], [], []
    for tar in tars:
        try:
            samples = list(tar_samples(tar))
        except ConfigError as error:
            findings.add("bad metadata", str(error))
            continue
        known = [_about(tar, sample, findings) for sample in samples]
        ids += [str(values.get("id", sample.key)) for values, sample in zip(known, samples, strict=True)]
        latlon_deg += [
            [_number(values, names) for names in (_NAMES["latitude"], _NAMES["longitude"])]
            for values in known
        ]
        tables.append(_columns(folder, tar, samples, known))
    table = pa.concat_tables(tables)
    stretches = ("image_file", "image_offset", "image_num_bytes", "sample")
    others = {name: table[name] for name in table.column_names if name not in stretches}
    points = PointTable(
        path, np.array(ids, np.object_), np.array(latlon_deg, np.float64).reshape(-1, 2), others
    )

    def where(rows: Sequence[int]) -> list[str]:
        return [
            f"{folder / table['image_file'][row].as_py()} sample {table['sample'][row].as_py()}"
            for row in rows
        ]

    files = table["image_file"].combine_chunks()
    return assemble(
        folder, points, files, findings, stretches={n: table[n] for n in stretches[1:3]}, where=where
    )


def find_tars(path: Path, split: str = "") -> list[Path]:
    """The tars of a path and a split, sorted.

    Raises:
        NotFoundError: there is no tar.
    """
    if path.is_file():
        return [path]
    folder = path / split if split and (path / split).is_dir() else path
    found = sorted(folder.rglob("*.tar"))
    if folder == path and split:
        found = [tar for tar in found if tar.name.startswith(split)]
    if not found:
        raise NotFoundError(
            f"{path} has no .tar{f' of the split {split!r}' if split else ''}; check the path"
        )
    return found


def _indexed(folder: Path, tars: list[Path], findings: Findings) -> SampleTable:
    """The samples of an index; rows past the end of their tar are rejected."""
    table = SampleTable.read(folder / INDEX_NAME)
    sizes = {tar.name: tar.stat().st_size for tar in tars}
    files = table.columns["image_file"].combine_chunks()
    names = files.dictionary.to_pylist()
    length = np.array([sizes.get(name, -1) for name in names], np.int64)[files.indices.to_numpy()]
    ends = table.columns["image_offset"].to_numpy() + table.columns["image_num_bytes"].to_numpy()
    bad = np.flatnonzero(ends > length)

    def where(rows: Sequence[int]) -> list[str]:
        return [f"{folder / INDEX_NAME} row {row + 1}" for row in rows]

    findings.add_rows("missing image", bad, where, lambda row: f"{table.encoded(row)} does not exist")
    return table.take(np.setdiff1d(np.arange(len(table)), bad))


def _about(tar: Path, sample: TarSample, findings: Findings) -> Mapping[str, Any]:
    """The JSON object of a sample; empty if there is none or it is invalid."""
    if sample.about is None:
        return {}
    try:
        values = json.loads(sample.about.read(_MAX_JSON_BYTES))
    except (BadImageError, ValueError, RecursionError) as error:
        findings.add("bad metadata", f"{tar} sample {sample.key}: its JSON cannot be read: {error}")
        return {}
    if not isinstance(values, dict):
        findings.add("bad metadata", f"{tar} sample {sample.key}: its JSON is no object")
        return {}
    return values


def _columns(folder: Path, tar: Path, samples: list[TarSample], known: list[Mapping[str, Any]]) -> pa.Table:
    pictures = [sample.picture for sample in samples]
    columns: dict[str, Any] = {
        "image_file": pa.array([tar.relative_to(folder).as_posix()] * len(samples), pa.string()),
        "image_offset": pa.array([picture.offset for picture in pictures], pa.int64()),
        "image_num_bytes": pa.array([picture.num_bytes for picture in pictures], pa.int64()),
        "sample": pa.array([sample.key for sample in samples], pa.string()),
    }
    for name in dict.fromkeys(KNOWN_COLUMNS):
        texts = [None if values.get(name) is None else str(values[name]) for values in known]
        columns[name] = pa.array(texts, pa.string()).dictionary_encode()
    return pa.table(columns)


def _number(values: Mapping[str, Any], names: Sequence[str]) -> float:
    value = next((values[name] for name in names if name in values), None)
    try:
        return float("nan") if value is None else float(value)
    except (TypeError, ValueError):
        return float("nan")
