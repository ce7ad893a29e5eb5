"""One model of place recognition from several: their weights' mean, of all or of those that help (CosPlace's fork)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from geoloc.data.stream import LoadImage, SampleStream
from geoloc.errors import ConfigError
from geoloc.files import atomic_write
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.plain import to_plain
from geoloc.train.photos import PhotoSet
from geoloc.train.place_task import RecallConfig, Truth
from geoloc.train.places import recall_of, validation_of
from geoloc.train.run_folder import RunFolder
from geoloc.train.settings import MachineConfig
from geoloc.train.soups import GreedySoup, greedy_soup, uniform_soup


@dataclass(frozen=True)
class SoupExperiment:
    """The whole experiment.

    Attributes:
        members: checkpoints of one form, or folders of runs that hold one.
        kind: the mean of all, or "greedy": from the best on, each that does not make it worse.
        database: of the validation, and
        queries: which are sought in it; a greedy soup is chosen by them, so they should be no test queries.
        recall: how validation counts.
        choose_by: what a greedy soup must not lower, one of validation's metrics.
    """

    members: tuple[str, ...]
    kind: Literal["uniform", "greedy"] = "uniform"
    database: PhotoSet | None = None
    queries: PhotoSet | None = None
    recall: RecallConfig = field(default_factory=RecallConfig)
    choose_by: str = "recall_at_1"

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ConfigError(f"a soup has at least two members; found {len(self.members)}")
        if (self.database is None) != (self.queries is None):
            raise ConfigError("validation seeks queries in a database: give both or neither")
        if self.kind == "greedy" and self.database is None:
            raise ConfigError("a greedy soup is chosen by validation: give database and queries")
        if self.choose_by not in (known := [f"recall_at_{k}" for k in self.recall.at]):
            raise ConfigError(f"choose_by is {self.choose_by!r}; validation has {', '.join(known)}")


def run(
    experiment: SoupExperiment, name: str, run_folder: str | Path, machine: MachineConfig | None = None
) -> Geolocalizer:
    """Make the soup, and measure it and its members.

    The folder gets soup.json: the metrics of each member and of the soup, and which members are in it.

    Raises:
        ConfigError: members of different forms.
        NotFoundError: a member or photos are not there.
        OutputMismatchError: the folder holds another run.
    """
    machine = machine or MachineConfig()
    folder = RunFolder(run_folder, to_plain(experiment))
    models = {member: Geolocalizer.from_pretrained(_checkpoint(member)) for member in experiment.members}
    model = next(iter(models.values()))
    for member, other in models.items():
        if other.preprocess != model.preprocess:
            raise ConfigError(
                f"{member!r} sees pictures as {other.preprocess}, and {experiment.members[0]!r} as {model.preprocess}: "
                "a soup's members see them alike"
            )
    states = {
        member: {key: tensor.clone() for key, tensor in other.network.state_dict().items()}
        for member, other in models.items()
    }
    validation: tuple[SampleStream, Truth] | None = None
    if experiment.database is not None and experiment.queries is not None:
        plain = LoadImage(model.preprocess)
        validation = validation_of(
            experiment.database, experiment.queries, experiment.recall, plain, machine.num_workers
        )

    def measured(state: Mapping[str, Tensor]) -> dict[str, float]:
        model.network.load_state_dict(state)
        return {} if validation is None else recall_of(model, *validation)

    if experiment.kind == "greedy":
        soup = greedy_soup(states, lambda state: measured(state)[experiment.choose_by])
    else:
        soup = GreedySoup(uniform_soup(states), experiment.members, float("nan"), {})
    of_each = {member: measured(state) for member, state in states.items()}
    of_the_soup = measured(soup.state)  # last, which leaves the soup in the network
    found = {"members": list(soup.members), "of_each": of_each, "of_the_soup": of_the_soup}
    with atomic_write(folder.folder / "soup.json", "w") as file:
        file.write(json.dumps(found, indent=1) + "\n")
    rows = "".join(f"| {key} | {value:.4g} |\n" for key, value in of_the_soup.items())
    card = f"# {name}\n\nThe mean weights ({experiment.kind} soup) of {', '.join(soup.members)}.\n\n" + (
        f"| held-out photos | |\n|---|---|\n{rows}" if rows else "Not validated.\n"
    )
    return Geolocalizer(name, model.network, model.preprocess, None, card=card)


def _checkpoint(member: str) -> str:
    """The checkpoint that a member names, or that the folder of its run holds."""
    inside = Path(member) / "checkpoint"
    return str(inside) if inside.is_dir() else member
