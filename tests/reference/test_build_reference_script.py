"""scripts/build_reference.py and its configs."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from tiny import tiny_checkpoint, tiny_image

from geoloc.models.config import EmbeddingHeadConfig
from geoloc.reference.database import ReferenceDatabase

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "needed"), [("aerial", "source"), ("street", "photos")])
def test_the_config_says_what_the_method_does(name: str, needed: str) -> None:
    with initialize_config_dir(str(ROOT / "configs" / "reference"), version_base="1.3"):
        config = OmegaConf.to_container(compose(name)[name])
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(getattr(ReferenceDatabase, f"add_{name}")).parameters.items()
        if key not in ("self", "model", "progress")
    }
    assert config.keys() == defaults.keys()
    assert config.pop(needed) == "???"
    for key, value in config.items():
        expected = defaults[key]
        assert value == (list(expected) if isinstance(expected, tuple) else expected), key


def test_it_builds_and_builds_again(tmp_path: Path) -> None:
    heads = {role: EmbeddingHeadConfig(dim=8) for role in ("query", "street")}
    tiny_checkpoint(tmp_path / "model", embeddings=heads)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.fromarray(tiny_image(number)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos.csv").write_text("id,latitude,longitude\n0.png,1,2\n1.png,3,4\n2.png,5,6\n")
    settings = ["folder=refs", "model=model", "street.photos=photos", "street.metadata=photos.csv"]
    script = [sys.executable, str(ROOT / "scripts" / "build_reference.py"), "--config-name", "street"]
    for again in (False, True):
        done = subprocess.run([*script, *settings], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"was_complete={again}" in done.stdout
        assert "3 rows of 8 x float32" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photos", "photos.csv", "refs"]
    wrong = subprocess.run(
        [*script, *settings, "street.foto=1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert wrong.returncode != 0
    assert "foto" in wrong.stderr
