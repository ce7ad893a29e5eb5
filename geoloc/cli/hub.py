"""`geoloc push` and `geoloc pull`: transfer models and reference databases to and from the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated, Any

import typer

from geoloc.cli.console import check_folder, count, say
from geoloc.cli.parsing import BoundsOption, PathsOption, parse_bounds
from geoloc.errors import ConfigError

_Repository = Annotated[str, typer.Argument(metavar="REPO_ID", help="A repository of the Hub, org/name.")]


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A saved model, or a database of references.")
    ],
    repo_id: _Repository,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a repository that is made now.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch; made if there is none.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of changing the branch.")
    ] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="What the commit says.")] = None,
    metrics: Annotated[
        list[Path],
        typer.Option(
            metavar="REPORT",
            help="A report of `geoloc evaluate` or `recall`, for a model's card. Repeatable.",
        ),
    ] = [],  # noqa: B006
    licence: Annotated[
        str | None, typer.Option(help="Of the weights or the database, by the Hub's names: apache-2.0, …")
    ] = None,
) -> None:
    """Publish a model or a database on the Hugging Face Hub, with a card; `hf auth login` first.

    If the upload is interrupted, the same command resumes it.
    """
    from geoloc.files import read_manifest
    from geoloc.reference.manifest import KIND

    manifest = read_manifest(folder)
    where: dict[str, Any] = {"private": private, "revision": revision, "create_pr": create_pr}
    where["commit_message"] = message
    if manifest.get("kind") == KIND:
        from geoloc.reference.database import ReferenceDatabase

        if metrics:
            raise ConfigError(f"--metrics is for the card of a model, and {folder} is a reference database")
        pushed = ReferenceDatabase.open(folder).push_to_hub(repo_id, licence=licence or "unknown", **where)
    elif "config.json" in manifest["files"]:
        from geoloc.checkpoint.publish import push_checkpoint
        from geoloc.hub.push import PushOptions

        pushed = push_checkpoint(folder, repo_id, PushOptions(**where), metrics=metrics, licence=licence)
    else:
        raise ConfigError(
            f"{folder} is neither a saved model nor a reference database, according to its manifest"
        )
    say(f"{folder} -> {pushed.url}")
    say(f"pinned by revision {pushed.commit}")


def pull(
    repo_id: _Repository,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to; an older state of it is replaced.")
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH|TAG|COMMIT", help="The main branch without.")
    ] = None,
    subfolder: Annotated[str, typer.Option(help="Where in the repository a model is.")] = "",
    bounds: BoundsOption = None,
    paths: PathsOption = [],  # noqa: B006
) -> None:
    """Bring a model or a database from the Hugging Face Hub into a folder, verified.

    If the download is interrupted, the same command resumes it. --bounds or --path select the rows of a region of a
    database.
    """
    from geoloc.hub.pull import kind_of

    check_folder(folder)
    box = parse_bounds(bounds)
    is_region = box is not None or bool(paths)
    if is_region or kind_of(repo_id, revision) == "dataset":
        if subfolder:
            raise ConfigError("--subfolder is for models: a database is at the top of its repository")
        from geoloc.reference.database import ReferenceDatabase

        database = ReferenceDatabase.from_hub(
            repo_id, folder, revision=revision, bounds_deg=box, paths=paths or None
        )
        say(f"{count(len(database), 'row')} -> {folder}")
        return
    from geoloc.checkpoint.publish import pull_checkpoint

    found = pull_checkpoint(repo_id, folder, revision=revision, subfolder=subfolder)
    say(f"{found} -> {folder}")
