"""The remedy is tested in fresh interpreters, since a process can import torchvision only once."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def broken_by_mismatch() -> bool:
    """Whether this installation has the very mismatch: a CPU torch and a torchvision built for CUDA."""
    result = run_fresh("import torchvision")
    assert result.returncode == 0 or "torchvision::nms" in result.stderr, result.stderr
    return result.returncode != 0


def test_its_dependants_import_and_transforms_run() -> None:
    result = run_fresh(
        "from geoloc.torchvision_cpu import ensure_importable\n"
        "ensure_importable(); ensure_importable()\n"
        "import timm, open_clip, torch\n"
        "from torchvision.transforms import v2\n"
        "assert v2.CenterCrop(4)(torch.ones(3, 8, 8)).shape == (3, 4, 4)\n"
        "print('ran')"
    )
    assert result.stdout == "ran\n", result.stderr


def test_a_declared_operator_says_that_it_is_not_there_and_a_real_one_works() -> None:
    result = run_fresh(
        "from geoloc.torchvision_cpu import ensure_importable\n"
        "ensure_importable()\n"
        "import torch, torchvision\n"
        "print(torchvision.ops.nms(torch.tensor([[0., 0, 1, 1]]), torch.ones(1), 0.5))"
    )
    if broken_by_mismatch():
        assert result.returncode != 0
        assert "Couldn't load custom C++ ops" in result.stderr
    else:
        assert result.stdout == "tensor([0])\n", result.stderr


# Each stand-in replaces one thing that the remedy looks at, in an interpreter that has no torchvision yet;
# `declared` then tells whether it went as far as declaring the operators.
STAND_INS = {
    "no torchvision": ("import importlib.util as u; u.find_spec = lambda name: None", False),
    "torch built for CUDA": ("torch.version.cuda = '13.0'", False),
    "native library loads": ("torch.ops.load_library = lambda path: None", False),
    "torchvision imported already": ("import sys; sys.modules['torchvision'] = sys", False),
    "native library does not load": (
        "def refuse(path): raise OSError('libtorch_cuda.so: cannot open shared object file')\n"
        "torch.ops.load_library = refuse; torch.version.cuda = None",
        True,
    ),
}


@pytest.mark.parametrize(("stand_in", "declared"), STAND_INS.values(), ids=STAND_INS.keys())
def test_declares_operators_only_where_nothing_else_can(stand_in: str, declared: bool) -> None:
    result = run_fresh(
        f"import torch\n{stand_in}\n"
        "from geoloc import torchvision_cpu\n"
        "torchvision_cpu.ensure_importable()\n"
        "print(torchvision_cpu._library is not None)"
    )
    assert result.stdout == f"{declared}\n", result.stderr
