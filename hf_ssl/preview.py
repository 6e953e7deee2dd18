# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What will the network see? A PNG: a row for each image, each view labelled with what was applied to it.

The views come from the very code that trains, so what is drawn is what is learnt from.
"""

import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .data.loader import TrainLoader
from .data.photometric import ORDERS, Photometric
from .data.sources import ImageSource, load_source
from .data.views import Drawn, View, draw_views, resolve_views, to_channels
from .recipe import Recipe, RecipeError, model_config


CELL, GAP, LINE = 176, 14, 14
LINES = 7  # of text below a view


def preview(recipe: Recipe, num_images: int = 4, output: str | Path = "preview.png", dataset=None) -> Path:
    """Draw the first images of a recipe's first batch with all their views.

    Args:
        dataset: a `datasets.Dataset` instead of `recipe.data.path`.

    Returns:
        The absolute path of the PNG.

    Raises:
        RecipeError: the recipe's data or views cannot work, or `output` cannot be written.
    """
    if num_images <= 0:
        raise RecipeError("--images must be greater than 0.")
    views = resolve_views(recipe.views, recipe.method)
    config = model_config(recipe, image_size=views[0].size)
    source = ImageSource(dataset, recipe.data.image_column) if dataset is not None else load_source(recipe.data)
    loader = TrainLoader(
        source,
        views,
        batch_size=min(num_images, len(source)),
        seed=recipe.train.seed,
        num_steps=1,
        reference=recipe.views.photometric == "reference",
        channels=config.num_channels,
    )
    batch = next(iter(loader))
    zero, one = [0.0] * config.num_channels, [1.0] * config.num_channels
    inputs = Photometric(zero, one)(batch)  # colours and blur, without the normalisation
    rows = []
    for place, index in enumerate(batch["index"].tolist()):
        original = to_channels(source.image(index), config.num_channels)
        drawn = draw_views(views, *original.size, (recipe.train.seed, 0, index))
        pictures = [(original, [source.name(index), f"{original.size[0]} x {original.size[1]} pixels"])]
        for v, (view, draw) in enumerate(zip(views, drawn, strict=True)):
            group, number = ("local_pixel_values", v - _num_global(views)) if view.local else ("pixel_values", v)
            pictures.append((_picture(inputs[group][place, number]), describe(view, draw, v)))
        rows.append(pictures)
    path = Path(output).resolve()
    try:
        _grid(rows).save(path, "PNG")
    except OSError as error:
        raise RecipeError(f"The preview could not be written to {path} ({error}).") from error
    return path


def describe(view: View, drawn: Drawn, number: int) -> list[str]:
    """Lines that say what was applied, in the order of application."""
    left, top, width, height = drawn.box
    multiply, add, contrast, saturation, hue, order, gray, sigma, threshold = drawn.params.tolist()
    lines = [f"{'local ' if view.local else ''}view {number + 1}: {view.size} x {view.size}"]
    lines.append(f"crop {width}x{height} at {left},{top}" + (", flipped" if drawn.flip else ""))
    factors = {
        0: f"brightness {add:+.2f}" if add else f"brightness x{multiply:.2f}" if multiply != 1 else "",
        1: f"contrast x{contrast:.2f}" if contrast != 1 else "",
        2: f"saturation x{saturation:.2f}" if saturation != 1 else "",
        3: f"hue {360 * hue:+.0f} deg" if hue else "",
    }
    lines += [factors[op] for op in ORDERS[int(order)] if factors[op]]
    rest = [("gray", gray), (f"blur {sigma:.1f} px", sigma), (f"solarised above {threshold:g}", threshold <= 1)]
    said = [text for text, applied in rest if applied]
    if said:
        lines.append(", ".join(said))
    return lines


def _num_global(views: list[View]) -> int:
    return sum(not view.local for view in views)


def _picture(pixels: torch.Tensor) -> Image.Image:
    """(C, H, W) in 0..1 -> image."""
    array = (pixels.clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(np.squeeze(array, 2) if array.shape[2] == 1 else array)


def _grid(rows: list[list[tuple[Image.Image, list[str]]]]) -> Image.Image:
    columns, height = len(rows[0]), CELL + LINES * LINE + GAP
    canvas = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + len(rows) * height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    for r, pictures in enumerate(rows):
        for c, (picture, lines) in enumerate(pictures):
            x, y = GAP + c * (CELL + GAP), GAP + r * height
            shown = _fit(picture.convert("RGB"))
            canvas.paste(shown, (x + (CELL - shown.size[0]) // 2, y + (CELL - shown.size[1]) // 2))
            pen.rectangle((x - 1, y - 1, x + CELL, y + CELL), outline="#d0d0d0")
            wrapped = [part for line in lines for part in textwrap.wrap(line, 30)][:LINES]
            for n, line in enumerate(wrapped):
                pen.text((x, y + CELL + 3 + n * LINE), line, "#202020" if n == 0 else "#606060", font=font)
    return canvas


def _fit(picture: Image.Image) -> Image.Image:
    """Fill the cell; small pictures keep hard pixels so that they look as small as they are."""
    factor = CELL / max(picture.size)
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    return picture.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.BICUBIC)
