"""The lists of dependencies agree: pyproject.toml, environment.yaml (conda) and constraints-ci.txt."""

import importlib.metadata
import itertools
import re
import sys
from pathlib import Path

import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import geoloc

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# conda's name -> PyPI's, where they differ by more than a dash
PYPI_NAME = {"faiss-gpu": "faiss-cpu", "matplotlib-base": "matplotlib", "pytorch": "torch"}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """By canonical name; the project's own extras are left out."""
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in parsed if canonicalize_name(r.name) != PROJECT["name"]}


def pins() -> dict[str, Requirement]:
    lines = (
        line.partition("#")[0].strip()
        for line in (ROOT / "constraints-ci.txt").read_text("utf-8").splitlines()
    )
    return requirements([line for line in lines if line])


def test_conda_has_the_same_packages_and_floors() -> None:
    conda = yaml.safe_load((ROOT / "environment.yaml").read_text("utf-8"))
    found = {}
    for line in conda["dependencies"]:
        requirement = Requirement(line)
        name = PYPI_NAME.get(requirement.name, canonicalize_name(requirement.name))
        assert name not in found, name
        found[name] = str(requirement.specifier)
    assert found.pop("python") == PROJECT["requires-python"]
    assert found.pop("pip") == ""
    wanted = requirements(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["train"])
    assert found == {name: str(requirement.specifier) for name, requirement in wanted.items()}


def test_conda_takes_the_gpu_build_of_faiss() -> None:
    conda = yaml.safe_load((ROOT / "environment.yaml").read_text("utf-8"))
    names = {Requirement(line).name for line in conda["dependencies"]}
    assert "faiss-gpu" in names
    assert "faiss-cpu" not in names
    assert {"pytorch", "conda-forge"} <= set(conda["channels"])


def test_every_dependency_has_a_tested_version_that_it_allows() -> None:
    tested = pins()
    extras = PROJECT["optional-dependencies"]
    for name, requirement in requirements(
        [*PROJECT["dependencies"], *itertools.chain(*extras.values())]
    ).items():
        (pin,) = tested[name].specifier
        assert pin.operator == "==", name
        assert requirement.specifier.contains(pin.version), f"{requirement} does not allow {pin.version}"


def test_every_base_dependency_has_a_floor_and_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    block = text.partition("\ndependencies = [\n")[2].partition("\n]")[0]
    lines = block.splitlines()
    assert len(lines) == len(PROJECT["dependencies"])
    for line in lines:
        assert re.fullmatch(r' +"[a-z-]+>=[0-9.]+", +# \S.*', line), line


def test_a_cpu_torch_brought_no_cuda_packages() -> None:
    installed = {canonicalize_name(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    cuda = {name for name in installed if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert torch.version.cuda is not None or not cuda, cuda


def test_the_configs_come_with_the_package() -> None:
    configs = Path(geoloc.__file__).with_name("configs")
    source = sorted(path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml"))
    assert [configs / path for path in source] == sorted(configs.rglob("*.yaml"))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert "configs/**" in settings["package-data"]["geoloc"]
