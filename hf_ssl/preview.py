# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What will the network see? A PNG: a row for each image, each view labelled with what was applied to it.

The views come from the very code that trains, so what is drawn is what is learnt from.
"""

import base64
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .data.clips import ClipTransform, ClipViews
from .data.loader import epoch_order
from .data.photometric import ORDERS, Photometric
from .data.pixels import to_channels
from .data.sources import Source, load_source, source_of
from .data.streams import open_stream
from .data.views import Drawn, View, draw_views, make_views, resolve_views
from .models import AvidConfig
from .recipe import Recipe, RecipeError, model_config


logger = logging.getLogger(__name__)

_CELL, _GAP, _LINE = 208, 20, 17  # pixels: side of a picture, space around it, height of a line of text
_INK, _PALE, _PAPER, _FRAME = "#1d2430", "#5d6673", "#ffffff", "#d5dae0"
_COLOURS = ("#d1495b", "#2274a5", "#e08e1b", "#3b8b5a", "#8e5bb5", "#00838f", "#a2672d", "#c2408f")

_Picture = tuple[Image.Image, str, list[str], str]  # picture, title, what was applied, colour


def preview(
    recipe: Recipe,
    num_images: int = 4,
    output: str | Path = "preview.png",
    seed: int | None = None,
    dataset=None,
) -> Path:
    """Draw the first images of a run's first epoch with all their views; the crops are framed in the original.

    Of videos with sound: the frames of a clip, and its normalised spectrogram, from low to high.

    Args:
        seed: other images and other views than those of `recipe.train.seed`.
        dataset: a `datasets.Dataset` instead of `recipe.data.path`.

    Returns:
        The absolute path of the PNG.

    Raises:
        RecipeError: the recipe's data or views cannot work, no image can be read, or `output` cannot be written.
    """
    if num_images <= 0:
        raise RecipeError("The number of images must be greater than 0.")
    views = resolve_views(recipe.views, recipe.method)
    config = model_config(recipe, image_size=views[0].size)
    kind = "video" if isinstance(config, AvidConfig) else "image"
    if recipe.data.streaming:
        source = open_stream(recipe.data, kind=kind).head(num_images + 100)
    else:
        source = load_source(recipe.data, kind=kind) if dataset is None else source_of(dataset, recipe.data, kind)
    seed = recipe.train.seed if seed is None else seed
    reference = recipe.views.photometric == "reference"
    clips = ClipViews(views[0], config, recipe.clips, reference) if kind == "video" else None
    rows, problem = [], ""
    for index in epoch_order(len(source), seed, 0)[: num_images + 100].tolist():
        try:
            key = (seed, 0, index)
            rows.append(
                _row(source, index, views, key, reference, config.num_channels)
                if clips is None
                else _clip(source, index, clips, key)
            )
        except Exception as error:  # a loader takes another image too
            problem = f"{source.name(index)} ({error})"
            logger.warning(f"Skipped {problem}")
        if len(rows) == num_images:
            break
    if not rows:
        raise RecipeError(f"No image could be read, the last one tried was {problem}.")
    what = f"{len(views)} views of an image" if clips is None else "a clip's frames and sound"
    title = f"{recipe.method}: {what}, colours by the {recipe.views.photometric} pipeline"
    path = Path(output).expanduser().resolve()
    try:
        _grid(rows, title).save(path, "PNG")
    except OSError as error:
        raise RecipeError(f"The preview could not be written to {path} ({error}).") from error
    return path


def terminal_image(path: Path, environment: Mapping[str, str]) -> str | None:
    """Escape codes that show a PNG in the terminal whose `environment` this is; None for one that has no pictures.

    Kitty's protocol (kitty, Ghostty, Konsole) and iTerm2's (iTerm2, WezTerm, mintty); neither passes tmux or screen.
    """
    if environment.get("TMUX") or environment.get("TERM", "").startswith("screen"):
        return None
    content = base64.standard_b64encode(path.read_bytes()).decode()
    kitty = ("KITTY_WINDOW_ID", "GHOSTTY_RESOURCES_DIR", "KONSOLE_VERSION")
    if any(name in environment for name in kitty):
        parts = [content[start : start + 4096] for start in range(0, len(content), 4096)]
        keys = ["a=T,f=100,m=1"] + ["m=1"] * (len(parts) - 1)
        keys[-1] = keys[-1].replace("m=1", "m=0")
        return "".join(f"\033_G{key};{part}\033\\" for key, part in zip(keys, parts, strict=True))
    if environment.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm", "mintty"):
        return f"\033]1337;File=inline=1;width=100%;preserveAspectRatio=1:{content}\a"
    return None


def _row(
    source: Source, index: int, views: list[View], key: tuple[int, ...], reference: bool, channels: int
) -> list[_Picture]:
    """The original with its crops framed, and the views."""
    original = to_channels(source.image(index), channels, source.decoding)
    drawn = draw_views(views, *original.size, key)
    how = {"reference": reference, "channels": channels, "decoding": source.decoding}
    pixels, params = make_views(source.image(index), views, key, **how)
    photometric = Photometric([0.0] * channels, [1.0] * channels)  # colours and blur, without the normalisation
    width, height = original.size
    name = Path(source.name(index)).name
    row = [(_framed(original, drawn), "original", [name, f"{width} x {height} pixels"], _INK)]
    for v, (view, draw) in enumerate(zip(views, drawn, strict=True)):
        array, numbers = torch.from_numpy(pixels[v].copy()), torch.from_numpy(params[v])
        seen = photometric.apply(array[None, None], numbers[None, None])[0, 0]
        area = draw.box[2] * draw.box[3] / (width * height)
        title = f"{'local ' if view.local else ''}view {v + 1}, {view.size} px"
        row.append((_picture(seen), title, describe(draw, area), _COLOURS[v % len(_COLOURS)]))
    return row


def _clip(source: Source, index: int, clips: ClipViews, key: tuple[int, ...]) -> list[_Picture]:
    """The frames of a clip as the network sees them, and its spectrogram."""
    made = clips.make(source.cell(index), key, source.max_megapixels)
    batch = {name: torch.from_numpy(array.copy()) for name, array in clips.stack([made]).items()}
    config = clips.config
    photometric = Photometric([0.0] * config.num_channels, [1.0] * config.num_channels)
    rows = batch["params"].expand(config.num_frames, -1)
    frames = photometric.apply(batch["pixel_values_videos"], rows[None])[:, 0]
    sound = ClipTransform(config).normalize(None, batch["waveforms"])["input_values"][0]
    name = Path(source.name(index)).name
    seconds = [f"{i / config.frame_rate:.2f} s" for i in range(config.num_frames)]
    row = [
        (_picture(f), at, [name] if i == 0 else [], _INK)
        for i, (f, at) in enumerate(zip(frames, seconds, strict=True))
    ]
    said = [f"{config.audio_seconds:g} s, {config.num_bands} {config.spectrogram} bands"]
    said.append(f"mean {sound.mean():.2f}, std {sound.std():.2f} (audio_mean, audio_std)")
    low_to_high = ((sound.T.flip(0) - sound.min()) / (sound.max() - sound.min()).clamp(min=1e-6))[None]
    return [*row, (_picture(low_to_high), "sound", said, _COLOURS[1])]


def describe(drawn: Drawn, area: float) -> list[str]:
    """What was applied, in the order of application; `area` is the crop's share of the image."""
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
    last = {"gray": gray, f"blur, sigma {sigma:.2f} px": sigma, f"solarised from {threshold:g}": threshold <= 1}
    return lines + [text for text, applied in last.items() if applied]


