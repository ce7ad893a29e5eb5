"""`geoloc export`: write a model as an ONNX graph."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoloc.cli.console import check_folder, count, new_app, say
from geoloc.cli.model_options import ModelOption, model_options
from geoloc.errors import ConfigError

if TYPE_CHECKING:
    from geoloc.checkpoint.export import Parity

export_app = new_app(help="Write a model in a form that runs without torch.")


@export_app.callback()
def _export() -> None:
    """With one command in the group, this keeps `onnx` a subcommand."""


@export_app.command("onnx")
def export_onnx(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A bundled model, a folder, a published file or a Hub id.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder; an exported model there is replaced.")
    ],
    images: Annotated[
        Path,
        typer.Option(
            "--calibration-images",
            metavar="FOLDER",
            help="Real pictures of the kind that the model will meet: both sides are compared on them, and --int8 "
            "takes its ranges from them (200 or more; at most 512 are used).",
        ),
    ],
    int8: Annotated[
        bool, typer.Option("--int8", help="The backbone in 8 bits; heads stay in float32.")
    ] = False,
    least_agreement: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            max=1.0,
            help="With --int8, the share of pictures whose most probable cell must stay, 0.998 by default: as many "
            "layers as that takes stay in float32. Less is smaller and faster.",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the network.")] = None,
    model_option: ModelOption = [],  # noqa: B006  typer copies it
) -> None:
    """Export a model as an ONNX graph with its cells, calibration and references: it runs without torch.

    The graph is compared with the model, and refused where any number differs by more than 0.0001; parity.json and the
    card have the figures. `geoloc localize --model OUT` uses it.
    """
    from geoloc import Geolocalizer
    from geoloc.checkpoint.export import ENOUGH_IMAGES
    from geoloc.photos.find import find_images

    check_folder(output)
    if least_agreement is not None and not int8:
        raise ConfigError("--least-agreement is about 8 bits: add --int8")
    said = model_options(model_option)
    found = find_images([str(images)])
    if not found:
        raise ConfigError(f"there are no images in {images}")
    loaded = Geolocalizer.from_pretrained(model, num_threads=threads, **said)
    report = loaded.export_onnx(
        output, [image.path for image in found], int8=int8, least_agreement=least_agreement
    )
    say(f"{count(report.num_images, 'image')} of {images}, model and export side by side")
    say(_line("fp32", report.fp32))
    if report.int8 is not None:
        say(f"in 8 bits: {report.num_quantised} of {report.num_operators} operators with weights")
        say(_line("int8", report.int8))
        if report.num_images < ENOUGH_IMAGES:
            say(
                f"warning: half of the pictures set the ranges of 8 bits, and half judge them: {report.num_images} are "
                f"few for that, give {ENOUGH_IMAGES} or more of the kind that the model will meet"
            )
    if report.left_out:
        say(f"not exported: the embeddings {', '.join(report.left_out)} (build references with {model})")
    size_mb = sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) / 1e6
    say(f"{loaded.name} in {report.precision}, {size_mb:,.1f} MB -> {output}")


def _line(precision: str, parity: "Parity") -> str:
    facts = [f"{name} {value:.1e}" for name, value in parity.max_abs_difference.items()]
    line = f"{precision}: largest difference of {', '.join(facts)}"
    if parity.same_top_cell is not None:
        line += f"; same top cell for {parity.same_top_cell:.2%}"
    if parity.median_km is not None:
        line += f"; answers {parity.median_km:,.3g} km apart in the median"
    return line
