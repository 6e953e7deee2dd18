# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Decode an image file to 8-bit RGB or gray, the same way for training, the monitor, `evaluate` and `preview`.

8-bit files are used as they are. Deeper files (16 and 32 bits, signed, floating point) do not say which values are
black and white, and a wrong guess would train on black images: see `Decoding` and `settled`.
"""

import io
import math
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from ..recipe import DataConfig, RecipeError
from .deep_pixels import NumberType, ValueRange, is_scaled_by_pillow, number_type, numbers_of


_TURNS = {  # EXIF orientation -> transposition, as in `PIL.ImageOps.exif_transpose`
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_COLOR_BANDS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # TIFF photometric interpretation -> color bands
_NEVER_DEEP = (".jpg", ".jpeg", ".jfif", ".jpe", ".webp")
_SAMPLE = 100  # deep files whose value range is checked before a run
_LOOKED_AT = 1000  # files opened to find them: this many from the start, and as many spread over the rest


@dataclass(frozen=True)
class Decoding:
    """How files become 8-bit pixels.

    Args:
        value_range: the values of deep files that map to black and white. "full": the type's full range. None: the
            full range if the files use it, else an error.
        exif: whether to apply the EXIF orientation.
    """

    value_range: ValueRange = None
    exif: bool = True


DEFAULT = Decoding()


_pillow = threading.RLock()


@contextmanager
def own_limit() -> Iterator[None]:
    """Disable Pillow's global size limit, so that a larger `data.max_megapixels` takes effect."""
    with _pillow:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


class WrongBands(OSError):
    """A file has bands besides gray, color and alpha."""


