"""Classes and groups by hand, across zones, headings and the equator; and what is said where they cannot be made."""

import numpy as np
import pytest

from geoloc.data.place_groups import GroupsConfig, place_groups
from geoloc.errors import ConfigError
from geoloc.geo.utm import from_utm, to_utm

ONE = GroupsConfig(min_images_per_class=1)


def at(east_m, north_m, zone=32, is_north=True):
    return from_utm(np.atleast_1d(east_m), np.atleast_1d(north_m), zone, is_north)


def test_class_and_group_by_hand():
    # E 500,123.4 m is square 50,012, N 6,000,057.9 m is 600,005, 95 degrees the fourth of 30: key (50012, 600005, 3).
    found = place_groups(at(500_123.4, 6_000_057.9), [95.0], ONE)
    assert found.class_keys.tolist() == [[32, 50_012, 600_005, 3, 1]]
    assert found.group_keys.tolist() == [[50_012 % 5, 600_005 % 5, 1]] == [[2, 0, 1]]
    assert found.names == ("east 2 of 5, north 0 of 5, heading 1 of 2",)


def test_the_seed_formula_on_many_points():
    rng = np.random.default_rng(0)
    latlon = at(rng.uniform(499_900, 500_100, 400), rng.uniform(5_999_900, 6_000_100, 400))
    heading = rng.uniform(0, 360, 400)
    found = place_groups(latlon, heading, ONE)
    utm = to_utm(latlon)
    for row in range(400):
        # CosPlace's own way: rounded down to multiples, group from what is left of them.
        east, north = (int(metres // 10) * 10 for metres in (utm.east_m[row], utm.north_m[row]))
        turn = int(heading[row] // 30) * 30
        key = found.class_keys[found.class_of_photo[row]]
        assert (key[1] * 10, key[2] * 10, key[3] * 30) == (east, north, turn)
        group = found.group_keys[found.group_of_class[found.class_of_photo[row]]]
        assert group.tolist() == [east % 50 // 10, north % 50 // 10, turn % 60 // 30]
    assert (found.group_keys == np.unique(found.group_keys, axis=0)).all()


def test_classes_of_a_group_are_apart():
    rng = np.random.default_rng(1)
    latlon = at(rng.uniform(499_800, 500_200, 3000), rng.uniform(5_999_800, 6_000_200, 3000))
    found = place_groups(latlon, rng.uniform(0, 360, 3000), GroupsConfig(min_images_per_class=2))
    assert found.num_classes.sum() == len(found.class_keys)
    for group in range(len(found.group_keys)):
        keys = found.class_keys[found.group_of_class == group, 1:4]
        steps = np.abs(keys[:, None] - keys[None])
        turn = np.minimum(steps[..., 2], 12 - steps[..., 2])
        apart = (steps[..., :2].max(-1) >= 5) | (turn >= 2)
        assert apart[~np.eye(len(keys), dtype=bool)].all()


def test_photos_of_thin_classes_have_none():
    latlon = at([500_001, 500_002, 500_003, 500_011], [6_000_001] * 4)
    found = place_groups(latlon, [0.0] * 4, GroupsConfig(min_images_per_class=3))
    assert found.class_of_photo.tolist() == [0, 0, 0, -1]
    assert found.class_ids(0).tolist() == [0, 0, 0, -1]


def test_class_ids_count_inside_the_group():
    # Squares 0, 1 and 5 east: the first and the last share a group.
    found = place_groups(at([500_001, 500_011, 500_051], [6_000_001] * 3), [1.0] * 3, ONE)
    assert found.group_of_class.tolist() == [0, 1, 0]
    assert found.class_ids(0).tolist() == [0, -1, 1]
    assert found.class_ids(1).tolist() == [-1, 0, -1]
    assert found.trainable(8) == [0]


def test_zones_and_sides_of_the_equator_never_mix():
    # The same metres in two zones and on both sides are four squares, not one.
    latlon = np.concatenate(
        [at(500_001, 5_000_001, zone, north) for zone in (31, 32) for north in (True, False)]
    )
    assert len(place_groups(latlon, [0.0] * 4, ONE).class_keys) == 4


def test_headings_wrap_and_can_be_left_out():
    latlon = at([500_001] * 4, [6_000_001] * 4)
    found = place_groups(latlon, [-1.0, 359.0, 719.0, -1e-20], ONE)
    assert found.class_keys[:, 3].tolist() == [0, 11]
    assert found.class_of_photo.tolist() == [1, 1, 1, 0]
    without = place_groups(latlon, None, GroupsConfig(heading_step_deg=None, min_images_per_class=4))
    assert without.class_of_photo.tolist() == [0] * 4
    assert without.names[0].count(",") == 1


def test_what_cannot_be_grouped():
    latlon = at([500_001, 500_002], [6_000_001] * 2)
    with pytest.raises(ConfigError, match=r"1 of 2 photos have no heading.*heading_step_deg=null"):
        place_groups(latlon, [1.0, np.nan], ONE)
    with pytest.raises(ConfigError, match="2 photos fall into 1 classes, and the largest has 2; lower"):
        place_groups(latlon, [1.0, 2.0])
    with pytest.raises(ConfigError, match=r"there is one class only.*add photos of more places"):
        place_groups(latlon, [1.0, 2.0], ONE).trainable(8)
    with pytest.raises(ConfigError, match="whole number of 80 degrees"):
        GroupsConfig(heading_step_deg=40)
