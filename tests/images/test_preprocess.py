import dataclasses
import json

import numpy as np
import pytest
from image_samples import encode, photo_like
from PIL import Image

from geoloc.errors import BadImageError, ConfigError
from geoloc.images import ImageLimits, Preprocess, decode_image, load_and_preprocess

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def clip(size: int = 224, **options) -> Preprocess:
    return Preprocess(image_size_px=size, mean=MEAN, std=STD, **options)


def grey_levels(tensor):
    """A normalised tensor (3, S, S) back on the scale 0..255."""
    return (np.asarray(tensor) * np.reshape(STD, (3, 1, 1)) + np.reshape(MEAN, (3, 1, 1))) * 255


def torchvision_transform(preprocess: Preprocess):
    from geoloc.torchvision_cpu import ensure_importable

    ensure_importable()
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    size = preprocess.image_size_px
    shape = (size, size) if preprocess.resize == "squash" else size
    interpolation = InterpolationMode(preprocess.interpolation)
    first = [lambda picture: CenterCrop(min(picture.size))(picture)] if preprocess.resize == "crop" else []
    return Compose(
        [
            *first,
            Resize(shape, interpolation=interpolation, antialias=True),
            CenterCrop(size),
            ToTensor(),
            Normalize(preprocess.mean, preprocess.std),
        ]
    )


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "crop"])
@pytest.mark.parametrize(
    "width_height",
    [
        (640, 480),
        (480, 640),
        (333, 500),
        (501, 333),
        (225, 224),
        (224, 225),
        (224, 224),
        (90, 61),
        (1000, 301),
        (37, 500),
    ],
)
def test_equals_torchvision_on_a_pillow_image(width_height, resize, interpolation):
    preprocess = clip(resize=resize, interpolation=interpolation)
    image = photo_like(*width_height)
    ours = preprocess(decode_image(image))
    theirs = torchvision_transform(preprocess)(image)
    assert tuple(ours.shape) == (3, 224, 224)
    assert str(ours.dtype) == "torch.float32"
    assert ours.is_contiguous()
    difference = np.abs(grey_levels(ours) - grey_levels(theirs))
    assert difference.mean() < 0.05
    # Both round to whole levels after each axis, in different fixed-point arithmetic.
    # A square of the picture's centre that is made larger adds both up in single pixels.
    assert difference.max() < (2.01 if resize == "crop" else 1.01)


def torchvision_functions():
    from geoloc.torchvision_cpu import ensure_importable

    ensure_importable()
    from torchvision.transforms import functional

    return functional


@pytest.mark.parametrize("width_height", [(640, 480), (1024, 768), (333, 500), (100, 90), (37, 500)])
def test_a_rectangle_is_the_vg_benchmarks(width_height):
    """There, the tensor is normalised first and resized then, without rounding to whole levels between."""
    functional = torchvision_functions()
    preprocess = clip((480, 640), resize="squash", interpolation="bilinear")
    image = photo_like(*width_height)
    normalised = functional.normalize(functional.to_tensor(image), MEAN, STD)
    theirs = functional.resize(normalised, [480, 640], antialias=True)
    ours = preprocess(np.asarray(image))
    assert tuple(ours.shape) == (3, 480, 640)
    difference = np.abs(grey_levels(ours) - grey_levels(theirs))
    assert difference.mean() < 0.35  # the sum of two roundings, each even in half a level, is 1/3 on average
    assert difference.max() < 1.01
    if width_height == (640, 480):
        assert difference.max() < 1e-4


@pytest.mark.parametrize("width_height", [(640, 480), (97, 61), (3, 5)])
def test_native_pictures_are_cosplaces(width_height):
    functional = torchvision_functions()
    image = photo_like(*width_height)
    theirs = functional.normalize(functional.to_tensor(image), MEAN, STD)
    ours = clip(512, resize="native")(np.asarray(image))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


def test_a_huge_native_picture_is_made_smaller():
    image = np.full((100, 8192, 3), 77, np.uint8)
    ours = clip(512, resize="native")(image)
    assert ours.shape == (3, 50, 4096)
    np.testing.assert_allclose(grey_levels(ours), 77, atol=1e-3)


