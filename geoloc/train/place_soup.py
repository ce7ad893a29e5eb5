"""Model soups for place recognition: mean weights of several trained models (CosPlace's fork)."""

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
from geoloc.train.recipes import metrics_table, register
from geoloc.train.run_folder import RunFolder
from geoloc.train.settings import MachineConfig
from geoloc.train.soups import GreedySoup, greedy_soup, uniform_soup


@dataclass(frozen=True)
class SoupExperiment:
    """Experiment of the recipe "places_soup".

    Attributes:
        members: checkpoints of one architecture, or run folders that hold one.
        kind: "uniform" averages all members; "greedy" adds members from the best on while validation does not fall.
        database: photos of the validation database.
        queries: validation queries. A greedy soup is chosen by them, so they must not be test queries.
        recall: how validation recall is counted.
        choose_by: validation metric of the greedy choice.
    """

    members: tuple[str, ...]
    kind: Literal["uniform", "greedy"] = "uniform"
    database: PhotoSet | None = None
    queries: PhotoSet | None = None
    recall: RecallConfig = field(default_factory=RecallConfig)
    choose_by: str = "recall_at_1"

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ConfigError(f"a soup needs at least two members; found {len(self.members)}")
        if (self.database is None) != (self.queries is None):
            raise ConfigError("validation needs database and queries: give both or neither")
        if self.kind == "greedy" and self.database is None:
            raise ConfigError("a greedy soup is chosen by validation: give database and queries")
        if self.choose_by not in (known := [f"recall_at_{k}" for k in self.recall.at]):
            raise ConfigError(f"choose_by is {self.choose_by!r}; validation has {', '.join(known)}")


@register("places_soup", SoupExperiment, "mean weights of several place recognition models")
def run(
    experiment: SoupExperiment, name: str, run_folder: str | Path, machine: MachineConfig | None = None
) -> Geolocalizer:
    """Average the members' weights, and validate the soup and each member.

    Writes soup.json: metrics of each member and of the soup, and the members in it.

    Raises:
        ConfigError: members of different architecture.
        NotFoundError: a member or photos are missing.
        OutputMismatchError: the folder holds another run.
    """
    machine = machine or MachineConfig()
    folder = RunFolder(run_folder, to_plain(experiment))
    models = {member: Geolocalizer.from_pretrained(_checkpoint(member)) for member in experiment.members}
    model = next(iter(models.values()))
    for member, other in models.items():
        if other.preprocess != model.preprocess:
            raise ConfigError(
                f"{member!r} preprocesses images with {other.preprocess}, and {experiment.members[0]!r} with "
                f"{model.preprocess}: members of a soup need the same preprocessing"
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
    of_the_soup = measured(soup.state)  # last, so that the network keeps the soup's weights
    found = {"members": list(soup.members), "of_each": of_each, "of_the_soup": of_the_soup}
    with atomic_write(folder.folder / "soup.json", "w") as file:
        file.write(json.dumps(found, indent=1) + "\n")
    card = (
        f"# {name}\n\nThe mean weights ({experiment.kind} soup) of {', '.join(soup.members)}.\n\n"
        f"{metrics_table(of_the_soup)}"
    )
    return Geolocalizer(name, model.network, model.preprocess, None, card=card)


def _checkpoint(member: str) -> str:
    """The checkpoint folder of a member, which may be a run folder."""
    inside = Path(member) / "checkpoint"
    return str(inside) if inside.is_dir() else member
