import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def corpus_check() -> ModuleType:
    """scripts/check_decoder_corpus.py as a module."""
    path = Path(__file__).parents[2] / "scripts" / "check_decoder_corpus.py"
    spec = importlib.util.spec_from_file_location("check_decoder_corpus", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
