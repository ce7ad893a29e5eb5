"""Tensors of a foreign file; each is taken once by its name, and left-over tensors are an error.

Only tensors and plain values are unpickled: safetensors, or `torch.load(weights_only=True)`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from geoloc.errors import CheckpointError
from geoloc.models.state_dict import read_tensors


class ForeignTensors:
    """Tensors of a file that are not taken yet.

    Args:
        tensors: tensors by name.
        origin: name of the file in errors.
    """

    def __init__(self, tensors: dict[str, Tensor], origin: str) -> None:
        self._tensors, self.origin = dict(tensors), origin

    @classmethod
    def read(cls, path: Path) -> ForeignTensors:
        """Read a file as `geoloc.models.state_dict.read_tensors` does.

        Raises:
            CheckpointError: it cannot be read, or holds more than tensors and plain values.
        """
        return cls(read_tensors(path), str(path))

    @staticmethod
    def read_one(path: Path) -> Tensor:
        """The only tensor of a file, which has no name.

        Raises:
            CheckpointError: the file contains something else.
        """
        return read_tensors(path, bare=True)["tensor"]

    @property
    def names(self) -> list[str]:
        """Names of the tensors that are not taken yet."""
        return list(self._tensors)

    def has(self, prefix: str) -> bool:
        """Whether a remaining name starts with the prefix."""
        return any(name.startswith(prefix) for name in self._tensors)

    def remove_prefix(self, prefix: str) -> None:
        """Remove a prefix from the names that have it.

        Raises:
            CheckpointError: two tensors would have the same name.
        """
        renamed = [name.removeprefix(prefix) for name in self._tensors]
        if len(set(renamed)) != len(renamed):
            raise CheckpointError(f"{self.origin} holds tensors both with and without the prefix {prefix!r}")
        self._tensors = dict(zip(renamed, self._tensors.values(), strict=True))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a remaining tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self._tensors:
            raise CheckpointError(f"{self.origin} lacks the tensor {name!r}; download it again")
        return tuple(self._tensors[name].shape)

    def take(self, name: str) -> Tensor:
        """Take a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        self.shape(name)
        return self._tensors.pop(name)

    def put(self, name: str, tensor: Tensor) -> None:
        """Add a tensor under a name of the format, such as one computed from others."""
        self._tensors[name] = tensor

    def take_all(self, prefix: str) -> dict[str, Tensor]:
        """Take all tensors whose names start with the prefix, by the rest of their names."""
        return {
            n.removeprefix(prefix): self._tensors.pop(n) for n in list(self._tensors) if n.startswith(prefix)
        }

    def drop(self, *prefixes: str) -> None:
        """Discard tensors that our network does not use."""
        self._tensors = {name: t for name, t in self._tensors.items() if not name.startswith(prefixes)}

    def finish(self) -> None:
        """Check that no tensor is left.

        Raises:
            CheckpointError: names the first that are left.
        """
        if self._tensors:
            names = sorted(self._tensors)
            raise CheckpointError(
                f"{self.origin} has {len(names)} tensors that this format does not have ({', '.join(names[:3])}): "
                "it is of another version or another model"
            )
