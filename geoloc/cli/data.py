"""`geoloc data`: check data sets, and write shards of them."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoloc.cli.console import EXIT_SOME_FAILED, check_folder, count, new_app, say
from geoloc.errors import BadTableError

if TYPE_CHECKING:
    from geoloc.data.layouts.findings import Findings
    from geoloc.data.sample import SampleTable

data_app = new_app(help="Check data sets, and make shards of them.")


class LayoutName(str, Enum):
    """Layout of a data set on disk."""

    OSV5M = "osv5m"
    STATEWIDE = "statewide"
    IM2GPS = "im2gps"
    IM2GPS3K = "im2gps3k"
    YFCC4K = "yfcc4k"
    YFCC26K = "yfcc26k"
    PHOTOS = "photos"
    GSV_CITIES = "gsv_cities"
    VG = "vg"
    WEBDATASET = "webdataset"


_LayoutArgument = Annotated[
    LayoutName,
    typer.Argument(metavar="LAYOUT", help=f"One of {', '.join(name.value for name in LayoutName)}."),
]
_PathArgument = Annotated[
    Path, typer.Argument(metavar="PATH", help="The data set: its folder, table or tar.")
]
_SplitOption = Annotated[
    str | None,
    typer.Option("--split", help="train, test, …, if the layout has splits; the first by default."),
]
_UtmOption = Annotated[
    int | None,
    typer.Option(
        "--utm-epsg",
        help="vg: EPSG code of the UTM zone of images without a zone in their name, such as 32632.",
    ),
]


@data_app.command("verify")
def verify(
    layout: _LayoutArgument,
    path: _PathArgument,
    split: _SplitOption = None,
    utm_epsg: _UtmOption = None,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every image.")] = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Threads that decode.")] = 1,
) -> None:
    """List the contents of a data set, and its problems by file and row.

    Exit code 0: every sample is usable. 1: some are not; the first of each kind are listed. 2: it cannot be read.
    """
    table, findings = _check(layout, path, split, utm_epsg)
    if decode:
        from tqdm import tqdm

        from geoloc.data.verify import decode_all

        with tqdm(total=len(table), unit=" images", leave=False, disable=None) as bar:
            decode_all(table, findings, workers, bar.update)
    for finding in findings.named:
        say(f"{finding.kind}: {finding.text}")
    for kind, num in findings.counts.items():
        if num > findings.num_named:
            say(f"{kind}: {num - findings.num_named:,} more")
    say(f"{'samples':<12}{len(table):,}")
    say(f"{'columns':<12}{', '.join(table.columns.column_names)}")
    if len(table):
        (south, west), (north, east) = table.latlon_deg.min(0).tolist(), table.latlon_deg.max(0).tolist()
        say(f"{'latitudes':<12}{south:.4f} to {north:.4f}")
        say(f"{'longitudes':<12}{west:.4f} to {east:.4f}")
    say(f"{'findings':<12}{', '.join(f'{num:,} {kind}' for kind, num in findings.counts.items()) or 'none'}")
    if findings:
        raise typer.Exit(EXIT_SOME_FAILED)


@data_app.command("shard")
def shard(
    layout: _LayoutArgument,
    path: _PathArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the shards.")],
    split: _SplitOption = None,
    utm_epsg: _UtmOption = None,
    samples_per_shard: Annotated[int, typer.Option("--samples-per-shard", min=1, help="In each tar.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the shuffling.")] = 0,
    drop_bad: Annotated[
        bool, typer.Option("--drop-bad", help="Leave out unusable samples instead of raising an error.")
    ] = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0 works in this one.")] = 1,
) -> None:
    """Write a data set as webdataset shards with an index.

    The same command resumes after a kill; the same data give the same bytes.
    """
    from tqdm import tqdm

    from geoloc.data.shards import ShardSet

    check_folder(output)
    table, findings = _check(layout, path, split, utm_epsg)
    if findings and not drop_bad:
        raise BadTableError(
            f"{len(findings):,} samples cannot be used, the first: {findings.named[0].text}; repair them, or leave "
            "them out with --drop-bad"
        )
    shards = ShardSet(output, table, samples_per_shard=samples_per_shard, seed=seed, drop_bad=drop_bad)
    num_done = len(shards.job.shards) - len(shards.job.pending)
    with tqdm(
        total=len(shards.job.shards), initial=num_done, unit=" shards", leave=False, disable=None
    ) as bar:
        num_samples = shards.write(num_workers=workers, on_done=lambda done: bar.update())
    left_out = len(findings) + len(table) - num_samples
    note = f", {count(left_out, 'sample')} left out" if left_out else ""
    say(f"{count(num_samples, 'sample')} in {count(len(shards.job.shards), 'shard')}{note} -> {output}")


def _check(
    layout: LayoutName, path: Path, split: str | None, utm_epsg: int | None
) -> "tuple[SampleTable, Findings]":
    from geoloc.data.layouts import check_layout

    return check_layout(layout.value, path, split, utm_epsg=utm_epsg)