def open_image(record: dict[str, Any] | None, max_megapixels: float) -> Image.Image:
    """Open an encoded image ({"bytes", "path"}) without decoding it; or return an "image" created in Python.

    Raises:
        OSError, ValueError: it is missing, unreadable or larger than `max_megapixels`, or has bands besides gray,
            color and alpha (`WrongBands`).
    """
    if record is None:
        raise ValueError("the row has no image")
    image = record["image"] if "image" in record else _opened(record, max_megapixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_bands(image.tag_v2)
    pixels = image.size[0] * image.size[1] / 1e6
    if pixels > max_megapixels:
        raise ValueError(f"{pixels:.1f} megapixels, more than data.max_megapixels={max_megapixels:g}")
    return image


def _opened(record: dict[str, Any], max_megapixels: float) -> Image.Image:
    limit = own_limit() if max_megapixels > DataConfig.max_megapixels else nullcontext()
    file = io.BytesIO(record["bytes"]) if record["bytes"] is not None else record["path"]
    with warnings.catch_warnings(), limit:
        warnings.simplefilter("ignore")  # about damaged metadata, and about large but permitted sizes
        try:
            return Image.open(file)
        except UnidentifiedImageError:
            _explain_tiff(file)
            raise OSError("not an image, or a format that Pillow cannot read") from None
        except Image.DecompressionBombError as error:
            raise ValueError(f"{error}; raise data.max_megapixels") from None


def _explain_tiff(file: io.BytesIO | str) -> None:
    """Raise a specific error for a TIFF that Pillow cannot open."""
    tags = None
    with suppress(Exception), open(file, "rb") if isinstance(file, str) else file as opened:  # may be damaged
        opened.seek(0)
        directory = TiffImagePlugin.ImageFileDirectory_v2(opened.read(8))
        opened.seek(directory.next)
        directory.load(opened)
        tags = directory
    if tags is not None:
        _check_bands(tags)
        raise OSError("a TIFF variant that Pillow cannot read; convert it to 8-bit RGB or gray")


def _check_bands(tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    bands, colors, extra = tags.get(277, 1), _COLOR_BANDS.get(tags.get(262, 1), 0), tags.get(338, ())
    transparency = bands == colors + 1 and extra in ((1,), (2,), (999,), () if colors == 3 else None)
    if bands not in (1, colors) and not transparency:
        raise WrongBands(
            f"it has {bands} bands, but 1 (gray) or 3 (RGB) are needed; extract these into new files, "
            "for example with gdal_translate -b 3 -b 2 -b 1"
        )


def upright_size(image: Image.Image, decoding: Decoding) -> tuple[int, int]:
    """Width and height of an image after `to_channels`, which applies the EXIF orientation."""
    width, height = image.size
    return (height, width) if _orientation(image, decoding) >= 5 else (width, height)


def _orientation(image: Image.Image, decoding: Decoding) -> int:
    if not decoding.exif or image.format == "TIFF":  # Pillow itself rotates TIFFs
        return 1
    with warnings.catch_warnings(), suppress(Exception):  # ignore damaged EXIF
        warnings.simplefilter("ignore")
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in _TURNS else 1
    return 1


def shrink(image: Image.Image, width: float, height: float, decoding: Decoding) -> None:
    """Let a JPEG decode at 1/2, 1/4 or 1/8 scale, but not smaller than `width` x `height` once upright."""
    size = (math.ceil(width), math.ceil(height))
    image.draft(None, size[::-1] if _orientation(image, decoding) >= 5 else size)


def to_channels(image: Image.Image, channels: int, decoding: Decoding = DEFAULT) -> Image.Image:
    """Decode to upright RGB or gray.

    Alpha is dropped and CMYK is converted with Pillow's plain formula, as in torchvision's ImageFolder.

    Raises:
        OSError, ValueError: it cannot be decoded, or needs a `Decoding.value_range`.
    """
    turn = _TURNS.get(_orientation(image, decoding))
    with own_limit():
        image = _to_eight_bits(image, decoding)
        if "transparency" in image.info and image.mode == "P":
            image = image.convert("RGBA")  # Pillow warns about direct conversion to RGB
        mode = "RGB" if channels == 3 else "L"
        image.load()
        image = image if image.mode == mode else image.convert(mode)
    return image if turn is None else image.transpose(turn)


def _to_eight_bits(image: Image.Image, decoding: Decoding) -> Image.Image:
    """Map the values of a deep image to 0..255; return other images unchanged."""
    kind = number_type(image)
    if kind is None:
        return image
    if isinstance(decoding.value_range, tuple):
        low, high = decoding.value_range
        numbers = np.nan_to_num(numbers_of(image, kind).astype(np.float64), nan=low, posinf=high, neginf=low)
        eight = np.rint((numbers.clip(low, high) - low) * (255 / (high - low)))
        return _from_array(eight.astype(np.uint8), image.mode)
    if decoding.value_range is None or not kind.is_whole:
        low, high = _extent(numbers_of(image, kind))
        if not kind.may_be_full(low, high, decoding.value_range):
            raise ValueError(f"it contains {kind.described(low, high)}; {kind.remedy(low, high)}")
    if is_scaled_by_pillow(image):
        return image
    whole = numbers_of(image, kind).astype(np.int64) - int(kind.low)
    return Image.fromarray((whole // (int(kind.high - kind.low + 1) // 256)).astype(np.uint8))


def _from_array(array: np.ndarray, mode: str) -> Image.Image:
    if mode != "CMYK":
        return Image.fromarray(array)
    return Image.frombytes("CMYK", array.shape[1::-1], np.ascontiguousarray(array).tobytes())


def _extent(numbers: np.ndarray) -> tuple[float, float]:
    known = numbers[np.isfinite(numbers)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)


def sample_indices(count: int) -> list[int]:
    """Which of `count` files to inspect before a run: the first ones, and as many spread over the rest."""
    step = max(1, (count - _LOOKED_AT) // _LOOKED_AT)
    return [*range(min(count, _LOOKED_AT)), *range(_LOOKED_AT, count, step)][: 2 * _LOOKED_AT]


def settled(
    decoding: Decoding, records: Iterable[tuple[str, dict[str, Any] | None]], max_megapixels: float, where: str
) -> Decoding:
    """Inspect some files before a run starts, and return the decoding to use.

    Args:
        records: name and encoded image.
        where: name of the dataset in messages.

    Raises:
        RecipeError: deep files need a `data.value_range`, or a file has unsupported bands.
    """
    used: dict[NumberType, list[tuple[float, float]]] = {}
    for name, record in records:
        try:
            found = _numbers_in(record, max_megapixels, decoding)
        except WrongBands as error:
            raise RecipeError(f"{name} cannot be used: {error}.") from None
        if found is not None:
            used.setdefault(found[0], []).append(found[1])
        if sum(map(len, used.values())) == _SAMPLE:
            break
    for kind, extents in used.items():
        low, high = min(low for low, _ in extents), max(high for _, high in extents)
        if not kind.may_be_full(low, high, decoding.value_range):
            raise RecipeError(
                f"{where} has images with {kind.described(low, high)} ({len(extents)} were inspected), and their "
                f"black and white points are unknown; {kind.remedy(low, high)}."
            )
    return replace(decoding, value_range="full") if used else decoding


def _numbers_in(
    record: dict[str, Any] | None, max_megapixels: float, decoding: Decoding
) -> tuple[NumberType, tuple[float, float]] | None:
    """Pixel type and value range of a deep file; None for 8 bits, and for broken files, which the loader skips.

    Raises:
        WrongBands: see `open_image`.
    """
    try:
        if record and (record["path"] or "").lower().endswith(_NEVER_DEEP):
            return None
        image = open_image(record, max_megapixels)
        kind = number_type(image)
        if kind is None or isinstance(decoding.value_range, tuple):
            return None
        return kind, _extent(numbers_of(image, kind))
    except WrongBands:
        raise
    except Exception:  # decoders raise many types
        return None