@pytest.mark.parametrize(
    ("width_height", "inner_hw"),
    [
        ((640, 480), (480, 640)),
        ((320, 240), (480, 640)),
        ((1000, 500), (320, 640)),  # 1000 : 640 as 500 : 320
        ((500, 1000), (480, 240)),
        ((1001, 3), (1, 640)),  # 3 * 640 / 1001 is 1.9
    ],
)
def test_padding_puts_the_whole_picture_in_the_middle_of_black(width_height, inner_hw):
    width, height = width_height
    ours = grey_levels(clip((480, 640), resize="pad")(np.full((height, width, 3), 200, np.uint8)))
    top, left = (480 - inner_hw[0]) // 2, (640 - inner_hw[1]) // 2
    expected = np.zeros((3, 480, 640))
    expected[:, top : top + inner_hw[0], left : left + inner_hw[1]] = 200
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_padding_is_statewides():
    """Its photos are on the disk at the size that fits; then what misses is put around, the odd pixel behind."""
    image = np.asarray(photo_like(551, 480))
    gap = 640 - 551
    padded = np.pad(image, [(0, 0), (gap // 2, gap - gap // 2), (0, 0)])
    ours = clip((480, 640), resize="pad")(image)
    np.testing.assert_array_equal(ours, clip((480, 640), resize="squash")(padded))


@pytest.mark.parametrize("width_height", [(640, 480), (500, 500), (300, 700), (90, 61), (60, 500)])
def test_covering_a_rectangle_is_torchvisions_resize_and_centre_crop(width_height):
    functional = torchvision_functions()
    preprocess = clip((96, 160), interpolation="bilinear")
    width, height = width_height
    scale = max(96 / height, 160 / width)
    size = [int(height * scale + 1e-9), int(width * scale + 1e-9)]
    image = photo_like(*width_height)
    theirs = functional.center_crop(functional.resize(image, size, antialias=True), [96, 160])
    ours = grey_levels(preprocess(np.asarray(image)))
    assert np.abs(ours - np.asarray(theirs).transpose(2, 0, 1)).max() < 1.01


def test_aerial_views_are_squares_of_their_own():
    preprocess = clip((480, 640), resize="pad", aerial_size_px=384)
    views = preprocess.of_aerial
    assert (views.size_hw, views.resize, views.aerial_size_px) == ((384, 384), "squash", None)
    assert clip(224).of_aerial.size_hw == (224, 224)
    assert clip((480, 640)).of_aerial.size_hw == (480, 480)
    patch = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    np.testing.assert_array_equal(clip(224).of_aerial(patch), clip(224)(patch))


@pytest.mark.parametrize(("width", "first"), [(38, 5), (39, 5), (40, 6), (41, 6), (43, 7), (28, 0)])
def test_transformers_leaves_an_odd_pixel_to_the_right(width, first):
    """Its processors floor half of what is cut off; torchvision rounds it to an even number: 6 of 11, and 8 of 15."""
    image = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (28, width, 3))
    ours = grey_levels(clip(28, floors_centre=True)(np.ascontiguousarray(image)))
    np.testing.assert_allclose(ours[0, 0], np.arange(first, first + 28), atol=1e-3)
    values = clip(28, floors_centre=True).to_dict()
    assert Preprocess.from_dict(values).floors_centre
    assert "floors_centre" not in clip(28).to_dict()


def test_normalisation_by_hand():
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = ((levels / 255.0 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(np.asarray(clip(8)(levels)), expected, atol=1e-6)


def test_scaled_decode_stays_within_half_a_level_of_torchvision_on_average():
    preprocess = clip()
    data = encode(photo_like(1600, 1200), "JPEG", quality=90)
    theirs = torchvision_transform(preprocess)(Image.fromarray(decode_image(data)))
    ours = load_and_preprocess(data, preprocess)
    assert np.abs(grey_levels(ours) - grey_levels(theirs)).mean() < 0.5


def test_decoding_is_no_larger_than_useful(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "geoloc.images.preprocess.decode_image",
        lambda source, **options: asked.append(options) or decode_image(source, **options),
    )
    limits = ImageLimits(max_bytes=10**6)
    assert load_and_preprocess(encode(photo_like(300, 200), "JPEG"), clip(64), limits=limits).shape == (
        3,
        64,
        64,
    )
    assert asked == [{"limits": limits, "min_side_px": 128}]


def test_bad_bytes_stay_bad():
    with pytest.raises(BadImageError, match="the file is empty"):
        load_and_preprocess(b"", clip())


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 300_000)])
def test_extreme_shapes_cost_no_memory(shape):
    image = np.full((*shape, 3), 128, np.uint8)
    for resize in ("shortest", "squash"):
        for size in (32, (20, 32), (32, 20)):
            tensor = clip(size, resize=resize)(image)
            assert tensor.shape[1:] == clip(size).size_hw
            np.testing.assert_allclose(grey_levels(tensor), 128, atol=1e-3)
        tensor = clip(32, resize=resize)(image)
        np.testing.assert_allclose(grey_levels(tensor), 128, atol=1e-3)


def test_read_only_and_reversed_arrays(recwarn):
    image = np.asarray(photo_like(100, 80))
    read_only = image.view()
    read_only.flags.writeable = False
    expected = np.asarray(clip(32)(image.copy()))
    np.testing.assert_array_equal(np.asarray(clip(32)(read_only)), expected)
    backwards = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    np.testing.assert_array_equal(np.asarray(clip(32)(backwards)), expected)
    assert not recwarn.list


def test_the_image_is_left_alone():
    image = np.asarray(photo_like(32, 32)).copy()
    before = image.copy()
    clip(32)(image)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((3, 0, 3), np.uint8)]
)
def test_only_decoded_images(image):
    with pytest.raises(ValueError, match=r"expected \(h, w, 3\) uint8, found"):
        clip()(image)


