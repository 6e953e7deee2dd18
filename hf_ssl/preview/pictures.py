# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Images and fonts for the cells of a preview."""

import unicodedata
from contextlib import suppress
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageFont


CELL = 208  # pixels per side of a picture
INK = "#1d2430"
COLORS = ("#d1495b", "#2274a5", "#e08e1b", "#3b8b5a", "#8e5bb5", "#00838f", "#a2672d", "#c2408f")

Picture = tuple[Image.Image, str, list[str], str]  # picture, title, what was applied, color


_FONTS = (  # system fonts with letters of many languages; Pillow's own font only has English ones
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf"),
    *("segoeui.ttf", "Helvetica.ttc"),
)


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The first installed font of `_FONTS`, or Pillow's own."""
    for name in _FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size=size)


def writable(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Replace letters that the font lacks with their plain form (\u00fc as u) or a question mark."""
    return "".join(_in_font(letter, font) for letter in text)


def _in_font(letter: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    missing = bytes(font.getmask("\uffff"))  # the glyph for missing characters
    plain = unicodedata.normalize("NFKD", letter)
    choices = (letter, "".join(filter(str.isascii, plain)))
    return next((one for one in choices if one and (one.isascii() or bytes(font.getmask(one)) != missing)), "?")


def picture_of(pixels: torch.Tensor) -> Image.Image:
    """Convert (C, S, S) in 0..1 to an image of a cell's size; small images keep visible pixels."""
    array = (pixels.clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(np.squeeze(array, 2) if array.shape[2] == 1 else array).convert("RGB")
    hard = picture.size[0] < CELL // 2
    return picture.resize((CELL, CELL), Image.Resampling.NEAREST if hard else Image.Resampling.BICUBIC)
