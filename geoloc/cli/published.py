"""`geoloc models`: list the bundled models and the published models that geoloc can load."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from geoloc.cli.console import say
from geoloc.errors import NotFoundError


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One model, with all that is known.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """List the bundled models and the published models that --model accepts."""
    from geoloc.adapters.registry import MODELS, find_published
    from geoloc.hub.resolve import BUNDLED, bundled_names

    known: list[dict[str, Any]] = [
        {
            "name": bundled,
            "gives": "coordinates",
            "weights": "come with geoloc",
            "weights_licence": "Apache-2.0, as geoloc",
            "card": str(BUNDLED / bundled / "README.md"),
        }
        for bundled in bundled_names()
    ]
    known += [asdict(model) for model in MODELS]
    if name is not None:
        published = find_published(name)
        called = name if published is None else published.name
        known = [facts for facts in known if facts["name"] == called]
        if not known:
            raise NotFoundError(f"{name!r} is not in the list of models; `geoloc models` prints it")
    if as_json:
        print(json.dumps(known, indent=2))
    elif name is not None:
        for key, value in known[0].items():
            if value:
                text = ", ".join(value) if isinstance(value, tuple) else value
                say(f"{key.replace('_', ' ') + ':':18}{text}")
    else:
        for facts in [
            {"name": "NAME", "gives": "GIVES", "weights_licence": "LICENCE OF THE WEIGHTS"},
            *known,
        ]:
            say(f"{facts['name']:44}{facts['gives']:22}{facts['weights_licence']}")