# The description


def test_round_trip_through_json():
    preprocess = clip(336, resize="squash", interpolation="bilinear")
    values = preprocess.to_dict()
    assert values == {
        "image_size_px": 336,
        "resize": "squash",
        "interpolation": "bilinear",
        "mean": list(MEAN),
        "std": list(STD),
    }
    assert Preprocess.from_dict(json.loads(json.dumps(values))) == preprocess
    assert hash(preprocess) == hash(Preprocess.from_dict(values))


def test_round_trip_of_a_rectangle():
    preprocess = clip((480, 640), resize="pad", aerial_size_px=384)
    values = json.loads(json.dumps(preprocess.to_dict()))
    assert (values["image_size_px"], values["aerial_size_px"]) == ([480, 640], 384)
    assert Preprocess.from_dict(values) == preprocess
    assert hash(preprocess) == hash(Preprocess.from_dict(values))
    assert preprocess.decode_min_side_px == 1280
    assert preprocess.size_text == "480 x 640 px"
    assert clip((32, 32)) == clip(32)
    native = clip(512, resize="native")
    assert (native.decode_min_side_px, native.size_text, clip(32).size_text) == (None, "native size", "32 px")


def test_defaults_and_frozen():
    preprocess = clip()
    assert (preprocess.resize, preprocess.interpolation, preprocess.decode_min_side_px) == (
        "shortest",
        "bicubic",
        448,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        preprocess.image_size_px = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 224}, r"preprocess\.image_size is unknown; the keys are image_size_px, resize"),
        (
            {"image_size_px": 0},
            r"preprocess\.image_size_px must be a positive integer, or height and width, not 0",
        ),
        ({"image_size_px": 224.0}, r"preprocess\.image_size_px .* not 224\.0"),
        ({"image_size_px": True}, r"preprocess\.image_size_px .* not True"),
        ({"image_size_px": [480, 0]}, r"preprocess\.image_size_px .* not \[480, 0\]"),
        ({"image_size_px": [3, 480, 640]}, r"preprocess\.image_size_px .* not \[3, 480, 640\]"),
        ({"aerial_size_px": 0.5}, r"preprocess\.aerial_size_px must be a positive integer, not 0\.5"),
        (
            {"resize": "longest"},
            r"preprocess\.resize must be one of shortest, squash, crop, pad, native, not 'longest'",
        ),
        (
            {"interpolation": "nearest"},
            r"preprocess\.interpolation must be one of bicubic, bilinear, not 'nearest'",
        ),
        ({"interpolation": ["bicubic"]}, r"preprocess\.interpolation must be one of"),
        ({"floors_centre": 1}, r"preprocess\.floors_centre must be true or false, not 1"),
        ({"mean": [0.5, 0.5]}, r"preprocess\.mean must be three finite numbers"),
        ({"mean": "abc"}, r"preprocess\.mean must be three finite numbers, not 'abc'"),
        ({"std": [0.1, float("nan"), 0.1]}, r"preprocess\.std must be three finite numbers"),
        ({"std": [0.1, 0.0, 0.1]}, r"preprocess\.std must be positive"),
    ],
)
def test_wrong_descriptions_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        Preprocess.from_dict(clip().to_dict() | change)


@pytest.mark.parametrize("key", ["image_size_px", "mean", "std"])
def test_a_missing_key_is_named(key):
    values = clip().to_dict()
    del values[key]
    with pytest.raises(ConfigError, match=rf"preprocess\.{key} is missing"):
        Preprocess.from_dict(values)


def test_agrees_with_open_clips_own_transform():
    from geoloc.torchvision_cpu import ensure_importable

    ensure_importable()
    open_clip_transform = pytest.importorskip("open_clip.transform")
    cfg = open_clip_transform.PreprocessCfg(size=64, resize_mode="shortest")
    theirs = open_clip_transform.image_transform_v2(cfg, is_train=False)(photo_like(301, 200))
    preprocess = Preprocess(image_size_px=64, mean=cfg.mean, std=cfg.std, interpolation=cfg.interpolation)
    ours = preprocess(decode_image(photo_like(301, 200)))
    assert np.abs(grey_levels(ours) - grey_levels(theirs)).max() < 1.01
