"""`geoloc train`: compose an experiment from the configs, and run its recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from geoloc.cli.console import say
from geoloc.errors import ConfigError, MissingDependencyError, NotFoundError


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="experiment=NAME [KEY=VALUE]...",
            help="The experiment, and values of its config to change; without any, the experiments are listed.",
        ),
    ] = None,
    configs: Annotated[
        Path | None,
        typer.Option("--configs", metavar="DIR", help="Folder of configs, if not the package's own."),
    ] = None,
) -> None:
    """Train an experiment, resume its run if there is one, and save the checkpoint.

    For example: geoloc train experiment=own_photos experiment.data.path=photos/
    """
    folder = configs or default_configs()
    if overrides:
        train_experiment(compose_experiment(overrides, folder))
        return
    width = max(map(len, experiments(folder)), default=0)
    for name in experiments(folder):
        say(f"{name:{width}}  {purpose_of(folder / 'experiment' / f'{name}.yaml')}")


def default_configs() -> Path:
    """Folder of the configs that are installed with the package (in a checkout a link to `configs`).

    Raises:
        NotFoundError: it is missing.
    """
    folder = Path(__file__).parents[1] / "configs"
    if not (folder / "train.yaml").is_file():
        raise NotFoundError(
            f"there are no configs in {folder}: install geoloc again, or name a folder of configs with --configs"
        )
    return folder


def experiments(configs: Path) -> list[str]:
    """Sorted names of the experiments in a folder of configs."""
    return sorted(path.stem for path in (configs / "experiment").glob("*.yaml"))


def purpose_of(config: Path) -> str:
    """First comment line of a config, after its `@package` line; empty if there is none."""
    for line in config.read_text("utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ")
    return ""


def compose_experiment(overrides: list[str], configs: Path) -> dict[str, Any]:
    """The composed config as plain values.

    Args:
        overrides: Hydra overrides; a new key needs no plus, since each recipe checks its keys.
        configs: folder of configs.

    Raises:
        ConfigError: an unknown experiment or a malformed override.
    """
    try:
        from hydra import compose, initialize_config_dir
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
    except ImportError as error:
        raise MissingDependencyError(
            "composing configs needs hydra-core: pip install geoloc-vision"
        ) from error

    names = [value.partition("=")[2] for value in overrides if value.startswith("experiment=")]
    if not names or names[-1] not in experiments(configs):
        found = f"there is no experiment {names[-1]!r}" if names else "name an experiment, experiment=NAME"
        raise ConfigError(f"{found}; {configs} has {', '.join(experiments(configs))}")
    try:
        with initialize_config_dir(str(configs.resolve()), version_base="1.3"):
            composed = compose("train", [_addable(value, configs) for value in overrides])
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{str(error).splitlines()[0]}: give it on the command line, KEY=VALUE") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot compose {names[-1]}: {str(error).splitlines()[0]}") from error
    return dict(values)


def _addable(override: str, configs: Path) -> str:
    """`key=value` as an override that may add the key, unless the key is a config group."""
    key, equals, value = override.partition("=")
    plain = key and key[0] not in "+~" and "@" not in key
    override = f"{key}{equals}{_quoted(value)}"
    return f"++{override}" if plain and not (configs / key).is_dir() else override


def _quoted(value: str) -> str:
    """A value in quotes if Hydra's grammar needs them, as for letters beyond ASCII and for commas in paths."""
    if value[:1] in tuple("[{'\"$") or re.fullmatch(r"[\w\s/\-+.$%*@?|:\\]*|\w+\(.*\)", value, re.ASCII):
        return value
    return "'" + value.replace("'", "\\'") + "'"


def train_experiment(values: dict[str, Any]) -> None:
    """Run the recipe of a composed config, and save the resulting checkpoint.

    Raises:
        ConfigError: an unknown recipe, or values that its config does not have.
        GeolocError: as the recipe.
    """
    from geoloc.train.experiments import run_experiment
    from geoloc.train.ranks import is_first_rank

    model = run_experiment(values)
    if is_first_rank():
        model.save_pretrained(values["checkpoint"])
        say(f"saved {values['checkpoint']}; `geoloc localize PHOTO --model {values['checkpoint']}` uses it")
