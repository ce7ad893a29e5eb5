"""Every sample once an epoch, for any number of ranks and workers; any step can be the first."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from geoloc.data.sample import Sample, SampleTable
from geoloc.data.stream import InOrder, LoadImage, SampleStream, Shuffled, step_places
from geoloc.errors import BadImageError, ConfigError
from geoloc.images.decode import decode_image
from geoloc.images.preprocess import Preprocess
from tests.tiny import tiny_image

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
    num=st.integers(0, 60),
    batch_size=st.integers(1, 9),
    num_ranks=st.integers(1, 5),
    num_workers=st.integers(1, 5),
    start=st.integers(0, 5),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
    window=st.sampled_from([None, 1, 7, 1000]),
)
def test_no_sample_is_seen_twice_or_lost(
    num: int,
    batch_size: int,
    num_ranks: int,
    num_workers: int,
    start: int,
    drop_last: bool,
    epoch: int,
    window: int | None,
) -> None:
    order = Shuffled(num, seed=3, window=window, block=4)(epoch)
    assert sorted(order) == list(range(num))
    global_batch = batch_size * num_ranks
    num_steps = num // global_batch if drop_last else -(-num // global_batch)
    seen: list[int] = []
    for rank in range(num_ranks):
        for worker in range(num_workers):  # as SampleStream.__iter__ does
            for step in range(start + worker, num_steps, num_workers):
                places = step_places(num, step, batch_size, rank, num_ranks)
                assert len(places) <= batch_size
                seen += order[places.start : places.stop].tolist()
    wanted = order[start * global_batch : num_steps * global_batch]
    assert Counter(seen) == Counter(wanted.tolist())


def rows_and_draws(
    num_workers: int, rank: int = 0, num_ranks: int = 1, batch_size: int = 4, start: tuple[int, int] = (0, 0)
) -> list[tuple[list[int], list[float]]]:
    stream = SampleStream(
        table_of(23),
        draw,
        Shuffled(23, seed=5),
        batch_size=batch_size,
        rank=rank,
        num_ranks=num_ranks,
        seed=5,
    )
    stream.start_at(*start)
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
    batches = [(batch["row"].tolist(), batch["draw"].tolist()) for batch in loader]
    assert len(loader) == len(batches)
    return batches


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    assert rows_and_draws(0) == rows_and_draws(1) == rows_and_draws(2)


def test_two_ranks_see_what_one_sees_with_twice_the_batch() -> None:
    alone = rows_and_draws(0, batch_size=8)
    pairs = zip(rows_and_draws(0, 0, 2), rows_and_draws(0, 1, 2), strict=True)
    assert [(a[0] + b[0], a[1] + b[1]) for a, b in pairs] == alone


def test_any_step_can_be_the_first() -> None:
    whole = rows_and_draws(0, start=(2, 0))
    assert whole != rows_and_draws(0, start=(1, 0))
    for step in range(len(whole) + 1):
        assert rows_and_draws(0, start=(2, step)) == whole[step:]
    assert rows_and_draws(2, start=(2, 3)) == whole[3:]


def test_workers_that_live_on_see_the_next_epoch() -> None:
    stream = SampleStream(table_of(12), draw, Shuffled(12), batch_size=4)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    seen = []
    for epoch in (0, 1):
        stream.start_at(epoch)
        seen.append(torch.cat([batch["row"] for batch in loader]).tolist())
    assert seen == [Shuffled(12)(0).tolist(), Shuffled(12)(1).tolist()]


def test_a_window_keeps_neighbours_together() -> None:
    rows = Shuffled(10_000, seed=1, window=2000, block=500)(0)
    for start in range(0, 10_000, 2000):
        assert len(np.unique(rows[start : start + 2000] // 500)) == 4
    assert not (np.diff(rows) == 1).mean() > 0.05


def test_images_are_decoded_and_labels_come_along(photos: SampleTable) -> None:
    labels = {"cell_id": np.arange(11) * 10}
    stream = SampleStream(photos, LoadImage(PREPROCESS), InOrder(11), batch_size=4, labels=labels)
    batches = list(stream)
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

    stream = SampleStream(photos, LoadImage(PREPROCESS, noisy), InOrder(11), batch_size=11)
    (first,), (again,) = list(stream), list(stream)
    assert torch.equal(first["image"], again["image"])
    stream.start_at(1)
    (other,) = list(stream)
    assert not torch.equal(first["image"], other["image"])


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff" + bytes(100)])
def test_a_bad_image_is_named_with_its_remedy(photos: SampleTable, data: bytes) -> None:
    (Path(photos.root) / "3.jpg").write_bytes(data)
    stream = SampleStream(photos, LoadImage(PREPROCESS), InOrder(11), batch_size=11)
    with pytest.raises(BadImageError, match=r"sample 'k3' \(.*3\.jpg\): .*; `geoloc data verify --decode`"):
        next(iter(stream))


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
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        SampleStream(table_of(3), draw, InOrder(3), batch_size=1, rank=2, num_ranks=2)
    with pytest.raises(ConfigError, match="'cell_id' has 2 rows, and there are 3 samples"):
        SampleStream(table_of(3), draw, InOrder(3), batch_size=1, labels={"cell_id": np.arange(2)})
    with pytest.raises(ConfigError, match="no label can be called 'row'"):
        SampleStream(table_of(3), draw, InOrder(3), batch_size=1, labels={"row": np.arange(3)})
