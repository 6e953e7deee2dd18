# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Decoding of every pixel type, orientation and size, the same wherever a file is opened."""

import io
import re
import struct
import warnings
from dataclasses import replace

import numpy as np
import PIL
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from hf_ssl.data.images import ImageInference, ImageViews
from hf_ssl.data.loader import TrainLoader
from hf_ssl.data.pixels import Decoding, open_image, to_channels
from hf_ssl.data.sources import Source, load_source, source_of
from hf_ssl.data.streams import open_stream
from hf_ssl.data.views import View, eval_image, make_views
from hf_ssl.preview import preview
from hf_ssl.recipe import DataConfig, RecipeError, recipe_from_dict
from tests.data import pictures


RNG = np.random.default_rng(0)
GRAY = np.linspace(0, 1, 40 * 48).reshape(40, 48)
PLAIN = View(size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter_prob=0, grayscale=0, blur=0, flip=0)


def encoded(image: np.ndarray | Image.Image, kind: str = "TIFF", **options) -> bytes:
    return pictures.encoded(image, kind, **options)


def tiff(
    array: np.ndarray, *, sample_format: int = 1, photometric: int | None = None, extra: int | None = None
) -> bytes:
    """An uncompressed little-endian TIFF of (H, W) or (H, W, bands)."""
    array = np.atleast_3d(array)
    height, width, bands = array.shape
    photometric = photometric if photometric is not None else (2 if bands >= 3 else 1)
    tags = [(256, width), (257, height), (258, *[array.itemsize * 8] * bands), (259, 1), (262, photometric), (273, 0)]
    tags += [(277, bands), (278, height), (279, array.nbytes), (284, 1)]
    tags += [] if extra is None else [(338, *[extra] * (bands - (3 if photometric == 2 else 1)))]
    tags += [(339, *[sample_format] * bands)]
    start = 8 + 2 + 12 * len(tags) + 4
    long = b"".join(struct.pack(f"<{len(v)}H", *v) for _, *v in tags if len(v) > 2)
    tags[5] = (273, start + len(long))
    content, used = b"II*\0" + struct.pack("<IH", 8, len(tags)), start
    for tag, *values in tags:
        if len(values) > 2:
            content += struct.pack("<HHII", tag, 3, len(values), used)
            used += 2 * len(values)
        elif len(values) == 2:
            content += struct.pack("<HHIHH", tag, 3, 2, *values)
        else:
            content += struct.pack("<HHII", tag, 4, 1, *values)
    return content + struct.pack("<I", 0) + long + array.tobytes()


def ppm(array: np.ndarray, plain: bool = False) -> bytes:
    head = b"P%d\n# of a scanner\n%d %d\n65535\n" % (3 if plain else 6, array.shape[1], array.shape[0])
    return head + (b" ".join(b"%d" % n for n in array.ravel()) if plain else array.astype(">u2").tobytes())


def pixels(content: bytes, value_range=None, channels: int = 1) -> np.ndarray:
    image = open_image({"bytes": content, "path": None}, 50)
    return np.asarray(to_channels(image, channels, Decoding(value_range)))


def dataset(*contents: bytes) -> Dataset:
    records = [{"bytes": content, "path": None} for content in contents]
    return Dataset.from_dict({"image": records}, features=Features({"image": ImageFeature()}))


# ---------------------------------------------------------------------------------------------- depth

