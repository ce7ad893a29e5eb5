"""Push a checkpoint to the Hugging Face Hub with a generated card, and pull one that loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geoloc.checkpoint.folder import Checkpoint, read_checkpoint
from geoloc.hub.card import Source, card_for_repository, read_metrics
from geoloc.hub.pull import pull
from geoloc.hub.push import TO_MAIN, Pushed, PushOptions, push
from geoloc.hub.repository import Found, find, read
from geoloc.models.onnx.runner import OnnxRunner


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    options: PushOptions = TO_MAIN,
    *,
    metrics: Sequence[str | Path] = (),
    licence: str | None = None,
    ledger: Sequence[Source] = (),
) -> Pushed:
    """Push a saved model; only its card is changed.

    Args:
        folder: a checkpoint.
        repo_id: "org/name"; the repository is made if it does not exist.
        options: of the upload.
        metrics: as for `Geolocalizer.push_to_hub`.
        licence: of the weights, by the Hub's names, such as "apache-2.0"; None keeps that of the card.
        ledger: data and weights that the model was made from.

    Raises:
        IntegrityError, ConfigError, CheckpointError, FingerprintMismatchError: the folder does not load as a model.
        NotFoundError: there is no such report, or the Hub cannot be reached or denies access.
    """
    checkpoint, _ = read_checkpoint(Path(folder))
    card = card_for_repository(
        checkpoint.card,
        repo_id,
        calibration=_calibration(checkpoint),
        facts=_facts(checkpoint),
        ledger=ledger,
        gallery=_gallery(checkpoint),
        licence=licence,
        reports=[read_metrics(path) for path in metrics],
    )
    return push(Path(folder), repo_id, "model", card, options)


def pull_checkpoint(
    repo_id: str, folder: str | Path, *, revision: str | None = None, subfolder: str = ""
) -> Found:
    """Download a model from the Hub into a folder; one that does not load never takes the folder's name.

    Args:
        repo_id: "org/name".
        folder: where to; an older version there is replaced, and only new files are received.
        revision: a branch, tag, commit or "refs/pr/N"; None is the main branch.
        subfolder: the folder of the repository that holds the model.

    Returns:
        The commit.

    Raises:
        NotFoundError: there is no such model, or the Hub cannot be reached.
        IntegrityError, ConfigError, CheckpointError, FingerprintMismatchError: it is not a checkpoint of geoloc, or
            damaged.
        OutputMismatchError: the folder holds something else.
    """
    found = find(repo_id, "model", revision, subfolder)
    pull(read(found), folder, read_checkpoint)
    return found


def _calibration(checkpoint: Checkpoint) -> str:
    calibration = checkpoint.calibration
    if not calibration.mass_levels and not calibration.reference_levels:
        return "Not calibrated: predictions have no radii, and the model cannot abstain."
    return (
        f"Radii are split-conformal, fitted on {calibration.num_images:,} images "
        f"({calibration.data or 'not described'}). They hold the truth as often as stated on such images, and less "
        "often on others."
    )


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    network, tree = checkpoint.network, checkpoint.quadtree
    if isinstance(network, OnnxRunner):
        num_parameters = network.num_parameters
    else:
        num_parameters = sum(p.numel() for p in network.parameters())
    facts = {
        "parameters": f"{num_parameters / 1e6:.1f} million",
        "input": checkpoint.preprocess.size_text,
    }
    if tree is not None:
        facts["cells"] = f"{tree.num_cells:,}, quadtree {tree.fingerprint[:12]}"
    for role, head in sorted(network.config.embeddings.items()):
        facts[f"{role} embedding"] = f"{head.dim} values"
    return facts


def _gallery(checkpoint: Checkpoint) -> list[Source]:
    if checkpoint.reference is None:
        return []
    return [
        Source(
            f"gallery: {num:,} references",
            "in reference/",
            licence or "not stated",
            "retrieval inside the cells",
        )
        for licence, num in checkpoint.reference.info()["rows_by_licence"].items()
    ]
