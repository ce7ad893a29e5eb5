"""State of a training run as one verified file.

Written atomically (temporary file, fsync, rename) with its sha256 in `NAME.sha256`, and loaded with weights_only. The
format is torch's own, because FSDP reads the file itself.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Any

import torch

from geoloc.errors import IntegrityError
from geoloc.files import atomic_write, sha256_of
from geoloc.torchvision_cpu import ensure_importable

ensure_importable()  # lightning imports torchmetrics, and that torchvision

from lightning.fabric.plugins import CheckpointIO  # noqa: E402


class VerifiedCheckpointIO(CheckpointIO):
    """Checkpoint input and output of Lightning's Trainer, atomic and verified."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, replacing `path` atomically."""
        save_verified(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path`, verified.

        Raises:
            IntegrityError: the file does not match its digest.
        """
        checkpoint: dict[str, Any] = load_verified(Path(path))
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its digest."""
        Path(path).unlink(missing_ok=True)
        _digest_path(Path(path)).unlink(missing_ok=True)


def save_verified(value: Any, path: Path) -> None:
    """Write tensors and plain values; after a kill either the old or the new file is there, and verifies."""
    notes = _digest_path(path)
    old = notes.read_text().split()[:1] if notes.exists() else []
    with atomic_write(path, "wb") as file:
        hashing = _HashingFile(file)
        torch.save(value, hashing)  # type: ignore[arg-type]
        # Both digests until the rename: a kill in between leaves a file that one of them verifies.
        with atomic_write(notes, "w") as note:
            note.write("\n".join([hashing.digest.hexdigest(), *old]) + "\n")


def load_verified(path: Path) -> Any:
    """The value that `save_verified` wrote, on the CPU.

    Raises:
        IntegrityError: the file, or its digest, is missing or was changed.
    """
    verify(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def verify(path: Path) -> None:
    """Compare a file with its digest.

    Raises:
        IntegrityError: as `load_verified`.
    """
    notes = _digest_path(path)
    if not path.is_file() or not notes.is_file():
        missing = notes if path.is_file() else path
        raise IntegrityError(
            f"{missing} is missing, so the run in {path.parent} cannot be resumed: delete it and train anew"
        )
    found = sha256_of(path)
    if found not in notes.read_text().split():
        raise IntegrityError(
            f"{path} has sha256 {found[:12]}…, which {notes} does not have: the file was damaged. Put back a copy, or "
            f"delete {path.parent} and train anew"
        )


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


class _HashingFile:
    """File that hashes the bytes that torch.save writes to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