COLORS = np.stack([GRAY, GRAY[::-1], 1 - GRAY], -1)
DEEP = {  # file, values for black and white, expected gray
    "uint16 png": (encoded((GRAY * 4095).astype(np.uint16), "PNG"), (0, 4095)),
    "uint16 tiff of 8 bits": (encoded((GRAY * 255).astype(np.uint16)), (0, 255)),
    "uint16 tiff, compressed": (encoded((GRAY * 4095).astype(np.uint16), compression="tiff_lzw"), (0, 4095)),
    "int16": (tiff((GRAY * 3000 - 1000).astype(np.int16), sample_format=2), (-1000, 2000)),
    "int8": (tiff((GRAY * 200 - 100).astype(np.int8), sample_format=2), (-100, 100)),
    "int32": (encoded((GRAY * 4095).astype(np.int32)), (0, 4095)),
    "uint32": (tiff((GRAY * 4095).astype(np.uint32)), (0, 4095)),
    "uint32 beyond int32": (tiff((GRAY * 1e6 + 3e9).astype(np.uint32)), (3_000_000_000, 3_001_000_000)),
    "float 0 to 1": (encoded(GRAY.astype(np.float32)), (0, 1)),
    "float 0 to 255": (encoded((GRAY * 255).astype(np.float32)), (0, 255)),
    "float below 0": (encoded((GRAY * 2 - 1).astype(np.float32)), (-1, 1)),
    "uint16 rgb tiff": (tiff((COLORS * 4095).astype(np.uint16)), (0, 4095)),
    "rgb ppm": (ppm((COLORS * 4095).astype(np.uint16)), (0, 4095)),
    "rgb ppm as text": (ppm((COLORS * 255).astype(np.uint16), plain=True), (0, 255)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", DEEP)
def test_numbers_of_a_deep_file_are_mapped_from_the_range_that_is_given(kind):
    content, (low, high) = DEEP[kind]
    color = "rgb" in kind
    wanted = np.rint(255 * (COLORS if color else GRAY))
    ours = pixels(content, (low, high), 3 if color else 1).astype(int)
    assert np.abs(ours - wanted).max() <= 1 + 255 / (high - low)
    half = pixels(content, (low, low + (high - low) / 2), 3 if color else 1)
    assert half.max() == 255 and (half == 255).mean() > 0.45, "above the range is white"


@pytest.mark.parametrize("kind", DEEP)
def test_without_a_range_a_deep_file_is_refused_before_the_run_with_what_it_holds(kind):
    content, (low, high) = DEEP[kind]
    with pytest.raises(RecipeError, match="data.value_range") as caught:
        source_of(dataset(content, encoded(Image.new("RGB", (9, 9)), "PNG")), DataConfig())
    named = re.search(r"from (\S+) to (\S+?)[, ]", str(caught.value))
    assert np.allclose([float(named[1]), float(named[2])], (low, high), rtol=1e-3, atol=1e-3)
    assert "\n" not in str(caught.value)
    source = source_of(dataset(content), DataConfig(value_range=(low, high)))
    assert source.decoding.value_range == (low, high)


def test_full_takes_the_whole_range_of_whole_numbers_and_floating_point_has_none():
    for kind in ("uint16 png", "uint16 rgb tiff", "int16", "int32"):
        source_of(dataset(DEEP[kind][0]), DataConfig(value_range="full"))
    values = (GRAY * 65535).astype(np.uint16)
    assert np.array_equal(pixels(encoded(values, "PNG"), "full"), values >> 8)
    signed = (GRAY * 65535 - 32768).astype(np.int16)
    assert np.array_equal(pixels(tiff(signed, sample_format=2), "full"), (signed.astype(int) + 32768) >> 8)
    with pytest.raises(RecipeError, match="floating-point"):
        source_of(dataset(DEEP["float 0 to 1"][0]), DataConfig(value_range="full"))


def test_sixteen_bits_that_use_an_eighth_of_their_range_need_no_setting_even_where_a_single_file_is_dark():
    dark, bright = ((GRAY * top).astype(np.uint16) for top in (8000, 8192))
    with pytest.raises(RecipeError, match="0 to 8000, of 0 to 65535"):
        source_of(dataset(encoded(dark, "PNG")), DataConfig())
    source = source_of(dataset(encoded(dark, "PNG"), encoded(bright, "PNG")), DataConfig())
    for index, values in enumerate((dark, bright)):
        assert np.array_equal(np.asarray(to_channels(source.image(index), 1, source.decoding)), values >> 8)


def test_deep_files_are_found_behind_a_thousand_others():
    others = encoded(Image.new("RGB", (4, 4)), "PNG")
    with pytest.raises(RecipeError, match="floating-point"):
        source_of(dataset(*[others] * 1500, *[DEEP["float 0 to 1"][0]] * 100), DataConfig())


def test_a_deep_file_that_no_sample_had_is_skipped_with_its_reason_and_never_black():
    source = Source(
        dataset(*[encoded(Image.new("RGB", (40, 40)), "PNG")] * 11, DEEP["float 0 to 1"][0]), {"image": None}
    )
    (batch,) = TrainLoader(source, [PLAIN] * 2, batch_size=12, num_steps=1)
    ((name, reason),) = batch["skipped"]
    assert name == "row 11 of the dataset" and "floating-point" in reason and "data.value_range" in reason


def test_numbers_that_are_none_are_black_and_infinite_ones_the_ends():
    values = (GRAY * 100).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    assert pixels(encoded(values), (0, 100))[0, :3].tolist() == [0, 255, 0]
    with pytest.raises(RecipeError, match="from 0.1.* to 100"):
        source_of(dataset(encoded(values)), DataConfig())


def test_a_range_leaves_files_of_eight_bits_as_they_are():
    values = (GRAY * 255).astype(np.uint8)
    assert np.array_equal(pixels(encoded(values, "PNG"), (0, 10)), values)


@pytest.mark.parametrize("value_range", [(1.0, 1.0), (5.0, 2.0), (0.0, float("inf"))])
def test_an_impossible_range_is_refused(value_range):
    with pytest.raises(RecipeError, match="low < high"):
        DataConfig(value_range=value_range)


def test_what_a_recipe_says_about_the_range_is_checked():
    recipe = {"method": "byol", "train": {"steps": 1}}
    for given, taken in (
        ("full", "full"),
        ([0, 4095], (0.0, 4095.0)),
        (["-1e3", "3e3"], (-1000.0, 3000.0)),
        (None, None),
    ):
        assert recipe_from_dict(recipe | {"data": {"value_range": given}}).data.value_range == taken
    for wrong in ("ful", 4095, [1, 2, 3], [None, 2]):
        with pytest.raises(RecipeError, match="data.value_range"):
            recipe_from_dict(recipe | {"data": {"value_range": wrong}})


BANDS = {
    4: tiff((RNG.random((40, 48, 4)) * 255).astype(np.uint8), extra=0),
    5: tiff((RNG.random((40, 48, 5)) * 255).astype(np.uint8), extra=0),
    8: tiff((RNG.random((40, 48, 8)) * 255).astype(np.uint8), extra=0),
    12: tiff((RNG.random((40, 48, 12)) * 65535).astype(np.uint16), photometric=1, extra=0),
    2: tiff((RNG.random((40, 48, 2)) * 255).astype(np.uint8), photometric=1, extra=0),
    "2, unmarked": tiff((RNG.random((40, 48, 2)) * 255).astype(np.uint8), photometric=1),
}


@pytest.mark.parametrize("bands", BANDS)
def test_other_bands_than_gray_and_rgb_are_refused_with_how_to_reduce_them(bands):
    with pytest.raises(
        RecipeError, match=f"row 0 of the dataset .*it has {str(bands).split(',')[0]} bands.*gdal_translate"
    ):
        source_of(dataset(BANDS[bands]), DataConfig())


def test_cmyk_is_color_and_a_fourth_band_that_is_transparency_is_dropped():
    photo = Image.fromarray((COLORS * 255).astype(np.uint8))
    files = [photo.convert("CMYK"), photo.convert("RGBA")]
    if int(PIL.__version__.split(".")[0]) >= 13:  # older versions cannot read their own files
        files.append(photo.convert("YCbCr"))
    for file in files:
        source = source_of(dataset(encoded(file)), DataConfig())
        assert np.array_equal(np.asarray(to_channels(source.image(0), 3)), np.asarray(file.convert("RGB")))


# ---------------------------------------------------------------------------------------------- orientation


def photo(orientation: int | None, kind: str = "JPEG", size: tuple[int, int] = (64, 40)) -> bytes:
    """An image with four different corners."""
    y, x = np.mgrid[: size[1], : size[0]]
    image = Image.fromarray(np.stack([x * 255 // size[0], y * 255 // size[1], (x + y) % 256], -1).astype(np.uint8))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    options = {"quality": 98} if kind in ("JPEG", "AVIF") else {"lossless": True} if kind == "WEBP" else {}
    return encoded(image, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", [None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_photos_are_upright_as_their_exif_orientation_says(kind, orientation):
    content = photo(orientation, kind)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    lying = Image.open(io.BytesIO(content))
    for exif, wanted in ((True, upright), (False, np.asarray(lying.convert("RGB")))):
        decoding = Decoding(exif=exif)
        image = open_image({"bytes": content, "path": None}, 50)
        assert np.array_equal(np.asarray(to_channels(image, 3, decoding)), wanted)
        seen = eval_image(open_image({"bytes": content, "path": None}, 50), 32, 1.0, "bilinear", 3, decoding)
        assert np.array_equal(seen, eval_image(Image.fromarray(wanted), 32, 1.0, "bilinear"))


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_crops_of_a_photo_that_is_decoded_small_are_those_of_the_upright_one(orientation, reference):
    content = photo(orientation, size=(1280, 800))
    views = [replace(PLAIN, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3))] * 2
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    image = Image.open(io.BytesIO(content))
    ours = make_views(image, views, (0, 0, 1), reference=reference)[0]
    theirs = make_views(upright, views, (0, 0, 1), reference=reference)[0]
    assert reference or max(image.size) < 1280, "the fast way decodes it small"
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a.astype(int) - b).mean() < 3
    lying = make_views(Image.open(io.BytesIO(content)), views, (0, 0, 1), decoding=Decoding(exif=False))[0]
    assert np.abs(lying[0].astype(int) - theirs[0]).mean() > 10


def test_damaged_exif_is_no_orientation():
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff"):
        content = encoded(Image.new("RGB", (20, 10), "red"), "JPEG", exif=exif)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert to_channels(open_image({"bytes": content, "path": None}, 50), 3).size == (20, 10)


# ---------------------------------------------------------------------------------------------- the same everywhere

EVERYWHERE = {f"orientation {n} of {kind}": photo(n, kind) for kind in ("JPEG", "PNG") for n in range(1, 9)}
EVERYWHERE |= {kind: content for kind, (content, _) in DEEP.items()}
EVERYWHERE |= {
    "palette": encoded(Image.open(io.BytesIO(photo(None))).convert("P"), "PNG", transparency=3),
    "black and white": encoded(Image.open(io.BytesIO(photo(None))).convert("1"), "PNG"),
    "transparent": encoded(Image.open(io.BytesIO(photo(None))).convert("RGBA"), "PNG"),
    "cmyk": encoded(Image.open(io.BytesIO(photo(None))).convert("CMYK"), "JPEG"),
    "gray and alpha": encoded(Image.open(io.BytesIO(photo(None))).convert("LA"), "PNG"),
}


@pytest.mark.parametrize("kind", EVERYWHERE)
@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_preview_training_and_evaluation_show_the_same_pixels(kind, exif, tmp_path, monkeypatch):
    """Uses whole square images at their own size, so that cropping and resizing change nothing."""
    content = EVERYWHERE[kind]
    side = 40
    (tmp_path / "images").mkdir()
    suffix = {b"\x89P": "png", b"II": "tiff", b"P6": "ppm", b"P3": "ppm"}.get(content[:2], "jpg")
    (tmp_path / "images" / f"a.{suffix}").write_bytes(content)
    value_range = list(DEEP[kind][1]) if kind in DEEP else None
    data = {"path": str(tmp_path / "images"), "value_range": value_range, "exif": exif, "num_workers": 0}
    plain = {"size": side, "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "flip": 0, "jitter_prob": 0, "grayscale": 0}
    recipe = recipe_from_dict(
        {
            "method": "byol",
            "data": data,
            "views": {"photometric": "reference", "all": plain | {"blur": 0, "solarize": 0, "crop": "clip"}},
            "model": {"backbone": "test_resnet"},
            "train": {"steps": 1},
        }
    )
    from hf_ssl.data.views import resolve_views

    views = resolve_views(recipe.views, "byol")
    drawn = []
    monkeypatch.setattr("hf_ssl.preview.images.picture_of", lambda p: drawn.append(p) or Image.new("RGB", (9, 9)))
    preview(recipe, 1, tmp_path / "grid.png")
    source, stream = load_source(recipe.data), open_stream(recipe.data)
    seen = {"preview": (drawn[0].permute(1, 2, 0) * 255).round().byte().numpy()}
    for name, place in (("training", source), ("stream", stream)):
        (batch,) = TrainLoader(place, ImageViews(views, reference=True), batch_size=1, num_steps=1)
        seen[name] = batch["views"][0, 0].numpy()
    whole = np.asarray(to_channels(source.image(0), 3, source.decoding))
    left, top = (whole.shape[1] - side) // 2, (whole.shape[0] - side) // 2
    transform = ImageInference(side, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert np.array_equal(transform.read(source, 0)[0][0], whole[top : top + side, left : left + side])
    crop_of_training = np.asarray(Image.fromarray(whole))
    from hf_ssl.data.views import crop_image, sample_views

    box = sample_views(views, whole.shape[1], whole.shape[0], (0, 0, 0))[0]
    wanted = np.asarray(crop_image(Image.fromarray(crop_of_training), views[0], box))
    assert np.array_equal(seen["training"], wanted) and np.array_equal(seen["preview"], wanted)
    box = sample_views(views, whole.shape[1], whole.shape[0], (0, 0, 0, 0))[0]
    assert np.array_equal(seen["stream"], np.asarray(crop_image(Image.fromarray(whole), views[0], box)))


# ---------------------------------------------------------------------------------------------- thin and huge


@pytest.mark.parametrize("size", [(2400, 6), (5, 1700), (12000, 1), (1, 4001)])
def test_a_thin_image_is_seen_as_if_it_was_resized_whole_without_making_the_whole(size, monkeypatch):
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), np.uint8))
    short = 36
    new = (short * size[0] // min(size), short * size[1] // min(size))
    left, top = round((new[0] - 32) / 2), round((new[1] - 32) / 2)
    whole = np.asarray(image.resize(new, Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32)))
    made, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: made.append(size) or resize(self, size, *a, **k)
    )
    assert np.abs(eval_image(image, 32, 32 / 36).astype(int) - whole).max() <= 1
    assert made == [(32, 32)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP"])
def test_max_megapixels_is_the_limit_and_not_pillows(kind, monkeypatch):
    content = encoded(Image.new("RGB", (80, 60), "red"), kind)
    with pytest.raises(ValueError, match="more than data.max_megapixels=0.002"):
        open_image({"bytes": content, "path": None}, 0.002)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    views = [replace(PLAIN, scale=(0.5, 1.0))] * 2
    for reference in (False, True):
        image = open_image({"bytes": content, "path": None}, 500)
        assert make_views(image, views, (0, 0, 0), reference=reference)[0][0].shape == (32, 32, 3)
    assert eval_image(open_image({"bytes": content, "path": None}, 500), 32).shape == (32, 32, 3)
    with pytest.raises(ValueError, match="exceeds limit"):
        open_image({"bytes": content, "path": None}, 50)
    assert Image.MAX_IMAGE_PIXELS == 2000, "other code keeps its protection"


# ---------------------------------------------------------------------------------------------- command line


def test_evaluate_takes_the_range_and_names_what_it_could_not_read(tmp_path, capsys, monkeypatch):
    from hf_ssl.cli import main

    seen = []

    def evaluate(protocol, model, data, monitor, **more):
        seen.append(data.value_range)
        return {"failed": ["a.png", "b.png"], "knn": 0.5, "measured": {}}

    monkeypatch.setattr("hf_ssl.evaluation.evaluate.evaluate", evaluate)
    for given in (["full"], ["0", "4095"], ["-1000", "2e3"]):
        main(["evaluate", "knn", "m", "--data", "d", "--value-range", *given])
    main(["evaluate", "knn", "m", "--data", "d"])
    assert seen == ["full", (0.0, 4095.0), (-1000.0, 2000.0), None]
    assert "2 file(s) could not be read and were skipped; the first is a.png" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "knn", "m", "--data", "d", "--value-range", "1", "2", "3"])
    assert "data.value_range" in capsys.readouterr().err


def test_preview_names_the_images_that_it_passes_over(tmp_path, caplog):
    contents = [b"nothing", encoded(Image.new("RGB", (20, 20)), "PNG")]
    recipe = recipe_from_dict(
        {"method": "byol", "views": {"all": {"size": 16}}, "model": {"backbone": "test_resnet"}, "train": {"steps": 1}}
    )
    preview(recipe, 2, tmp_path / "grid.png", dataset=dataset(*contents))
    assert "Skipped row 0 of the dataset" in caplog.text
