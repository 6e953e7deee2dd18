# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Stage 1 of the views, in the loader worker: decode an image once, take all crops from it, flip them.

All randomness is drawn here, one row of numbers per view, from a generator seeded with (seed, epoch, example). So the
views do not depend on the number of workers or processes. `photometric` then applies the colors on the device.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image

from ..models.configuration_ssl import short_side
from ..recipe import RecipeError, ViewsConfig, nearest
from .photometric import NEUTRAL, reference_photometric
from .pixels import DEFAULT, Decoding, own_limit, shrink, to_channels, upright_size


@dataclass(frozen=True)
class View:
    """How one view of an image is made.

    Args:
        size: side in pixels.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's aspect ratio, log-uniform.
        crop: "retry" draws up to ten times until the crop fits (torchvision), "clip" draws once and clips (BYOL).
        interpolation: "bilinear" or "bicubic".
        flip: probability of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation and hue, applied in random order.
        jitter_prob: probability of jitter.
        brightness: "multiply" (torchvision) or "add" (BYOL).
        colors: "torchvision", or "deepmind" (BYOL): contrast around each channel's own mean, saturation in HSV.
        grayscale: probability of conversion to grayscale.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its standard deviation in pixels.
        solarize: probability of inverting pixels above the threshold.
        solarize_threshold: in 0..1; Pillow's 128 of 255 is just above a half.
        local: one of SwAV's small crops.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop: str = "retry"
    interpolation: str = "bicubic"
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_prob: float = 0.8
    brightness: str = "multiply"
    colors: str = "torchvision"
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: float = 0.5
    local: bool = False


_SWAV = View(interpolation="bilinear", jitter=(0.8, 0.8, 0.8, 0.2), scale=(0.14, 1.0))
_SWAV_LOCAL = replace(_SWAV, size=96, scale=(0.05, 0.14))
_SIMSIAM = View(interpolation="bilinear", jitter=(0.4, 0.4, 0.4, 0.1), scale=(0.2, 1.0))
_BYOL = View(crop="clip", brightness="add", colors="deepmind")
_AVID = View(interpolation="bilinear", jitter=(0.4, 0.4, 0.4, 0.2), jitter_prob=1, grayscale=0, blur=0)

# Published parameters: number and kind of the first, second and local views.
PRESETS: dict[str, tuple[tuple[int, View], ...]] = {
    "barlow_twins": ((1, View(blur=1.0)), (1, View(blur=0.1, solarize=0.2)), (0, View())),
    "byol": ((1, replace(_BYOL, blur=1.0)), (1, replace(_BYOL, blur=0.1, solarize=0.2)), (0, _BYOL)),
    "simsiam": ((1, _SIMSIAM), (1, _SIMSIAM), (0, _SIMSIAM)),
    "swav": ((1, _SWAV), (1, _SWAV), (6, _SWAV_LOCAL)),
    "avid": ((1, _AVID), (0, View()), (0, View())),
    "seer": ((1, _SWAV), (1, _SWAV), (4, _SWAV_LOCAL)),
}

DRAWS = 52  # uniform numbers per view: 40 for ten tries of the crop, 12 for the rest

_THIN = 32  # above this aspect ratio, resize only the crop: the whole image could need gigabytes
_CACHED = 2**18  # bytes of frames that are resized together; fits the CPU cache
_RESAMPLE = {one.name.lower(): one for one in Image.Resampling}  # timm uses the same names


def resolve_views(config: ViewsConfig, method: str) -> list[View]:
    """The views of a recipe, global ones first: the preset, changed by `all`, then by `first`, `second` and `local`.

    Args:
        method: default preset.

    Raises:
        RecipeError: no such preset, impossible values, no views, or global (or local) views of different sizes.
    """
    views: list[View] = []
    preset = config.preset or method
    if preset not in PRESETS:
        raise RecipeError(f"Unknown views.preset {preset!r}{nearest(preset, PRESETS)}")
    for name, (count, view) in zip(("first", "second", "local"), PRESETS[preset], strict=True):
        changes = vars(config.all) | {k: v for k, v in vars(getattr(config, name)).items() if v is not None}
        changes = {key: value for key, value in changes.items() if value is not None}
        count = changes.pop("count", count)
        if count < 0:
            raise RecipeError(f"views.{name}.count must not be negative, but is {count}.")
        if config.colors is not None:
            changes["colors"] = config.colors
        view = replace(view, local=name == "local", **changes)
        _check(view, f"views.{name}")
        views += [view] * count
    if not views:
        raise RecipeError("The recipe has no views; raise views.first.count.")
    for local, where in ((False, "views.first and views.second"), (True, "views.local")):
        if len({view.size for view in views if view.local == local}) > 1:
            raise RecipeError(f"{where} must have the same size.")
    return views


def _check(view: View, where: str) -> None:
    for key in ("flip", "jitter_prob", "grayscale", "blur", "solarize"):
        if not 0 <= getattr(view, key) <= 1:
            raise RecipeError(f"{where}.{key} must be a probability between 0 and 1, not {getattr(view, key)}.")
    if not 0 <= view.solarize_threshold <= 1:
        raise RecipeError(f"{where}.solarize_threshold must be between 0 and 1, not {view.solarize_threshold}.")
    if view.size <= 0 or not 0 < view.scale[0] <= view.scale[1] <= 1 or not 0 < view.ratio[0] <= view.ratio[1]:
        raise RecipeError(f"{where} needs size > 0, an increasing scale within 0..1 and an increasing positive ratio.")
    if min(view.jitter) < 0 or view.jitter[3] > 0.5 or not 0 < view.blur_sigma[0] <= view.blur_sigma[1]:
        raise RecipeError(f"{where} needs jitter strengths >= 0 (hue <= 0.5) and an increasing positive blur_sigma.")


@dataclass(frozen=True)
class ViewParams:
    """Random parameters of one view: crop box (left, top, width, height), flip, and the row of `PARAMS`."""

    box: tuple[int, int, int, int]
    flip: bool
    params: np.ndarray


def sample_views(views: list[View], width: int, height: int, key: tuple[int, ...]) -> list[ViewParams]:
    """Draw the parameters of all views of an image of `width` x `height`; `key` is (seed, epoch, example)."""
    uniform = np.random.default_rng(key).random((len(views), DRAWS)).tolist()
    return [sample_view(view, width, height, row) for view, row in zip(views, uniform, strict=True)]


def sample_view(view: View, width: int, height: int, u: list[float]) -> ViewParams:
    """The parameters of a view from its `DRAWS` uniform numbers."""
    crop = _crop_retry if view.crop == "retry" else _crop_clip
    params = NEUTRAL.copy()
    params[9] = view.colors == "deepmind"
    if u[41] < view.jitter_prob:
        b, c, s, h = view.jitter
        if view.brightness == "multiply":
            params[0] = _between(max(0.0, 1 - b), 1 + b, u[42])
        else:
            params[1] = _between(-b, b, u[42])
        params[2] = _between(max(0.0, 1 - c), 1 + c, u[43])
        params[3] = _between(max(0.0, 1 - s), 1 + s, u[44])
        params[4] = _between(-h, h, u[45])
        params[5] = int(u[46] * 24)
    params[6] = u[47] < view.grayscale
    if u[48] < view.blur:
        params[7] = _between(*view.blur_sigma, u[49])
    if u[50] < view.solarize:
        params[8] = view.solarize_threshold
    return ViewParams(crop(view, width, height, u), u[40] < view.flip, params)


def _between(low: float, high: float, u: float) -> float:
    return low + (high - low) * u


def _crop_size(view: View, width: int, height: int, u: list[float]) -> tuple[int, int]:
    area = width * height * _between(*view.scale, u[0])
    ratio = math.exp(_between(math.log(view.ratio[0]), math.log(view.ratio[1]), u[1]))
    return round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))


def _crop_retry(view: View, width: int, height: int, u: list[float]) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop: ten tries, then a center crop with the nearest valid ratio."""
    for start in range(0, 40, 4):
        w, h = _crop_size(view, width, height, u[start:])
        if 0 < w <= width and 0 < h <= height:
            return int(u[start + 2] * (width - w + 1)), int(u[start + 3] * (height - h + 1)), w, h
    low, high = view.ratio
    w = min(width, max(1, round(height * high)))
    h = min(height, max(1, round(width / low)))
    return (width - w) // 2, (height - h) // 2, w, h


