"""`geoloc compose`: put a classifier and reference databases of any models together."""

from pathlib import Path
from typing import Annotated

import typer

from geoloc.cli.console import count, say
from geoloc.cli.models import DeviceOption


def compose(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the composed model.")],
    reference: Annotated[
        list[Path],
        typer.Option(
            "--reference", metavar="DIR", help="Reference database; repeatable. It says which model made it."
        ),
    ],
    classifier: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Any model that gives locations, or none: then databases are searched everywhere.",
        ),
    ] = "none",
    name: Annotated[
        str | None, typer.Option(help="Of the composed model; by default that of its parts.")
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Compose a model of a classifier and reference databases that need not have been trained together.

    The result holds copies of all parts, and is used as any other model: --model OUT.
    """
    from geoloc.localize.geolocalizer import Geolocalizer

    chosen = None if classifier == "none" else classifier
    model = Geolocalizer.compose(chosen, reference, name=name, device=device)
    model.save_pretrained(output)
    databases = model.own_databases
    say(
        f"{output}: {model.name}, {count(len(databases), 'database')}, {sum(map(len, databases)):,} references"
    )
