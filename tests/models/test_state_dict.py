"""Files of somebody else's that are read for their tensors alone."""

import zipfile
from pathlib import Path

import pytest
import torch

from geoloc.errors import CheckpointError
from geoloc.models.state_dict import read_tensors


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def test_state_dicts_and_trainers_files(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    for content in (layer.state_dict(), {"state_dict": layer.state_dict(), "epoch": 3}):
        found = read_tensors(saved(tmp_path / "a.pth", content))
        assert {name: t.tolist() for name, t in found.items()} == {
            name: t.tolist() for name, t in layer.state_dict().items()
        }
    legacy = tmp_path / "old.pth"
    torch.save(layer.state_dict(), legacy, _use_new_zipfile_serialization=False)
    assert list(read_tensors(legacy)) == ["weight", "bias"]


def test_tied_tensors_are_read(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    found = read_tensors(saved(tmp_path / "a.pth", {"a": weight, "b": weight, "part": weight[2:4]}))
    assert found["b"].tolist() == weight.tolist()
    assert found["part"].tolist() == [2.0, 3.0]


def test_a_deflated_file_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    plain, bomb = saved(tmp_path / "a.pth", {"a": torch.zeros(1 << 20)}), tmp_path / "bomb.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    assert bomb.stat().st_size < plain.stat().st_size / 100
    with pytest.raises(CheckpointError, match=r"compressed.*torch.save never writes"):
        read_tensors(bomb)


def test_a_few_bytes_are_no_large_tensor(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"a": torch.zeros(1).expand(1 << 40)})
    assert path.stat().st_size < 2000
    with pytest.raises(CheckpointError, match=r"'a' claims 4,398,046,511,104 bytes and has 4"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "torch.sparse_coo"),
        (torch.empty(1 << 40, device="meta"), "without numbers"),
    ],
)
def test_only_plain_tensors(tmp_path: Path, tensor: torch.Tensor, kind: str) -> None:
    with pytest.raises(CheckpointError, match=f"'a' is {kind}; only dense ones"):
        read_tensors(saved(tmp_path / "a.pth", {"a": tensor}))


@pytest.mark.parametrize("content", [b"hi\n", b"", b"\x80\x02."])
def test_what_is_no_state_dict(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"holds no plain state dict \(.* .*\): if you trust"):
        read_tensors(path)