def _crop_clip(view: View, width: int, height: int, u: list[float]) -> tuple[int, int, int, int]:
    """BYOL's crop: one try, clipped to the image."""
    w, h = _crop_size(view, width, height, u)
    w, h = max(1, min(w, width)), max(1, min(h, height))
    return int(u[2] * (width - w + 1)), int(u[3] * (height - h + 1)), w, h


def make_views(
    image: Image.Image,
    views: list[View],
    key: tuple[int, ...],
    *,
    reference: bool = False,
    channels: int = 3,
    decoding: Decoding = DEFAULT,
) -> tuple[list[np.ndarray], np.ndarray]:
    """All views of one image.

    Args:
        image: opened, not necessarily decoded.
        key: (seed, epoch, example).
        reference: also do the colors here, per image, in the published arithmetic; then the returned rows are
            neutral.
        decoding: how the file becomes 8-bit pixels.

    Returns:
        One uint8 array (size, size, channels) per view, and float32 rows (V, len(PARAMS)).
    """
    size = upright_size(image, decoding)
    drawn = sample_views(views, *size, key)
    if reference:
        image = to_channels(image, channels, decoding)
        crops = [crop_image(image, v, d) for v, d in zip(views, drawn, strict=True)]
        made = [reference_photometric(c, d.params) for c, d in zip(crops, drawn, strict=True)]
        params = np.tile(NEUTRAL, (len(views), 1))
    else:
        least = min(min(d.box[2:]) / v.size for v, d in zip(views, drawn, strict=True))
        if image.format == "JPEG" and least >= 2:  # so that no crop is upsampled
            shrink(image, size[0] / least, size[1] / least, decoding)
        image = to_channels(image, channels, decoding)
        scale_x, scale_y = image.size[0] / size[0], image.size[1] / size[1]
        made = [_crop(image, v, d, scale_x, scale_y) for v, d in zip(views, drawn, strict=True)]
        params = np.stack([d.params for d in drawn])
    return [_pixels(view, channels, d.flip) for view, d in zip(made, drawn, strict=True)], params


