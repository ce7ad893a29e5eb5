import numpy as np

from geoloc.metrics.admin import NameTally, confusion, confusion_table, joined_keys


def words(*texts):
    return np.array(texts, dtype=np.object_)


def test_keys_are_osv5ms():
    keys = joined_keys(words("US"), words("Ohio"), words("Clark County"), words("Springfield"))
    assert {level: key[0] for level, key in keys.items()} == {
        "country": "US",
        "region": "Ohio_US",
        "sub_region": "Clark County_Ohio_US",
        "city": "Springfield_Clark County_Ohio_US",
    }
    assert joined_keys(words("AQ"), words(""), words(""), words(""))["sub_region"][0] == "__AQ"


def test_names_count_only_where_the_truth_is_known():
    tally, other = NameTally(), NameTally()
    tally.add("country", 3, 2)
    tally.add("city", 0, 0)
    other.add("country", 1, 1)
    tally.merge(other)
    assert tally.summary() == {"country": 0.75}


def test_confusion():
    pairs = confusion(words("SE", "NO", "SE", ""), words("SE", "SE", "SE", "DK"))
    assert pairs == {("SE", "SE"): 2, ("SE", "NO"): 1, ("DK", ""): 1}
    assert confusion_table(pairs, 1) == {"names": ["SE", "other"], "counts": [[2, 1], [0, 1]]}
    assert confusion_table({}, 3) == {"names": ["other"], "counts": [[0]]}
