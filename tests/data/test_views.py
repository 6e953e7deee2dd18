# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Stage 1: presets, crops compared with torchvision, one decode for all views, the published reference pipeline."""

import io
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_images
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize

from hf_ssl.data.images import Images
from hf_ssl.data.photometric import NEUTRAL, reference_photometric
from hf_ssl.data.views import View, eval_image, make_views, resolve_views, sample_views
from hf_ssl.recipe import RecipeError, ViewOverride, ViewsConfig


PHOTO = Image.fromarray(load_sample_images().images[0])  # 640 x 427


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> Image.Image:
    """The image as an opened but undecoded file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


# ---------------------------------------------------------------------------------------------- presets and overrides

BT = {"scale": (0.08, 1.0), "jitter": (0.4, 0.4, 0.2, 0.1), "interpolation": "bicubic"}
BT1, BT2 = BT | {"blur": 1.0, "solarize": 0.0}, BT | {"blur": 0.1, "solarize": 0.2}
CLIPPED = {"crop": "clip", "brightness": "add"}
SYM = {"blur": 0.5, "solarize": 0.0, "interpolation": "bilinear", "crop": "retry", "brightness": "multiply"}
SIMSIAM = SYM | {"scale": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1)}
SWAV = SYM | {"scale": (0.14, 1.0), "jitter": (0.8, 0.8, 0.8, 0.2)}
LOCAL = SWAV | {"scale": (0.05, 0.14), "size": 96, "local": True}
COMMON = {"size": 224, "ratio": (3 / 4, 4 / 3), "flip": 0.5, "jitter_prob": 0.8, "grayscale": 0.2, "local": False}
COMMON |= {"blur_sigma": (0.1, 2.0), "crop": "retry", "brightness": "multiply"}


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("barlow_twins", [BT1, BT2]),
        ("byol", [BT1 | CLIPPED, BT2 | CLIPPED]),
        ("simsiam", [SIMSIAM, SIMSIAM]),
        ("swav", [SWAV, SWAV] + [LOCAL] * 6),
        ("seer", [SWAV, SWAV] + [LOCAL] * 4),
    ],
)
def test_presets_have_the_published_numbers(preset, published):
    views = resolve_views(ViewsConfig(preset=preset), "byol")
    assert len(views) == len(published)
    for view, wanted in zip(views, published, strict=True):
        assert asdict(view) | COMMON | wanted == asdict(view)


def test_without_a_preset_the_views_are_the_methods():
    assert resolve_views(ViewsConfig(), "simsiam") == resolve_views(ViewsConfig(preset="simsiam"), "swav")


def test_an_override_of_one_view_goes_over_that_of_all_and_that_over_the_preset():
    config = ViewsConfig(all=ViewOverride(size=32, blur=0.0), second=ViewOverride(blur=0.3, count=2))
    views = resolve_views(config, "barlow_twins")
    assert [(v.size, v.blur, v.solarize) for v in views] == [(32, 0.0, 0.0), (32, 0.3, 0.2), (32, 0.3, 0.2)]


def test_lightlys_cifar_views_are_overrides_of_the_presets():
    everywhere = ViewOverride(size=32, interpolation="bilinear", blur=0.0, crop="retry", brightness="multiply")
    for method, jitter, solarize, scale in (
        ("barlow_twins", (0.4, 0.4, 0.2, 0.1), (0.0, 0.2), (0.08, 1.0)),
        ("byol", (0.4, 0.4, 0.2, 0.1), (0.0, 0.2), (0.08, 1.0)),
        ("simsiam", (0.4, 0.4, 0.4, 0.1), (0.0, 0.0), (0.2, 1.0)),
        ("swav", (0.4, 0.4, 0.4, 0.1), (0.0, 0.0), (0.14, 1.0)),
    ):
        everywhere = replace(everywhere, jitter=(0.4, 0.4, 0.4, 0.1) if method == "swav" else None)
        views = resolve_views(ViewsConfig(colors="torchvision", all=everywhere, local=ViewOverride(count=0)), method)
        wanted = View(
            size=32, interpolation="bilinear", blur=0.0, jitter=jitter, scale=scale, flip=0.5, jitter_prob=0.8
        )
        assert [asdict(v) for v in views] == [asdict(wanted) | {"solarize": s} for s in solarize]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ({"flip": 1.5}, "first.flip"),
        ({"solarize_threshold": 128.0}, "solarize_threshold"),
        ({"scale": (0.5, 0.2)}, "scale"),
        ({"scale": (0.2, 1.5)}, "scale"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "jitter"),
        ({"blur_sigma": (0.0, 2.0)}, "blur_sigma"),
        ({"size": 0}, "size"),
        ({"size": 96}, "first and views.second"),
        ({"count": -1}, "count"),
        ({"count": 0}, "At least two views"),
    ],
)
def test_impossible_views_are_named(override, named):
    with pytest.raises(RecipeError, match=named):
        Images().check_views(resolve_views(ViewsConfig(first=ViewOverride(**override)), "barlow_twins"))


# ---------------------------------------------------------------------------------------------- random parameters


def test_views_depend_on_seed_epoch_example_and_view_and_on_nothing_else():
    views = [View(size=16)] * 2
    first = make_views(PHOTO, views, (0, 1, 2))
    again = make_views(PHOTO, views, (0, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first[0], again[0], strict=True))
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0][0], first[0][1])
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not np.array_equal(first[0][0], make_views(PHOTO, views, other)[0][0])
    alone = make_views(PHOTO, views[:1], (0, 1, 2))
    assert np.array_equal(first[0][0], alone[0][0]), "a further view leaves the others as they are"


@pytest.mark.parametrize("shape", [(32, 32), (200, 150), (60, 400), (1, 50)])
@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (0.5, 0.6))])
def test_crops_are_distributed_as_torchvisions(shape, scale, ratio):
    torch.manual_seed(0)
    width, height = shape
    view = View(size=16, scale=scale, ratio=ratio)
    ours = np.array([sample_views([view], width, height, (0, 0, i))[0].box for i in range(2000)])
    image = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(2000)]
    theirs = np.array([(left, top, w, h) for top, left, h, w in theirs])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3, column
    for a, b in ((2, 3), (0, 2)):
        if theirs[:, a].std() and theirs[:, b].std():
            correlations = [np.corrcoef(x[:, a], x[:, b])[0, 1] for x in (ours, theirs)]
            assert abs(correlations[0] - correlations[1]) < 0.1


def test_byols_crop_is_one_attempt_cut_to_the_image():
    view = View(crop="clip")
    boxes = np.array([sample_views([view], 100, 40, (0, 0, i))[0].box for i in range(3000)])
    left, top, width, height = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 100).all() and (top + height <= 40).all()
    rng = np.random.default_rng(0)
    area, ratio = rng.uniform(0.08, 1, 3000) * 4000, np.exp(rng.uniform(*np.log([3 / 4, 4 / 3]), 3000))
    assert ks_2samp(width, np.minimum(100, np.sqrt(area * ratio).round())).pvalue > 1e-3
    assert ks_2samp(height, np.minimum(40, np.sqrt(area / ratio).round())).pvalue > 1e-3
    assert (height == 40).mean() > 0.3, "crops that are too tall are cut, not drawn again"


def test_each_thing_happens_as_often_and_as_strongly_as_the_view_says():
    view = View(jitter=(0.8, 0.6, 0.4, 0.1), flip=0.3, grayscale=0.2, blur=0.5, solarize=0.25, solarize_threshold=0.4)
    drawn = [sample_views([view], 50, 50, (0, 0, i))[0] for i in range(4000)]
    rows = np.array([d.params for d in drawn])
    multiply, add, contrast, saturation, hue, order, gray, sigma, threshold, deepmind = rows.T
    jittered = multiply != 1
    shares = (np.mean([d.flip for d in drawn]), jittered.mean(), gray.mean(), (sigma > 0).mean())
    assert np.allclose(shares, (0.3, 0.8, 0.2, 0.5), atol=0.03)
    assert np.isclose((threshold == np.float32(0.4)).mean(), 0.25, atol=0.03) and set(threshold) == {
        np.float32(0.4),
        np.float32(2),
    }
    for values, low, high in (
        (multiply[jittered], 0.2, 1.8),
        (contrast[jittered], 0.4, 1.6),
        (saturation[jittered], 0.6, 1.4),
        (hue[jittered], -0.1, 0.1),
        (sigma[sigma > 0], 0.1, 2.0),
    ):
        uniform = np.random.default_rng(0).uniform(low, high, 4000)
        assert ks_2samp(values, uniform).pvalue > 1e-3
    assert (rows[~jittered, :6] == NEUTRAL[:6]).all() and (add == 0).all() and (deepmind == 0).all()
    counts = np.bincount(order[jittered].astype(int), minlength=24)
    assert len(counts) == 24 and counts.min() > 80, "all orders are drawn"


def test_byols_brightness_is_added():
    view = View(brightness="add", jitter_prob=1.0)
    rows = np.array([sample_views([view], 50, 50, (0, 0, i))[0].params for i in range(500)])
    assert (rows[:, 0] == 1).all() and rows[:, 1].min() < -0.35 and rows[:, 1].max() > 0.35


# ---------------------------------------------------------------------------------------------- from file to pixels


def test_a_plain_view_is_the_crop_flipped():
    view = View(size=40, jitter_prob=0, grayscale=0, blur=0, flip=1.0)
    (pixels,), params = make_views(PHOTO, [view], (0, 0, 0))
    left, top, width, height = sample_views([view], *PHOTO.size, (0, 0, 0))[0].box
    crop = TF.resized_crop(PHOTO, top, left, height, width, [40, 40], interpolation=InterpolationMode.BICUBIC)
    mirrored = np.asarray(TF.horizontal_flip(crop), dtype=int)
    assert pixels.shape == (40, 40, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels[:, 1:-1] - mirrored[:, 1:-1]).mean() < 1.5, "but for pixels beyond the border of the crop"
    assert (params == NEUTRAL).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_reference_views_are_torchvisions_crop_and_pillows_colors_of_the_same_draw(interpolation):
    view = View(size=40, interpolation=interpolation, flip=1.0, solarize=1.0)
    pixels, params = make_views(encoded(PHOTO), [view], (0, 0, 3), reference=True)
    drawn = sample_views([view], *PHOTO.size, (0, 0, 3))[0]
    left, top, width, height = drawn.box
    mode = InterpolationMode(interpolation)
    crop = TF.resized_crop(encoded(PHOTO), top, left, height, width, [40, 40], interpolation=mode)
    expected = reference_photometric(TF.horizontal_flip(crop), drawn.params)
    assert np.array_equal(pixels[0], np.asarray(expected))
    assert (params == NEUTRAL).all(), "nothing is left to the device"


def test_a_jpeg_is_decoded_small_only_where_no_crop_gets_larger_pixels_and_looks_the_same():
    large = PHOTO.resize((1280, 854))
    views = [View(size=64, scale=(0.3, 1.0), jitter_prob=0, grayscale=0, blur=0)] * 2
    for index in range(8):
        file = encoded(large, quality=95)
        small = make_views(file, views, (0, 0, index))[0]
        full = make_views(encoded(large, quality=95).convert("RGB"), views, (0, 0, index))[0]
        shrink = min(min(d.box[2:]) for d in sample_views(views, *large.size, (0, 0, index))) / 64
        assert file.size[0] < 1280 and 1280 / file.size[0] <= shrink
        for a, b in zip(small, full, strict=True):
            assert np.abs(a.astype(int) - b).mean() < 4
    file = encoded(large)
    make_views(file, [*views, View(size=96, scale=(0.01, 0.02))], (0, 0, 0))
    assert file.size == (1280, 854), "one small crop needs all pixels"


GRADIENT = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
FILES = {
    "palette": encoded(PHOTO.convert("P"), "PNG"),
    "palette with transparency": encoded(PHOTO.convert("P"), "PNG", transparency=bytes(range(100))),
    "alpha": encoded(PHOTO.convert("RGBA"), "PNG"),
    "cmyk": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "gray": encoded(PHOTO.convert("L"), "JPEG"),
    "gray with alpha": encoded(PHOTO.convert("LA"), "PNG"),
    "black and white": encoded(PHOTO.convert("1"), "PNG"),
    "webp": encoded(PHOTO, "WEBP"),
    "gif": encoded(PHOTO, "GIF"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", FILES)
def test_any_kind_of_file_becomes_rgb_or_gray(kind):
    view = View(size=24, scale=(1.0, 1.0), jitter_prob=0, grayscale=0, blur=0, flip=0)
    wanted = np.asarray(PHOTO.resize((24, 24)), dtype=int)
    for channels, target in ((3, wanted), (1, np.asarray(PHOTO.convert("L").resize((24, 24)), dtype=int)[..., None])):
        for reference in (False, True):
            file = FILES[kind].copy()
            pixels = make_views(file, [view], (0, 0, 0), reference=reference, channels=channels)[0][0]
            assert pixels.shape == (24, 24, channels)
            gray = channels == 1 or kind in ("gray", "gray with alpha", "black and white")
            difference = pixels.mean(2) - target.mean(2) if gray else pixels - target
            assert np.corrcoef(pixels.mean(2).ravel(), target.mean(2).ravel())[0, 1] > 0.85
            assert abs(difference.mean()) < 20


def test_of_sixteen_bit_gray_the_upper_bits_are_seen():
    file = encoded(Image.fromarray(GRADIENT.astype(np.uint16) * 257), "PNG")
    view = View(size=64, scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter_prob=0, grayscale=0, blur=0, flip=0)
    pixels = make_views(file, [view], (0, 0, 0))[0][0]
    assert np.array_equal(pixels, np.repeat(GRADIENT[..., None], 3, axis=2))


def test_a_broken_file_is_an_error_of_its_decoding():
    file = io.BytesIO()
    PHOTO.save(file, "JPEG")
    with pytest.raises(OSError):
        make_views(Image.open(io.BytesIO(file.getvalue()[:5000])), [View(size=24)], (0, 0, 0))


# ---------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (50, 50), (33, 300), (24, 24)])
@pytest.mark.parametrize(("crop_pct", "interpolation"), [(0.875, "bicubic"), (1.0, "bilinear"), (0.9, "bicubic")])
def test_the_evaluation_view_is_torchvisions_resize_and_center_crop(size, crop_pct, interpolation):
    image = PHOTO.resize(size)
    ours = eval_image(image, 48, crop_pct, interpolation)
    resize = Resize(math.floor(48 / crop_pct), InterpolationMode(interpolation))
    assert np.array_equal(ours, np.asarray(CenterCrop(48)(resize(image))))


def test_the_evaluation_view_of_a_large_jpeg_is_near_that_of_a_full_decode():
    large = PHOTO.resize((1280, 854))
    full = eval_image(encoded(large).convert("RGB"), 64)
    assert np.abs(eval_image(encoded(large), 64).astype(int) - full).mean() < 3
    assert eval_image(encoded(large), 64, channels=1).shape == (64, 64, 1)
