"""The model options of the commands, and loading."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoloc.errors import ConfigError

if TYPE_CHECKING:
    from geoloc.localize.geolocalizer import Geolocalizer

ReferenceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="DIR|own|none",
        help="Reference database to search inside the chosen cells; several may be given. own, the default, came with "
        "the model. A database of another model is searched with that model's vectors.",
    ),
]
StructureOption = Annotated[
    str,
    typer.Option(
        "--structure",
        metavar="NAME",
        help="How references are searched: exact, or FAISS's flat, fp16, sq8, pq; for models without cells also hnsw "
        "and ivfpq, which are built once and kept in ~/.cache/geoloc. Similarities are always those of exact.",
    ),
]
QueryOption = Annotated[
    str,
    typer.Option(
        "--query",
        metavar="MODE",
        help="How a picture is shown to the network: central_crop, resized, single, five_crops, nearest_crop, "
        "majority_voting, or four_turns for pictures from above.",
    ),
]
BatchSizeOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Images that go through the network together.")
]
TopKOption = Annotated[int, typer.Option("--top-k", min=1, help="Number of candidates for each image.")]
MaxPrecisionOption = Annotated[
    float | None,
    typer.Option(
        "--max-precision-km",
        metavar="KM",
        help="Say no place more exactly than this: points, candidates, cells, radii and maps go to a coarse grid.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps, …")]


def reference_names(given: Sequence[str] | None) -> tuple[str, ...]:
    """The value of `SessionOptions.reference` for `--reference`.

    Raises:
        ConfigError: none beside others.
    """
    names = tuple(given or ("own",))
    if "none" not in names:
        return names
    if len(names) > 1:
        raise ConfigError(
            f"--reference none searches nothing, but {', '.join(names)} were given: leave none out"
        )
    return ()


def load_model(
    name: str, device: str, num_threads: int | None, options: Mapping[str, Any] | None = None
) -> "Geolocalizer":
    """Load a model by its name, after checking the device.

    Args:
        name: as `Geolocalizer.from_pretrained` takes it.
        device: as there.
        num_threads: as there.
        options: as there, for published files.

    Raises:
        ConfigError: the device cannot be used.
        GeolocError: as `Geolocalizer.from_pretrained`.
    """
    from geoloc import Geolocalizer

    if device != "cpu":  # an exported model on the CPU runs without torch
        check_device(device)
    return Geolocalizer.from_pretrained(name, device=device, num_threads=num_threads, **options or {})


def check_device(name: str) -> None:
    """Raise ConfigError for a device that this machine does not have.

    Raises:
        ConfigError: it cannot be used.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # unknown device, or torch was built without support for it
        reason = str(error).split(". ")[0]
        raise ConfigError(f"the device {name!r} cannot be used: {reason}; --device cpu always can") from error
