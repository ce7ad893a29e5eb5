"""Every sample once an epoch, for any number of ranks and workers; any step can be the first."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_image

from geoloc.data.sample import Sample, SampleTable
from geoloc.data.samplers import InOrder, RankBatches, Shuffled
from geoloc.data.stream import LoadImage, SampleStream
from geoloc.errors import BadImageError, ConfigError
from geoloc.images.decode import decode_image
from geoloc.images.preprocess import Preprocess

PREPROCESS = Preprocess(image_size_px=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def table_of(num: int, root: Path = Path("nowhere")) -> SampleTable:
    columns = {"key": [f"k{i}" for i in range(num)], "image_file": [f"{i}.jpg" for i in range(num)]}
    return SampleTable(root, columns, np.stack([np.linspace(-80, 80, num), np.linspace(-170, 170, num)], -1))


def draw(sample: Sample, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    return {"draw": torch.tensor(rng.random())}


@pytest.fixture
def photos(tmp_path: Path) -> SampleTable:
    for i in range(11):
        Image.fromarray(tiny_image(i)).save(tmp_path / f"{i}.jpg", quality=95)
    return table_of(11, tmp_path)


@given(
    num=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
    num_workers=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_no_sample_is_seen_twice_or_lost(
    num: int, batch_size: int, world_size: int, num_workers: int, epoch: int
) -> None:
    order = Shuffled(num, seed=3)
    assume(num >= world_size)
    seen: Counter[int] = Counter()
    for rank in range(world_size):
        for worker in range(num_workers):  # a process of its own: it shares no state with the others
            stream = SampleStream(table_of(num), draw, order, batch_size=batch_size * world_size)
            num_batches = len(RankBatches(order, batch_size, rank=rank, num_ranks=world_size))
            first = epoch * num_batches
            for index in range(first + worker, first + num_batches, num_workers):
                rows = stream.batch(index, rank, world_size)["row"].tolist()
                assert 1 <= len(rows) <= batch_size + 1
                seen.update(rows)
    assert seen == Counter(range(num))


def rows_and_draws(stream: SampleStream, rank: int = 0, world_size: int = 1) -> list[tuple[int, float]]:
    batches = list(stream.batches(rank, world_size))
    return [pair for b in batches for pair in zip(b["row"].tolist(), b["draw"].tolist(), strict=True)]


def stream_of(num: int, **options: Any) -> SampleStream:
    return SampleStream(table_of(num), draw, Shuffled(num, seed=5), **{"batch_size": 4, "seed": 5} | options)


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    alone = rows_and_draws(stream_of(23))
    assert sorted(row for row, _ in alone) == list(range(23))
    assert alone == rows_and_draws(stream_of(23, num_workers=2))


def test_ranks_together_see_what_one_sees() -> None:
    alone = stream_of(24)
    for world_size in (2, 4):
        for index in (0, 3, 5, 7):
            whole = alone.batch(index)
            parts = [stream_of(24).batch(index, rank, world_size) for rank in range(world_size)]
            for name in ("row", "draw"):
                together = torch.cat([part[name] for part in parts])
                assert sorted(together.tolist()) == sorted(whole[name].tolist())


def test_a_batch_depends_on_its_number_alone() -> None:
    forward, backward = stream_of(23), stream_of(23)
    first = [forward.batch(index)["draw"].tolist() for index in range(20)]
    assert first == [backward.batch(index)["draw"].tolist() for index in range(19, -1, -1)][::-1]
    assert len({str(draws) for draws in first}) == 20


def test_a_row_that_comes_twice_is_drawn_twice() -> None:
    weights = np.array([1.0] + [1e-9] * 7)
    batch = stream_of(8, batch_size=8, resampling_weights=weights).batch(0)
    assert batch["row"].tolist() == [0] * 8
    assert len(set(batch["draw"].tolist())) == 8


def test_images_are_decoded_and_labels_come_along(photos: SampleTable) -> None:
    labels = {"cell_id": np.arange(11) * 10}
    stream = SampleStream(photos, LoadImage(PREPROCESS), InOrder(range(11)), batch_size=4, labels=labels)
    batches = list(stream.batches())
    assert [batch["image"].shape for batch in batches] == [(4, 3, 16, 16), (4, 3, 16, 16), (3, 3, 16, 16)]
    assert torch.cat([batch["cell_id"] for batch in batches]).tolist() == list(range(0, 110, 10))
    latlon_deg = torch.cat([batch["latlon_deg"] for batch in batches])
    assert latlon_deg.dtype == torch.float64
    np.testing.assert_array_equal(latlon_deg.numpy(), photos.latlon_deg)
    expected = PREPROCESS(decode_image(f"{photos.root}/5.jpg", min_side_px=32))
    assert torch.equal(batches[1]["image"][1], expected)


def test_augmentation_repeats_itself(photos: SampleTable) -> None:
    def noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 255, image.shape).astype(np.uint8)

    stream = SampleStream(photos, LoadImage(PREPROCESS, noisy), InOrder(range(11)), batch_size=11)
    first, again, other = stream.batch(0), stream.batch(0), stream.batch(1)
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff" + bytes(100)])
def test_a_bad_image_is_named_with_its_remedy(photos: SampleTable, data: bytes) -> None:
    (Path(photos.root) / "3.jpg").write_bytes(data)
    stream = SampleStream(photos, LoadImage(PREPROCESS), InOrder(range(11)), batch_size=11)
    with pytest.raises(BadImageError, match=r"sample 'k3' \(.*3\.jpg\): .*; `geoloc data verify --decode`"):
        stream.batch(0)


def test_a_member_of_a_tar_is_read_in_place(photos: SampleTable, tmp_path: Path) -> None:
    stored = io.BytesIO()
    Image.fromarray(tiny_image(7)).save(stored, "PNG")
    (tmp_path / "x.tar").write_bytes(b"before" + stored.getvalue() + b"after")
    columns = {
        "key": ["a"],
        "image_file": ["x.tar"],
        "image_offset": [6],
        "image_num_bytes": [len(stored.getvalue())],
    }
    table = SampleTable(tmp_path, columns, [[0.0, 0.0]])
    assert np.array_equal(decode_image(table[0].image.read()), tiny_image(7))


def test_impossible_streams_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 processes cannot share a batch of 3 evenly"):
        SampleStream(table_of(3), draw, InOrder(range(3)), batch_size=3).batch(0, 0, 2)
    with pytest.raises(ConfigError, match="'cell_id' has 2 rows, and there are 3 samples"):
        SampleStream(table_of(3), draw, InOrder(range(3)), batch_size=1, labels={"cell_id": np.arange(2)})
    with pytest.raises(ConfigError, match="the label name 'row' is reserved"):
        SampleStream(table_of(3), draw, InOrder(range(3)), batch_size=1, labels={"row": np.arange(3)})
