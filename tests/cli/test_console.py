"""What the commands print: lengths in the unit that tells most."""

import pytest

from geoloc.cli.console import km, radius


@pytest.mark.parametrize(
    ("distance_km", "text"),
    [(None, ""), (0.0, "0 m"), (0.0139, "14 m"), (0.999, "999 m"), (3.25, "3.2 km"), (1234.5, "1,234 km")],
)
def test_distances(distance_km: float | None, text: str) -> None:
    assert km(distance_km) == text


def test_radii_are_written_as_they_were_chosen() -> None:
    assert [radius(r) for r in (0.025, 1.0, 2500.0)] == ["25 m", "1 km", "2,500 km"]
