# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Draw the views that the network will see: a PNG with one row per image, each view labeled with its augmentations.

The views come from the training code itself, so the preview shows exactly what the network is trained on.
"""

import logging
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..data.loader import epoch_order
from ..data.sources import Source, load_source, source_of
from ..data.streams import open_stream
from ..errors import UserError
from ..recipe import Recipe, RecipeError
from ..resolve import resolve
from ..training.choices import stand_in
from .pictures import CELL, INK, Picture, font_of, writable


logger = logging.getLogger(__name__)

_GAP, _LINE = 20, 17  # pixels: space around a picture, height of a line of text
_PALE, _PAPER, _FRAME = "#5d6673", "#ffffff", "#d5dae0"


def preview(
    recipe: Recipe,
    num_images: int = 4,
    output: str | Path = "preview.png",
    seed: int | None = None,
    dataset=None,
) -> Path:
    """Draw the first images of a run's first epoch with all their views; the crops are framed in the original.

    For videos with sound: the frames of a clip, and its normalized spectrogram from low to high.

    Args:
        seed: selects other images and views than `recipe.train.seed`.
        dataset: a `datasets.Dataset` instead of `recipe.data.path`.

    Returns:
        The absolute path of the PNG.

    Raises:
        UserError: the recipe's data or views cannot work, no image can be read, or `output` cannot be written.
    """
    if num_images <= 0:
        raise RecipeError("The number of images must be greater than 0.")
    resolved = resolve(recipe := stand_in(recipe))
    views, modality, medium = resolved.views, resolved.modality, resolved.modality.medium
    drawing, stage1 = modality.half(__package__), modality.stage1(views, resolved.config, recipe)
    if recipe.data.streaming:
        source = open_stream(recipe.data, kind=medium).head(num_images + 100)
    else:
        source = load_source(recipe.data, kind=medium) if dataset is None else source_of(dataset, recipe.data, medium)
    seed = recipe.train.seed if seed is None else seed
    rows, problem = [], ""
    for index in epoch_order(len(source), seed, 0)[: num_images + 100].tolist():
        try:
            rows.append(drawing.row(source, index, stage1, (seed, 0, index)))
        except Exception as error:  # as the loader does, use another image
            problem = f"{source.name(index)} ({error})"
            logger.warning(f"Skipped {problem}")
        if len(rows) == num_images:
            break
    if not rows:
        raise RecipeError(f"No image could be read; the last one tried was {problem}.")
    shown = f"{len(rows)} of {_count(recipe, source, modality.name)}"
    title = f"{recipe.method}: {drawing.title(views)}, colors by the {recipe.views.photometric} pipeline"
    path = Path(output).expanduser().resolve()
    try:
        _grid(rows, title, shown).save(path, "PNG")
    except OSError as error:
        raise UserError(f"The preview could not be written to {path} ({error}); choose another --output.") from error
    return path


def _count(recipe: Recipe, source: Source, counted: str) -> str:
    number = recipe.data.num_examples if recipe.data.streaming else len(source)
    return f"a stream of {counted}" if number is None else f"{number:,} {counted}"


def _grid(rows: list[list[Picture]], title: str, shown: str) -> Image.Image:
    bold, plain = font_of(14), font_of(13)
    texts = [[_wrapped(lines, plain) for _, _, lines, _ in row] for row in rows]
    heights = [CELL + (2 + max(map(len, lines))) * _LINE + _GAP for lines in texts]
    columns, top = len(rows[0]), _GAP + 2 * _LINE
    canvas = Image.new("RGB", (_GAP + columns * (CELL + _GAP), top + sum(heights)), _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((_GAP, _GAP - 4), title, INK, font=font_of(18))
    pen.text((_GAP, _GAP + 18), shown, _PALE, font=plain)
    for row, row_texts, height in zip(rows, texts, heights, strict=True):
        for c, ((picture, name, _, color), lines) in enumerate(zip(row, row_texts, strict=True)):
            left = _GAP + c * (CELL + _GAP)
            width, tall = picture.size
            pen.rectangle((left - 1, top - 1, left + CELL, top + CELL), outline=_FRAME)
            canvas.paste(picture, (left + (CELL - width) // 2, top + (CELL - tall) // 2))
            below = top + CELL + 6
            pen.rectangle((left - 1, below, left + CELL, below + 2), fill=color)
            pen.text((left, below + 6), writable(name, bold), color, font=bold)
            for n, line in enumerate(lines, 1):
                pen.text((left, below + 8 + n * _LINE), writable(line, plain), _PALE, font=plain)
        top += height
    return canvas


def _wrapped(lines: list[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Wrap lines to the width of a cell, between words or inside a word that is too long."""
    wrapped = []
    for line in lines:
        while font.getlength(line) > CELL:
            fits = max(n for n in range(1, len(line)) if font.getlength(line[:n]) <= CELL)
            cut = line.rfind(" ", 1, fits + 1) + 1 or fits
            wrapped.append(line[:cut])
            line = line[cut:]
        wrapped.append(line)
    return wrapped
