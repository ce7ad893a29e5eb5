"""Queries find their references at 25 m across borders of UTM zones and the equator; arithmetic on the names does not.

The photos are named by pyproj's own UTM and moved by its geodesics, and read, verified and matched by our code.
"""

import io

import numpy as np
import pytest
from PIL import Image
from pyproj import Geod, Proj
from tiny import tiny_image

from geoloc.data.layouts import check_layout, open_layout
from geoloc.geo.near import rows_within_m
from geoloc.geo.utm import utm_band, utm_zone
from geoloc.metrics.protocols import get_protocol

RADIUS_M = 25.0
GEOD = Geod(ellps="WGS84")

# Where a reference stands, and which way (degrees from north) its queries are: 20 and 30 m away, on the other side.
BORDERS = {
    "zones 31 and 32": ((48.0, 6.0 - 1e-5), 90),
    "zones 31 and 32 in the south": ((-33.0, 6.0 + 1e-5), 270),
    "the equator": ((-1e-5, 33.0), 0),
    "the equator from the north": ((1e-5, 33.1), 180),
    "zones and the equator at once": ((-5e-5, 12.0 - 5e-5), 45),
    "the antimeridian": ((-17.0, 180.0 - 1e-5), 90),
    "western Norway": ((60.0, 3.0 - 1e-5), 90),
    "bands of one zone": ((48.0 - 1e-5, 9.0), 0),  # U begins: nothing to cross but a letter
}


def utm_name(
    latlon_deg: tuple[float, float], panorama: str, has_degrees: bool
) -> tuple[str, tuple[float, float]]:
    lat, lon = latlon_deg
    zone = int(utm_zone(latlon_deg))
    east, north = Proj(proj="utm", zone=zone, south=lat < 0)(lon, lat)
    degrees = f"{lat:.7f}@{lon:.7f}" if has_degrees else "@"
    return f"@{east:010.2f}@{north:010.2f}@{zone:02}@{utm_band(lat)}@{degrees}@{panorama}@@@@@@@@.jpg", (
        east,
        north,
    )


@pytest.mark.parametrize("has_degrees", [True, False])
def test_matches_at_25_m(tmp_path, has_degrees):
    stream = io.BytesIO()
    Image.fromarray(tiny_image(0)).save(stream, "JPEG")
    metres: dict[str, dict[str, tuple[float, float]]] = {"database": {}, "queries": {}}

    def add(split: str, panorama: str, latlon_deg: tuple[float, float]) -> None:
        name, metres[split][panorama] = utm_name(latlon_deg, panorama, has_degrees)
        folder = tmp_path / "images" / "test" / split
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(stream.getvalue())

    for border, ((lat, lon), azimuth) in BORDERS.items():
        add("database", border, (lat, lon))
        for distance in (20, 30):
            there_lon, there_lat, _ = GEOD.fwd(lon, lat, azimuth, distance)
            add("queries", f"{border}, {distance}", (there_lat, there_lon))
    tables = {}
    for split in ("database", "queries"):
        tables[split], findings = check_layout("vg", tmp_path, f"test/{split}")
        assert not findings
    panoramas = {split: [sample.key.split("@")[7] for sample in table] for split, table in tables.items()}
    assert sorted(panoramas["database"]) == sorted(BORDERS)

    near = rows_within_m(tables["queries"].latlon_deg, tables["database"].latlon_deg, RADIUS_M)
    found = {
        query: [panoramas["database"][row] for row in rows]
        for query, rows in zip(panoramas["queries"], near, strict=True)
    }
    assert found == {f"{border}, 20": [border] for border in BORDERS} | {
        f"{border}, 30": [] for border in BORDERS
    }

    # The distance that evaluation measures is the true one to the centimetre of the names.
    own = [panoramas["database"].index(query.rsplit(",", 1)[0]) for query in panoramas["queries"]]
    measured_m = 1000 * get_protocol("vpr-25m").distance.km(
        tables["queries"].latlon_deg, tables["database"].latlon_deg[own]
    )
    true_m = [float(query.rsplit(" ", 1)[1]) for query in panoramas["queries"]]
    np.testing.assert_allclose(measured_m, true_m, atol=0.03)

    # What the seeds do: subtract the metres of the names. Only within one zone does it find anything.
    naive_m = {
        query: np.hypot(*np.subtract(metres["queries"][query], metres["database"][border]))
        for border in BORDERS
        for query in (f"{border}, 20",)
    }
    assert [query for query, distance_m in naive_m.items() if distance_m <= RADIUS_M] == [
        "bands of one zone, 20"
    ]
    assert min(distance_m for query, distance_m in naive_m.items() if "bands" not in query) > 100_000


def test_equal_metres_in_two_zones_are_far_apart(tmp_path):
    """The other half of the error: one easting and northing is in 120 places, and subtraction takes them for one."""
    stream = io.BytesIO()
    Image.fromarray(tiny_image(0)).save(stream, "JPEG")
    for split, zone in (("database", "31@U"), ("queries", "32@U"), ("queries", "31@G")):
        (tmp_path / split).mkdir(exist_ok=True)
        (tmp_path / split / f"@0500000.00@5500000.00@{zone}@@@p@.jpg").write_bytes(stream.getvalue())
    database, queries = (open_layout("vg", tmp_path, split) for split in ("database", "queries"))
    assert [len(rows) for rows in rows_within_m(queries.latlon_deg, database.latlon_deg, RADIUS_M)] == [0, 0]
    apart_km = get_protocol("vpr-25m").distance.km(queries.latlon_deg, database.latlon_deg[[0, 0]])
    assert apart_km.min() > 400
