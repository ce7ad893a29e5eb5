"""What the choice of operators in 8 bits is judged by."""

import numpy as np

from geoloc.models.onnx.quantise import agreement


def test_agreement_by_hand() -> None:
    expected = np.array([[3.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 4.0]], np.float32)
    assert agreement(expected, expected) == 1.0
    # The first picture loses 1 between its two best: that would have turned the second, and no other.
    noisy = expected - np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    assert noisy.argmax(-1).tolist() == expected.argmax(-1).tolist()
    assert agreement(expected, noisy) == 8 / 9
    assert agreement(expected[:, :1], noisy[:, :1]) == 1.0


def test_few_pictures_tell_what_many_show() -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(0, 3, (4000, 20)).astype(np.float32)
    found = expected + rng.normal(0, 0.05, expected.shape).astype(np.float32)
    many = np.mean(expected.argmax(-1) == found.argmax(-1))
    few = [agreement(expected[i : i + 100], found[i : i + 100]) for i in range(0, 4000, 100)]
    assert 0.95 < many < 0.99
    assert abs(np.mean(few) - many) < 0.004
    assert np.std(few) < 0.6 * np.sqrt(many * (1 - many) / 100)  # of counting a hundred
