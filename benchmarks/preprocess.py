"""Preprocessing of JPEG files to a 224 px network input: ours against Pillow with torchvision's transform.

    python benchmarks/preprocess.py [--image PHOTO] [--quality 90] [--seconds 4] [--threads 1]

Both start from a file and end at a normalised (3, 224, 224) float32 tensor: the peer opens, converts to RGB,
resizes (bicubic, antialias), crops the centre, makes a tensor and normalises. They take turns, so that a busy
machine disturbs both; times are medians. The sources are made on the spot, 640, 1024 and 2048 px on the long
side, 4:3, from a synthetic picture with the spectrum of a photo or from a photo that you name.

The difference to torchvision is given in grey levels of 255, for the scaled decode that is timed and for a
full decode.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from geoloc.images import Preprocess, decode_image, load_and_preprocess
from geoloc.torchvision_cpu import ensure_importable

ensure_importable()
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor  # noqa: E402

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESS = Preprocess(image_size_px=224, mean=MEAN, std=STD)
GOAL = 2.3  # times the speed of the peer


def photo_like(width_px: int, height_px: int, seed: int = 0) -> Image.Image:
    """Noise whose amplitude falls with frequency as in photos, fainter in colour, with a few hard edges."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height_px)[:, None], np.fft.rfftfreq(width_px)[None])
    frequency[0, 0] = 1.0

    def field() -> NDArray[np.float64]:
        noise = np.fft.rfft2(rng.normal(size=(height_px, width_px)))
        return np.asarray(np.fft.irfft2(noise / frequency**1.25, s=(height_px, width_px)))

    luminance = field()
    picture = np.stack([luminance + 0.2 * field() for _ in range(3)], axis=-1)
    for _ in range(40):  # objects
        top, left = rng.integers(0, height_px), rng.integers(0, width_px)
        height, width = rng.integers(8, height_px // 4), rng.integers(8, width_px // 4)
        picture[top : top + height, left : left + width] += rng.normal(0, picture.std(), 3)
    picture = 128 + 55 * (picture - picture.mean()) / picture.std()
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def plain_pillow(transform: Callable[[Image.Image], torch.Tensor], path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return transform(image.convert("RGB"))


def grey_levels(tensor: torch.Tensor) -> NDArray[np.float64]:
    levels = tensor.numpy().astype(np.float64) * np.reshape(STD, (3, 1, 1)) + np.reshape(MEAN, (3, 1, 1))
    return np.asarray(levels * 255)


def median_ms(functions: list[Callable[[], object]], seconds: float) -> list[float]:
    """Median milliseconds of each function; they take turns until the time is up."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()  # warm up
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, help="a photo of at least 2048 px to make the sources from")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG files (default 90)")
    parser.add_argument("--seconds", type=float, default=4.0, help="per size (default 4)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    transform = Compose(
        [
            Resize(224, interpolation=InterpolationMode.BICUBIC, antialias=True),
            CenterCrop(224),
            ToTensor(),
            Normalize(MEAN, STD),
        ]
    )
    original = Image.open(options.image).convert("RGB") if options.image else photo_like(2048, 1536)
    print("long side     file    Pillow      ours  ratio   mean / max difference: scaled          full")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for long_side_px in (640, 1024, 2048):
            scale = long_side_px / max(original.size)
            size = (round(original.width * scale), round(original.height * scale))
            path = Path(folder) / f"{long_side_px}.jpg"
            original.resize(size, Image.Resampling.LANCZOS).save(path, quality=options.quality)
            theirs_ms, ours_ms = median_ms(
                [partial(plain_pillow, transform, path), partial(load_and_preprocess, path, PREPROCESS)],
                options.seconds,
            )
            expected = grey_levels(plain_pillow(transform, path))
            scaled = np.abs(grey_levels(load_and_preprocess(path, PREPROCESS)) - expected)
            full = np.abs(grey_levels(PREPROCESS(decode_image(path))) - expected)
            ratios.append(theirs_ms / ours_ms)
            print(
                f"{long_side_px:6d} px {path.stat().st_size / 1024:5.0f} kB"
                f" {theirs_ms:6.2f} ms {ours_ms:6.2f} ms {ratios[-1]:5.2f}x"
                f" {scaled.mean():21.3f} / {scaled.max():5.2f} {full.mean():7.3f} / {full.max():4.2f}"
            )
    print(f"worst ratio {min(ratios):.2f}x, goal {GOAL}x; torch threads {torch.get_num_threads()}")


if __name__ == "__main__":
    main()
