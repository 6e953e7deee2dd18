# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Draw images and their views for a preview."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from ..data.images import ImageViews
from ..data.photometric import ORDERS, Photometric
from ..data.pixels import to_channels
from ..data.sources import Source
from ..data.views import View, ViewParams, sample_views
from .pictures import CELL, COLORS, INK, Picture, picture_of


def title(views: list[View]) -> str:
    """Title of the preview."""
    return f"{len(views)} views of an image"


def row(source: Source, index: int, stage1: ImageViews, key: tuple[int, ...]) -> list[Picture]:
    """The original with its crops framed, and the views."""
    views, channels = stage1.views, stage1.channels
    original = to_channels(source.image(index), channels, source.decoding)
    drawn = sample_views(views, *original.size, key)
    pixels, params = stage1.make(source.record(index), key, source)
    photometric = Photometric([0.0] * channels, [1.0] * channels)  # colors and blur, without the normalization
    width, height = original.size
    name = Path(source.name(index)).name
    cells = [(_framed(original, drawn), "original", [name, f"{width} x {height} pixels"], INK)]
    for v, (view, draw) in enumerate(zip(views, drawn, strict=True)):
        array, numbers = torch.from_numpy(pixels[v].copy()), torch.from_numpy(params[v])
        seen = photometric(array[None], numbers[None])[0]
        area = draw.box[2] * draw.box[3] / (width * height)
        title = f"{'local ' if view.local else ''}view {v + 1}, {view.size} px"
        cells.append((picture_of(seen), title, describe(draw, area), COLORS[v % len(COLORS)]))
    return cells


def describe(drawn: ViewParams, area: float) -> list[str]:
    """List the augmentations in order; `area` is the crop's share of the image."""
    left, top, width, height = drawn.box
    multiply, add, contrast, saturation, hue, order, gray, sigma, threshold, _ = drawn.params.tolist()
    lines = [f"crop {width} x {height} at {left}, {top}", f"  = {area:.0%} of the image"]
    if drawn.flip:
        lines.append("flipped")
    jitter = {
        0: f"brightness {add:+.2f}" if add else f"brightness x {multiply:.2f}" if multiply != 1 else "",
        1: f"contrast x {contrast:.2f}" if contrast != 1 else "",
        2: f"saturation x {saturation:.2f}" if saturation != 1 else "",
        3: f"hue {360 * hue:+.0f}°" if hue else "",
    }
    lines += [jitter[op] for op in ORDERS[int(order)] if jitter[op]]
    last = {"gray": gray, f"blur, sigma {sigma:.2f} px": sigma, f"solarized from {threshold:g}": threshold <= 1}
    return lines + [text for text, applied in last.items() if applied]


def _framed(original: Image.Image, drawn: list[ViewParams]) -> Image.Image:
    """The original, resized to a cell, with each view's crop framed in its color."""
    factor = CELL / max(original.size)
    size = tuple(max(1, round(side * factor)) for side in original.size)
    hard = factor > 2
    shown = original.convert("RGB").resize(size, Image.Resampling.NEAREST if hard else Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(shown)
    for v, draw in reversed(list(enumerate(drawn))):
        left, top, width, height = (factor * side for side in draw.box)
        corner = (min(left + width, size[0]) - 1, min(top + height, size[1]) - 1)
        pen.rectangle((left, top, *corner), outline=COLORS[v % len(COLORS)], width=2)
    return shown
