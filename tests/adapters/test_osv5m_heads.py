"""OSV-5M's own preprocessing wrote the tables of places, and its classifiers the answers; see fixtures/HOW.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named_numbers import digest, pictures, state_of
from tiny import tiny_image

from geoloc import Geolocalizer
from geoloc.adapters.adapted import Adapted
from geoloc.adapters.osv5m import adapt_training_checkpoint
from geoloc.adapters.osv5m_heads import Classes
from geoloc.adapters.osv5m_places import read_places
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError, FingerprintMismatchError, NotFoundError
from quadtree import Quadtree

FIXTURES = Path(__file__).parent / "fixtures"
MADE: dict[str, Any] = json.loads((FIXTURES / "osv5m_training.json").read_text())
TOWER, PLACES = FIXTURES / "osv5m_tiny" / "baseline" / "tower_gelu", FIXTURES / "osv5m_tiny" / "places"
UNITS = ("country", "region", "sub-region", "city")


def adapted(unit: str, classes: Classes | None) -> Adapted:
    file = ForeignTensors(state_of(MADE[unit]["tensors"], MADE[unit]["gain"]), "last.ckpt")
    return adapt_training_checkpoint(file, TOWER, classes)


def table(unit: str, suffix: str = "pt") -> Path:
    return PLACES / (f"index_to_gps_unique_{unit}.pt" if suffix == "pt" else f"{unit}_center.csv")


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("suffix", ["pt", "csv"])
def test_the_same_place_as_the_peer(unit: str, suffix: str) -> None:
    made, places_deg = MADE[unit], read_places(table(unit, suffix))
    assert digest(state_of(made["tensors"], made["gain"])) == made["sha256"]
    model = adapted(unit, Classes(places_deg=places_deg))
    with torch.inference_mode():
        output = model.network.double()(pictures(made["image_size_px"], made["number"]).double())
    assert model.quadtree is not None
    assert output.cell_logits is not None
    ours = model.quadtree.center_latlon_deg[output.cell_logits.argmax(-1).numpy()]
    # Where the table is given in degrees, the peer's own float32 radians are up to 7e-6 of them away.
    np.testing.assert_allclose(ours, np.degrees(made["gps_rad"]), rtol=0, atol=1e-5)
    of_class = model.quadtree.assign(places_deg)
    theirs = torch.tensor(made["logits"], dtype=torch.float64)
    torch.testing.assert_close(output.cell_logits[:, of_class], theirs, rtol=0, atol=1e-4)


def test_every_place_is_in_a_cell_of_its_own() -> None:
    places_deg = read_places(table("city"))
    tree = adapted("city", Classes(places_deg=places_deg)).quadtree
    assert tree is not None
    np.testing.assert_array_equal(tree.center_latlon_deg[tree.assign(places_deg)], places_deg)
    assert sorted(tree.assign(places_deg)) == list(range(len(places_deg)))


def test_a_nameless_unit_is_no_class() -> None:
    """pandas reads Namibia's code NA as no name, so that it is none of OSV-5M's countries."""
    assert "NaN," in table("country", "csv").read_text()
    np.testing.assert_allclose(
        read_places(table("country", "csv")), read_places(table("country")), rtol=0, atol=1e-5
    )


def test_a_classifier_of_places_localises_and_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state_of(MADE["country"]["tensors"], MADE["country"]["gain"])}, path)
    model = Geolocalizer.from_pretrained(path, tower=TOWER, places=table("country"))
    prediction = model.localize(tiny_image(1), utility="within:1km")
    best = prediction.candidates[0]
    distances = np.abs(read_places(table("country")) - (best.lat, best.lon)).sum(-1)
    assert distances.min() < 1e-9
    model.save_pretrained(tmp_path / "ours")
    again = Geolocalizer.from_pretrained(tmp_path / "ours")
    assert again.localize(tiny_image(1), utility="within:1km").to_dict() == prediction.to_dict()


def test_a_missing_or_wrong_table_is_said() -> None:
    with pytest.raises(ConfigError, match="places= its table of countries"):
        adapted("country", None)
    cells = Quadtree.read_osv5m_csv(FIXTURES / "osv5m_tiny" / "quadtree.csv")
    with pytest.raises(FingerprintMismatchError, match="give places= their table"):
        adapted("country", Classes(cells))
    cities = read_places(table("city"))
    with pytest.raises(ConfigError, match="not both"):
        adapted("city", Classes(cells, cities))
    with pytest.raises(FingerprintMismatchError, match="7 outputs, and the given table has 12"):
        adapted("country", Classes(places_deg=cities))
    cities[1] = cities[0]
    with pytest.raises(ConfigError, match="only 11 differ"):
        adapted("city", Classes(places_deg=cities))


def test_what_is_no_table_of_places(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no table of locations"):
        read_places(tmp_path / "nowhere.pt")
    torch.save(torch.tensor([[45.0, 120.0]]), tmp_path / "degrees.pt")
    with pytest.raises(ConfigError, match="give quadtree="):
        read_places(tmp_path / "degrees.pt")
    torch.save(torch.zeros(3), tmp_path / "flat.pt")
    with pytest.raises(ConfigError, match=r"shape \(3,\)"):
        read_places(tmp_path / "flat.pt")
    torch.save({"path": Path("x")}, tmp_path / "more.pt")
    with pytest.raises(CheckpointError, match="holds no plain state dict"):
        read_places(tmp_path / "more.pt")
    (tmp_path / "names.csv").write_text("unique_city,latitude\nx,1\n")
    with pytest.raises(ConfigError, match="name, latitude and longitude"):
        read_places(tmp_path / "names.csv")