def _picture(pixels: torch.Tensor) -> Image.Image:
    """(C, S, S) in 0..1 -> image as large as a cell; small ones keep hard pixels, to look as small as they are."""
    array = (pixels.clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(np.squeeze(array, 2) if array.shape[2] == 1 else array).convert("RGB")
    hard = picture.size[0] < _CELL // 2
    return picture.resize((_CELL, _CELL), Image.Resampling.NEAREST if hard else Image.Resampling.BICUBIC)


def _framed(original: Image.Image, drawn: list[Drawn]) -> Image.Image:
    """The original, fitted into a cell, with every view's crop in the view's colour."""
    factor = _CELL / max(original.size)
    size = tuple(max(1, round(side * factor)) for side in original.size)
    hard = factor > 2
    shown = original.convert("RGB").resize(size, Image.Resampling.NEAREST if hard else Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(shown)
    for v, draw in reversed(list(enumerate(drawn))):
        left, top, width, height = (factor * side for side in draw.box)
        corner = (min(left + width, size[0]) - 1, min(top + height, size[1]) - 1)
        pen.rectangle((left, top, *corner), outline=_COLOURS[v % len(_COLOURS)], width=2)
    return shown


def _grid(rows: list[list[_Picture]], title: str) -> Image.Image:
    bold, plain = ImageFont.load_default(size=14), ImageFont.load_default(size=13)
    texts = [[_wrapped(lines, plain) for _, _, lines, _ in row] for row in rows]
    heights = [_CELL + (2 + max(map(len, lines))) * _LINE + _GAP for lines in texts]
    columns, top = len(rows[0]), _GAP + 2 * _LINE
    canvas = Image.new("RGB", (_GAP + columns * (_CELL + _GAP), top + sum(heights)), _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((_GAP, _GAP - 4), title, _INK, font=ImageFont.load_default(size=18))
    for row, row_texts, height in zip(rows, texts, heights, strict=True):
        for c, ((picture, name, _, colour), lines) in enumerate(zip(row, row_texts, strict=True)):
            left = _GAP + c * (_CELL + _GAP)
            width, tall = picture.size
            pen.rectangle((left - 1, top - 1, left + _CELL, top + _CELL), outline=_FRAME)
            canvas.paste(picture, (left + (_CELL - width) // 2, top + (_CELL - tall) // 2))
            below = top + _CELL + 6
            pen.rectangle((left - 1, below, left + _CELL, below + 2), fill=colour)
            pen.text((left, below + 6), name, colour, font=bold)
            for n, line in enumerate(lines, 1):
                pen.text((left, below + 8 + n * _LINE), line, _PALE, font=plain)
        top += height
    return canvas


def _wrapped(lines: list[str], font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines no wider than a cell, cut between words, or anywhere in a word that is too long."""
    wrapped = []
    for line in lines:
        while font.getlength(line) > _CELL:
            fits = max(n for n in range(1, len(line)) if font.getlength(line[:n]) <= _CELL)
            cut = line.rfind(" ", 1, fits + 1) + 1 or fits
            wrapped.append(line[:cut])
            line = line[cut:]
        wrapped.append(line)
    return wrapped
