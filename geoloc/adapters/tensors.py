"""Tensors of a foreign file, each taken once by its name there; what nobody has taken is an error in the end.

Nothing is unpickled but tensors and plain values: safetensors, or `torch.load(weights_only=True)`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from geoloc.errors import CheckpointError
from geoloc.models.state_dict import read_tensors


class ForeignTensors:
    """What a file holds.

    Args:
        tensors: by name.
        origin: what an error calls the file.
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
            CheckpointError: it holds something else.
        """
        return read_tensors(path, bare=True)["tensor"]

    @property
    def names(self) -> list[str]:
        """Of what was not taken."""
        return list(self._tensors)

    def has(self, prefix: str) -> bool:
        """Whether a name that was not taken starts with this."""
        return any(name.startswith(prefix) for name in self._tensors)

    def remove_prefix(self, prefix: str) -> None:
        """Drop a prefix from the names that have it.

        Raises:
            CheckpointError: two tensors would have the same name.
        """
        renamed = [name.removeprefix(prefix) for name in self._tensors]
        if len(set(renamed)) != len(renamed):
            raise CheckpointError(f"{self.origin} holds tensors both with and without the prefix {prefix!r}")
        self._tensors = dict(zip(renamed, self._tensors.values(), strict=True))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that is not taken yet.

        Raises:
            CheckpointError: there is none.
        """
        if name not in self._tensors:
            raise CheckpointError(f"{self.origin} lacks the tensor {name!r}; fetch it again")
        return tuple(self._tensors[name].shape)

    def take(self, name: str) -> Tensor:
        """The tensor, once.

        Raises:
            CheckpointError: there is none.
        """
        self.shape(name)
        return self._tensors.pop(name)

    def put(self, name: str, tensor: Tensor) -> None:
        """Add what was made of others, to be taken by a name of the format."""
        self._tensors[name] = tensor

    def take_all(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose names start with this, by the rest of their names."""
        return {
            n.removeprefix(prefix): self._tensors.pop(n) for n in list(self._tensors) if n.startswith(prefix)
        }

    def drop(self, *prefixes: str) -> None:
        """Leave out what our network has no use for."""
        self._tensors = {name: t for name, t in self._tensors.items() if not name.startswith(prefixes)}

    def finish(self) -> None:
        """Refuse what is left over.

        Raises:
            CheckpointError: names it.
        """
        if self._tensors:
            names = sorted(self._tensors)
            raise CheckpointError(
                f"{self.origin} has {len(names)} tensors that this format does not have ({', '.join(names[:3])}): "
                "it is of another version or another model"
            )
