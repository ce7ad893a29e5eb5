"""The stand-in for the Hub, with the real client in this process pointed at it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub without repositories, for a client that is logged in, has an empty cache and waits for nobody."""
    from huggingface_hub import constants

    from geoloc.hub import receive

    server = HubServer()
    # The client reads its environment once, at its import, which another test may have done.
    for name, value in {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache" / "hub"),
        "HF_ASSETS_CACHE": str(tmp_path / "cache" / "assets"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # the stand-in stores whole files
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "a token of the tests")
    monkeypatch.setattr(receive, "_WAIT_S", 0.0)
    yield server
    server.close()
