"""The command `geoloc`, assembled from one module per group of commands.

Commands parse, call the library and print. They import heavy packages themselves, so that `--help` is fast.
Exit codes: 0 success, 1 some images failed (see their rows), 2 error, 130 interrupted.
"""

import sys
import traceback
from typing import Annotated

import typer

from geoloc import __version__
from geoloc.cli.compose import compose as _compose
from geoloc.cli.console import EXIT_ERROR, new_app, say
from geoloc.cli.data import data_app
from geoloc.cli.embed import embed as _embed
from geoloc.cli.evaluate import evaluate_app
from geoloc.cli.export import export_app
from geoloc.cli.hub import pull as _pull
from geoloc.cli.hub import push as _push
from geoloc.cli.localize import localize as _localize
from geoloc.cli.published import models as _models
from geoloc.cli.quadtree import quadtree_app
from geoloc.cli.recall import recall as _recall
from geoloc.cli.reference import reference_app
from geoloc.cli.train import train as _train
from geoloc.errors import GeolocError

app = new_app(
    name="geoloc",
    help="Image geolocation: a photo goes in, coordinates with a calibrated uncertainty come out.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(_localize)
app.command()(_recall)
app.command()(_embed)
app.command()(_compose)
app.command()(_train)
app.command()(_push)
app.command()(_pull)
app.command()(_models)
app.add_typer(data_app, name="data")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(export_app, name="export")
app.add_typer(quadtree_app, name="quadtree")
app.add_typer(reference_app, name="reference")


class _Settings:
    """Options before the command."""

    debug = False


def main() -> None:
    """Run the command; print a deliberate error as one line on stderr, any other with its traceback."""
    try:
        app()
    except Exception as error:
        if _Settings.debug or not isinstance(error, GeolocError | OSError):
            traceback.print_exc()
        else:
            say(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_ERROR)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        named = "" if error.filename is None else f": {error.filename}"
        return f"{error.strerror}{named}"
    return str(error)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"geoloc {__version__}")
        raise typer.Exit


@app.callback()
def _geoloc(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    _Settings.debug = debug
