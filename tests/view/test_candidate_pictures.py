"""Pictures of candidates: every frame and photo where it belongs, in its colour."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from geoloc.view.candidate_pictures import (
    FRAME_PX,
    HEADING_PX,
    PLAIN,
    RIGHT,
    SIDE_PX,
    WRONG,
    Tile,
    candidates_jpeg,
    tile_left_px,
)

COLOR_SLACK = 12  # of a JPEG


def drawn(heading: str, tiles: list[Tile]) -> np.ndarray:
    image = Image.open(BytesIO(candidates_jpeg(heading, tiles)))
    assert image.format == "JPEG"
    return np.asarray(image).astype(int)


def plain(color: tuple[int, int, int], height: int = 30, width: int = 30) -> np.ndarray:
    return np.broadcast_to(np.array(color, np.uint8), (height, width, 3)).copy()


def test_frames_and_photos_are_where_they_belong() -> None:
    photos = [(10, 20, 200), (240, 240, 20), (20, 200, 220), (200, 20, 220)]
    frames = [None, False, True, False]
    tiles = [Tile(plain(photo), ["a caption"], right) for photo, right in zip(photos, frames, strict=True)]
    picture = drawn("heading", tiles)
    assert picture.shape[1] == tile_left_px(len(tiles))
    middle = HEADING_PX + FRAME_PX + SIDE_PX // 2
    for number, (photo, right) in enumerate(zip(photos, frames, strict=True)):
        expected = {None: PLAIN, True: RIGHT, False: WRONG}[right]
        left = tile_left_px(number)
        last = left + SIDE_PX + 2 * FRAME_PX - 1
        for y, x in (
            *((middle, left + FRAME_PX // 2), (middle, last - FRAME_PX // 2)),
            *((HEADING_PX + FRAME_PX // 2, left + 100), (HEADING_PX + SIDE_PX + FRAME_PX + 4, left + 100)),
        ):
            assert picture[y, x] == pytest.approx(expected, abs=COLOR_SLACK)
        assert picture[middle, left + FRAME_PX + SIDE_PX // 2] == pytest.approx(photo, abs=COLOR_SLACK)
        assert picture[middle, left - 4] == pytest.approx((255, 255, 255), abs=COLOR_SLACK)


def test_a_photo_keeps_its_shape_and_a_missing_one_is_said() -> None:
    wide, nothing = Tile(plain((200, 0, 0), 20, 80), [], True), Tile(None, [], False)
    picture = drawn("", [wide, nothing])
    left = tile_left_px(0) + FRAME_PX
    top = HEADING_PX + FRAME_PX
    is_red = np.abs(picture[top : top + SIDE_PX, left + 5] - (200, 0, 0)).max(-1) < 40
    assert is_red.sum() == pytest.approx(SIDE_PX / 4, abs=3)
    assert is_red[SIDE_PX // 2]
    beside = picture[top : top + SIDE_PX, tile_left_px(1) + FRAME_PX :][:, :SIDE_PX]
    assert beside.min() < 150  # a word
    assert np.median(beside) > 200


def test_texts_of_any_kind_and_length_stay_in_their_place() -> None:
    texts = ["x" * 500, "a\nb", "\udcff broken", "Łódź, 東京"]
    picture = drawn("y" * 2000, [Tile(None, texts, True), Tile(None, [])])
    gap = picture[:, tile_left_px(1) - 12 : tile_left_px(1) - 2]
    assert gap[HEADING_PX:].min() > 240  # no caption runs into its neighbour
    assert picture[:HEADING_PX, -14:].min() > 240
