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
    """Train an experiment, going on with its run if there is one, and save the checkpoint.

    For example: geoloc train experiment=own_photos experiment.data.path=photos/
    """
    folder = configs or default_configs()
    if not overrides:
        say("experiments: " + ", ".join(experiments(folder)))
        return
    train_experiment(compose_experiment(overrides, folder))


def default_configs() -> Path:
    """The configs that come with the package: in a checkout a link to its folder `configs`.

    Raises:
        NotFoundError: there are none.
    """
    folder = Path(__file__).parents[1] / "configs"
    if not (folder / "train.yaml").is_file():
        raise NotFoundError(
            f"there are no configs in {folder}: install geoloc again, or name a folder of configs with --configs"
        )
    return folder


def experiments(configs: Path) -> list[str]:
    """Names of the experiments in a folder of configs."""
    return sorted(path.stem for path in (configs / "experiment").glob("*.yaml"))


def compose_experiment(overrides: list[str], configs: Path) -> dict[str, Any]:
    """The composed config as plain values.

    Args:
        overrides: Hydra's; a key that no file has yet needs no plus, since the recipe's own config is strict.
        configs: where they are.

    Raises:
        ConfigError: no such experiment, or an override that is none.
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
    """`key=value` as an override that may add the key, unless it chooses a file of a group."""
    key, equals, value = override.partition("=")
    plain = key and key[0] not in "+~" and "@" not in key
    override = f"{key}{equals}{_quoted(value)}"
    return f"++{override}" if plain and not (configs / key).is_dir() else override


def _quoted(value: str) -> str:
    """A value as Hydra reads it: of ASCII and some signs. Paths may be of others, and commas are no sweep here."""
    if value[:1] in tuple("[{'\"$") or re.fullmatch(r"[\w\s/\-+.$%*@?|:\\]*|\w+\(.*\)", value, re.ASCII):
        return value
    return "'" + value.replace("'", "\\'") + "'"


def train_experiment(values: dict[str, Any]) -> None:
    """Run the recipe of a composed config, and save the checkpoint that comes out.

    Raises:
        ConfigError: an unknown recipe, or values that are not its own.
        GeolocError: as the recipe.
    """
    from geoloc.models.plain import from_plain

    name, experiment = values["name"], values["experiment"]
    run_folder, recipe = values["run_folder"], values.get("recipe")
    if recipe in ("osv5m", "places", "places_soup", "statewide"):
        from geoloc.train.settings import MachineConfig

        machine = from_plain(MachineConfig, values["machine"], "machine")
        if recipe == "osv5m":
            from geoloc.train import osv5m

            model = osv5m.run(
                from_plain(osv5m.Osv5mExperiment, experiment, "experiment"), name, run_folder, machine
            )
        elif recipe == "places":
            from geoloc.train import places
            from geoloc.train.place_experiment import PlacesExperiment

            model = places.run(
                from_plain(PlacesExperiment, experiment, "experiment"), name, run_folder, machine
            )
        elif recipe == "places_soup":
            from geoloc.train import place_soup

            model = place_soup.run(
                from_plain(place_soup.SoupExperiment, experiment, "experiment"), name, run_folder, machine
            )
        else:
            from geoloc.train import statewide

            model = statewide.run(
                from_plain(statewide.StatewideExperiment, experiment, "experiment"), name, run_folder, machine
            )
        from geoloc.train.ranks import is_first_rank

        if not is_first_rank():
            return
    else:
        raise ConfigError(f"recipe is {recipe!r}; known are 'osv5m', 'places', 'places_soup' and 'statewide'")
    model.save_pretrained(values["checkpoint"])
    say(f"saved {values['checkpoint']}; `geoloc localize PHOTO --model {values['checkpoint']}` uses it")
