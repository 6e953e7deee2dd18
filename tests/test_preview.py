# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The preview shows what training sees, and says what was done to it."""

import io

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageFont

from hf_ssl.cli import main
from hf_ssl.data.clips import ClipViews
from hf_ssl.data.images import ImageTransform, ImageViews
from hf_ssl.data.loader import TrainLoader
from hf_ssl.data.photometric import NEUTRAL, ORDERS, PARAMS, Photometric
from hf_ssl.data.sources import load_source
from hf_ssl.data.views import ViewParams, resolve_views
from hf_ssl.errors import UserError
from hf_ssl.preview import preview
from hf_ssl.preview.images import describe
from hf_ssl.preview.pictures import CELL, font_of, writable
from hf_ssl.recipe import Recipe, RecipeError, recipe_from_dict
from hf_ssl.resolve import model_config


def recipe_of(digits, method: str = "barlow_twins", photometric: str = "fast", **views) -> Recipe:
    return recipe_from_dict(
        {
            "method": method,
            "data": {"path": str(digits)},
            "views": {"photometric": photometric, "all": {"size": 32}, **views},
            "model": {"backbone": "test_resnet"},
            "train": {"epochs": 1, "batch_size": 4},
        }
    )


def contains(canvas: np.ndarray, picture: np.ndarray) -> bool:
    """Whether a picture, enlarged to a cell with hard pixels, stands somewhere on the canvas."""
    shown = np.asarray(Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.NEAREST))
    height, width = canvas.shape[0] - CELL + 1, canvas.shape[1] - CELL + 1
    looked_at = [(i, i) for i in range(0, CELL, CELL // 8)]  # most places differ there already
    fits = [(canvas[y : y + height, x : x + width] == shown[y, x]).all(2) for y, x in looked_at]
    corners = np.argwhere(np.logical_and.reduce(fits))
    return any(np.array_equal(canvas[y : y + CELL, x : x + CELL], shown) for y, x in corners)


@pytest.mark.parametrize("photometric", ["fast", "reference"])
def test_the_pictures_are_the_views_of_the_first_training_batch(digits, tmp_path, photometric):
    recipe = recipe_of(digits, "swav", photometric, local={"count": 1, "size": 16})
    path = preview(recipe, num_images=2, output=tmp_path / "grid.png")
    assert path == tmp_path / "grid.png"
    canvas = np.asarray(Image.open(path).convert("RGB"))
    views = resolve_views(recipe.views, recipe.method)
    stage1 = ImageViews(views, reference=photometric == "reference")
    loader = TrainLoader(load_source(recipe.data), stage1, batch_size=4, num_steps=1)
    inputs = ImageTransform([0.0] * 3, [1.0] * 3)(next(iter(loader)))
    for name, count in (("pixel_values", 2), ("local_pixel_values", 1)):
        pixels = (inputs[name] * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
        for image in range(3):
            for v in range(count):
                assert contains(canvas, pixels[image, v]) == (image < 2), "two of the batch's four images are drawn"


def test_a_row_an_image_a_column_a_view_and_the_original(digits, tmp_path):
    sizes = {}
    for images, count in ((1, 0), (3, 0), (1, 2)):
        recipe = recipe_of(digits, "swav", local={"count": count, "size": 16})
        sizes[images, count] = Image.open(preview(recipe, images, tmp_path / "grid.png")).size
    assert sizes[3, 0][1] > 2 * sizes[1, 0][1] and sizes[3, 0][0] == sizes[1, 0][0]
    assert sizes[1, 2][0] - sizes[1, 0][0] >= 2 * 128 and sizes[1, 0][0] >= 3 * 128


def test_a_label_says_what_was_applied_in_the_order_of_application():
    row = dict(zip(PARAMS, NEUTRAL.tolist(), strict=True))
    row |= {"multiply": 0.8, "contrast": 1.25, "saturation": 0.5, "hue": -0.1, "order": ORDERS.index((3, 0, 2, 1))}
    row |= {"gray": 1, "sigma": 1.5, "threshold": 0.5}
    lines = describe(ViewParams((3, 4, 50, 40), True, np.array(list(row.values()), np.float32)), area=0.25)
    assert lines == [
        "crop 50 x 40 at 3, 4",
        "  = 25% of the image",
        "flipped",
        "hue -36°",
        "brightness x 0.80",
        "saturation x 0.50",
        "contrast x 1.25",
        "gray",
        "blur, sigma 1.50 px",
        "solarized from 0.5",
    ]
    assert len(describe(ViewParams((3, 4, 50, 40), False, NEUTRAL), area=0.25)) == 2, "nothing else was applied"


def test_the_seed_decides_what_is_drawn(digits, tmp_path):
    recipe = recipe_of(digits)

    def drawn(seed: int | None) -> bytes:
        return preview(recipe, 1, tmp_path / "grid.png", seed=seed).read_bytes()

    assert drawn(None) == drawn(None) == drawn(recipe.train.seed) != drawn(7)


def test_images_that_cannot_be_read_are_passed_over(digits, tmp_path):
    recipe = recipe_of(digits)
    file = io.BytesIO()
    Image.new("L", (300, 20), 90).save(file, "PNG")

    def dataset(*contents: bytes) -> Dataset:
        records = [{"bytes": content, "path": "a_long_name_without_any_space_in_it.png"} for content in contents]
        return Dataset.from_dict({"image": records}, features=Features({"image": ImageFeature()}))

    path = preview(recipe, 4, tmp_path / "grid.png", dataset=dataset(b"broken", file.getvalue(), b""))
    assert Image.open(path).size[1] < 2 * 300, "one row"
    with pytest.raises(RecipeError, match="No image could be read.*a_long_name"):
        preview(recipe, 4, tmp_path / "grid.png", dataset=dataset(b"broken"))


def test_gray_recipes_are_drawn_too(digits, tmp_path):
    recipe = recipe_of(digits)
    recipe.model.update(num_channels=1, image_mean=[0.5], image_std=[0.25])
    canvas = np.asarray(Image.open(preview(recipe, 1, tmp_path / "grid.png")))
    assert canvas.std() > 10


def test_what_cannot_be_drawn_or_written_is_one_sentence(digits, tmp_path):
    with pytest.raises(RecipeError, match="greater than 0"):
        preview(recipe_of(digits), 0)
    with pytest.raises(UserError, match="could not be written"):
        preview(recipe_of(digits), 1, tmp_path / "no" / "such" / "folder.png")


def test_a_row_of_a_clip_is_its_frames_as_trained_and_its_sound(videos, tmp_path):
    model = {"video_backbone": "test_resnet", "audio_backbone": "test_resnet", "num_frames": 3, "frame_rate": 4}
    model |= {"num_bands": 33, "n_fft": 64, "sampling_rate": 8000, "audio_seconds": 0.5}
    content = {"method": "avid", "data": {"path": str(videos)}, "model": model, "train": {"steps": 1}}
    recipe = recipe_from_dict(content | {"views": {"all": {"size": 32}}})
    canvas = np.asarray(Image.open(preview(recipe, num_images=2, output=tmp_path / "grid.png")).convert("RGB"))
    config = model_config(recipe, 32)
    views = ClipViews(resolve_views(recipe.views, "avid")[0], config, recipe.clips)
    loader = TrainLoader(load_source(recipe.data, kind="video"), views, batch_size=2, num_steps=1)
    batch = next(iter(loader))
    rows = batch["params"].repeat_interleave(3, 0)
    frames = Photometric([0.0] * 3, [1.0] * 3)(batch["frames"].flatten(0, 1), rows)
    pixels = (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert len(pixels) == 6 and all(contains(canvas, picture) for picture in pixels)
    assert canvas.shape[1] > 4 * CELL, "three frames and a spectrogram"


def test_a_picture_that_is_there_is_kept_and_letters_of_other_languages_are_written(digits, tmp_path, capsys):
    font = font_of(13)
    box = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != box for letter in writable("Größe ½ naïve", font) if letter != " ")
    assert writable("Größe", ImageFont.load_default(size=13)).isascii(), "plain letters where the font has no others"
    file = tmp_path / "grid.png"
    words = ["preview", "my_images", f"data.path={digits}", "--images", "1", "--output", str(file)]
    words.append("views.all.size=32")  # keys may stand behind options
    main(words)
    before = file.read_bytes()
    with pytest.raises(SystemExit):
        main([*words, "train.seed=5"])
    assert "--overwrite" in capsys.readouterr().err and file.read_bytes() == before
    main([*words, "train.seed=5", "--overwrite"])
    assert file.read_bytes() != before