def _pixels(image: Image.Image, channels: int, flip: bool) -> np.ndarray:
    """uint8 (H, W, channels), contiguous: a view with negative strides would be slow to copy into a batch."""
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, channels)
    return cv2.flip(pixels, 1).reshape(pixels.shape) if flip else pixels


def _crop(image: Image.Image, view: View, drawn: ViewParams, scale_x: float, scale_y: float) -> Image.Image:
    """Crop and resize in one resampling; `scale_x`, `scale_y`: the scale at which the image was decoded."""
    left, top, width, height = drawn.box
    box = (
        left * scale_x,
        top * scale_y,
        min((left + width) * scale_x, image.size[0]),
        min((top + height) * scale_y, image.size[1]),
    )
    return image.resize((view.size, view.size), _RESAMPLE[view.interpolation], box=box)


def crop_image(image: Image.Image, view: View, drawn: ViewParams) -> Image.Image:
    """Crop, then resize, as published: pixels outside the crop have no influence."""
    left, top, width, height = drawn.box
    with own_limit():
        crop = image.crop((left, top, left + width, top + height))
    return crop.resize((view.size, view.size), _RESAMPLE[view.interpolation])


def crop_frames(frames: np.ndarray, view: View, drawn: ViewParams) -> np.ndarray:
    """`crop_image` and flip of all frames: uint8 (T, H, W, 3) -> (T, size, size, 3). Bit-identical, but faster.

    Pillow resizes rows, then columns. One call per frame is slow for many small frames, so the rows of several frames
    are stacked vertically for one call, and then their columns horizontally for another.
    """
    left, top, width, height = drawn.box
    frames = frames[:, top : top + height, left : left + width]
    size, resample, made = view.size, _RESAMPLE[view.interpolation], []
    group = max(1, _CACHED // (height * width * 3))
    for start in range(0, len(frames), group):
        part = np.ascontiguousarray(frames[start : start + group])
        if len(part) == 1:
            made.append(_resized(part[0], (size, size), resample)[None])
            continue
        lines = _resized(part.reshape(-1, width, 3), (size, len(part) * height), resample)
        lines = lines.reshape(len(part), height, size * 3).swapaxes(0, 1).reshape(height, -1)
        columns = _resized(lines, (lines.shape[1], size), resample)
        made.append(columns.reshape(size, len(part), size, 3).swapaxes(0, 1))
    pixels = np.concatenate(made)
    return cv2.flip(pixels.reshape(-1, size, 3), 1).reshape(pixels.shape) if drawn.flip else pixels


def _resized(pixels: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    image = Image.fromarray(pixels).resize(size, resample)
    return np.frombuffer(image.tobytes(), np.uint8).reshape(size[1], size[0], *pixels.shape[2:])


def eval_image(
    image: Image.Image,
    size: int,
    crop_pct: float = 0.875,
    interpolation: str = "bicubic",
    channels: int = 3,
    decoding: Decoding = DEFAULT,
) -> np.ndarray:
    """Inference view as in timm: short side to `size / crop_pct`, center crop; uint8 (size, size, channels)."""
    short = short_side(size, crop_pct)
    width, height = upright_size(image, decoding)
    new = (short * width // min(width, height), short * height // min(width, height))
    if min(width, height) > 2 * short:
        shrink(image, 2 * new[0], 2 * new[1], decoding)
    image = to_channels(image, channels, decoding)
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    if max(new) > _THIN * short and min(left, top) >= 0:
        pixels = np.asarray(_crop_of_resized(image, new, (left, top), size, interpolation))
    else:
        if image.size != new:
            image = image.resize(new, _RESAMPLE[interpolation])
        pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _crop_of_resized(
    image: Image.Image, new: tuple[int, int], corner: tuple[int, int], size: int, interpolation: str
) -> Image.Image:
    """The square at `corner` of the image resized to `new`, without computing the rest."""
    first, last, low, high = [], [], [], []
    for start, to, old in zip(corner, new, image.size, strict=True):
        left, right = start * old / to, min((start + size) * old / to, old)
        margin = 3 * max(1.0, old / to)  # filter support; crop first, as Pillow's box is imprecise for large numbers
        first.append(max(0, math.floor(left - margin)))
        last.append(min(old, math.ceil(right + margin)))
        low.append(left - first[-1])
        high.append(right - first[-1])
    part = image.crop((first[0], first[1], last[0], last[1]))
    return part.resize((size, size), _RESAMPLE[interpolation], box=(low[0], low[1], high[0], high[1]))
