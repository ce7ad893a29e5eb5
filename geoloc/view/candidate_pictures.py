"""Picture of a query and its best candidates side by side, right ones framed green and wrong ones red.

    jpeg = candidates_jpeg("a.jpg: 1 of 5", [Tile(query, ["query"]), Tile(photo, ["1 wrong, 2.1 km"], False)])

Drawn with Pillow. The captions also state right or wrong, for colour-blind readers.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

RIGHT: Final = (0x2B, 0x8A, 0x3E)
WRONG: Final = (0xC9, 0x2A, 0x2A)
PLAIN: Final = (0x65, 0x70, 0x7E)  # the frame of the query
SIDE_PX: Final = 240  # of the square that a photo is fitted into
FRAME_PX: Final = 8
MARGIN_PX: Final = 16
HEADING_PX: Final = 40

_TEXT, _BACKGROUND, _NOTHING = (0x1C, 0x24, 0x30), (255, 255, 255), (0xE8, 0xE6, 0xDF)
_LINE_PX: Final = 19


@dataclass(frozen=True, eq=False)
class Tile:
    """Photo with its caption.

    Attributes:
        image: (h, w, 3) uint8; None if missing.
        lines: caption; long lines are truncated.
        is_right: None for the query.
    """

    image: NDArray[np.uint8] | None
    lines: Sequence[str]
    is_right: bool | None = None


def candidates_jpeg(heading: str, tiles: Sequence[Tile]) -> bytes:
    """JPEG with a heading and the tiles from left to right.

    Tile t's framed square begins `tile_left_px(t)` from the left and `HEADING_PX` from above.
    """
    from PIL import Image, ImageDraw

    num_lines = max((len(tile.lines) for tile in tiles), default=0)
    width = tile_left_px(len(tiles))
    height = HEADING_PX + _framed_px() + num_lines * _LINE_PX + MARGIN_PX
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = _font(16)
    draw.text((MARGIN_PX, 10), _fitted(heading, font, width - 2 * MARGIN_PX), _TEXT, font)
    font = _font(13)
    for number, tile in enumerate(tiles):
        left, top = tile_left_px(number), HEADING_PX
        color = {None: PLAIN, True: RIGHT, False: WRONG}[tile.is_right]
        draw.rectangle((left, top, left + _framed_px() - 1, top + _framed_px() - 1), color)
        inside = (left + FRAME_PX, top + FRAME_PX)
        draw.rectangle((*inside, inside[0] + SIDE_PX - 1, inside[1] + SIDE_PX - 1), _NOTHING)
        if tile.image is None:
            draw.text((inside[0] + 12, inside[1] + SIDE_PX // 2 - 8), "no photo at hand", PLAIN, font)
        else:
            photo = _contained(tile.image)
            shift = ((SIDE_PX - photo.width) // 2, (SIDE_PX - photo.height) // 2)
            canvas.paste(photo, (inside[0] + shift[0], inside[1] + shift[1]))
        for row, line in enumerate(tile.lines):
            origin = (left, top + _framed_px() + 4 + row * _LINE_PX)
            draw.text(origin, _fitted(line, font, _framed_px()), _TEXT, font)
    data = BytesIO()
    canvas.save(data, "JPEG", quality=90, subsampling=0)  # else thin red frames run into the photo
    return data.getvalue()


def tile_left_px(number: int) -> int:
    """Left edge of a tile."""
    return MARGIN_PX + number * (_framed_px() + MARGIN_PX)


def _framed_px() -> int:
    return SIDE_PX + 2 * FRAME_PX


def _contained(image: NDArray[np.uint8]) -> "Image":
    """Photo scaled to fit into the square."""
    from PIL import Image, ImageOps

    return ImageOps.contain(Image.fromarray(image), (SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)


@cache
def _font(size_px: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size_px)


def _fitted(text: str, font: Any, width_px: int) -> str:
    """Text on one line, truncated to a width."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    if font.getlength(text) <= width_px:
        return text
    num_kept = bisect_right(range(len(text)), width_px, key=lambda num: font.getlength(f"{text[:num]}…")) - 1
    return f"{text[: max(num_kept, 0)]}…"
