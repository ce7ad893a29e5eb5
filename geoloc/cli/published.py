"""`geoloc models`: what is bundled, and what others have published that geoloc reads."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from geoloc.cli.console import say
from geoloc.errors import NotFoundError


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One model, with all that is known.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """List models: those that come with the package, and those of others that --model takes, too."""
    from geoloc.adapters.registry import MODELS, find_published
    from geoloc.hub.resolve import bundled_names

    chosen = MODELS
    if name is not None:
        found = find_published(name)
        if found is None:
            raise NotFoundError(f"no published model is called {name!r}: {', '.join(m.name for m in MODELS)}")
        chosen = (found,)
    if as_json:
        print(json.dumps([asdict(model) for model in chosen], indent=2))
        return
    if name is not None:
        for key, value in asdict(chosen[0]).items():
            if value:
                say(
                    f"{key.replace('_', ' ') + ':':18}{', '.join(value) if isinstance(value, tuple) else value}"
                )
        return
    for bundled in bundled_names():
        say(f"{bundled:44}{'coordinates':22}comes with geoloc")
    for model in chosen:
        say(f"{model.name:44}{model.gives:22}{model.weights_licence}")
