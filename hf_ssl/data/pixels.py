# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""One image file -> 8-bit RGB or gray, the same for training, the monitor, `evaluate` and `preview`.

Files of 8 bits are taken as they are. Deeper ones (16 and 32 bits, signed, floating point) hold numbers whose black
and white no file states, so a wrong guess trains on black images: see `Decoding` and `settled`.
"""

import io
import math
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from ..recipe import DataConfig, RecipeError


ValueRange = Literal["full"] | tuple[float, float] | None

_TURNS = {  # of EXIF orientations, as `PIL.ImageOps.exif_transpose` has them
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_COLOR_BANDS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # TIFF's photometric interpretation -> bands of color
_LEAST_USE = 1 / 8  # of an unsigned type's range: images that use less would be nearly black or flat
_NEVER_DEEP = (".jpg", ".jpeg", ".jfif", ".jpe", ".webp")
_SAMPLE = 100  # deep files whose numbers are looked at before a run
_LOOKED_AT = 1000  # files that are opened to find them: so many from the start, and as many spread over the rest


@dataclass(frozen=True)
class Decoding:
    """How files become 8-bit pixels.

    Args:
        value_range: the numbers of deep files that become black and white; "full": the type's whole range; None: the
            whole range where a file uses it.
        exif: whether photos are turned upright, as their EXIF orientation says.
    """

    value_range: ValueRange = None
    exif: bool = True


DEFAULT = Decoding()


class NumberType(NamedTuple):
    """What a file deeper than 8 bits holds, and the range of the type; nan for floating point."""

    name: str
    low: float = math.nan
    high: float = math.nan

    @property
    def is_whole(self) -> bool:
        return self.low == self.low

    def may_be_full(self, low: float, high: float, value_range: ValueRange) -> bool:
        """Whether black and white are the ends of the type, for numbers from `low` to `high`."""
        if value_range == "full":
            return self.is_whole
        return self.low == 0 and high - low >= _LEAST_USE * (self.high + 1)

    def described(self, low: float, high: float) -> str:
        whole = f", of {self.low:g} to {self.high:g}" if self.is_whole else ""
        return f"{self.name} numbers from {low:g} to {high:g}{whole}"

    def remedy(self, low: float, high: float) -> str:
        either = ", or to full for the whole range of the type" if self.is_whole else ""
        return (
            f"set data.value_range to the numbers that are black and white, for example [{low:g}, {high:g}]{either} "
            "(hf-ssl evaluate: --value-range)"
        )


_pillow = threading.RLock()


@contextmanager
def own_limit() -> Iterator[None]:
    """Without Pillow's limit, a global variable: a larger `data.max_megapixels` is the one that counts."""
    with _pillow:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


class WrongBands(OSError):
    """A file has other bands than gray, colors and transparency."""


def open_image(record: dict[str, Any] | None, max_megapixels: float) -> Image.Image:
    """An encoded image ({"bytes", "path"}), opened but not yet decoded; or the "image" that Python made.

    Raises:
        OSError, ValueError: it is missing, cannot be read, has more than `max_megapixels`, or other bands than gray,
            colors and transparency (`WrongBands`).
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
        warnings.simplefilter("ignore")  # of damaged metadata, and of sizes that are allowed
        try:
            return Image.open(file)
        except UnidentifiedImageError:
            _explain_tiff(file)
            raise OSError("not an image, or of a kind that Pillow cannot read") from None
        except Image.DecompressionBombError as error:
            raise ValueError(f"{error}; data.max_megapixels sets another limit") from None


def _explain_tiff(file: io.BytesIO | str) -> None:
    """Raise what is wrong with a TIFF that Pillow does not know."""
    tags = None
    with suppress(Exception), open(file, "rb") if isinstance(file, str) else file as opened:  # damaged anywhere
        opened.seek(0)
        directory = TiffImagePlugin.ImageFileDirectory_v2(opened.read(8))
        opened.seek(directory.next)
        directory.load(opened)
        tags = directory
    if tags is not None:
        _check_bands(tags)
        raise OSError("a TIFF of a kind that Pillow cannot read; convert it to 8-bit RGB or gray")


def _check_bands(tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    bands, colors, extra = tags.get(277, 1), _COLOR_BANDS.get(tags.get(262, 1), 0), tags.get(338, ())
    transparency = bands == colors + 1 and extra in ((1,), (2,), (999,), () if colors == 3 else None)
    if bands not in (1, colors) and not transparency:
        raise WrongBands(
            f"it has {bands} bands, where 1 (gray) or 3 (RGB) are needed; write those that you want into new files, "
            "for example with gdal_translate -b 3 -b 2 -b 1"
        )


def upright_size(image: Image.Image, decoding: Decoding) -> tuple[int, int]:
    """Width and height of what `to_channels` makes of an image."""
    width, height = image.size
    return (height, width) if _orientation(image, decoding) >= 5 else (width, height)


def _orientation(image: Image.Image, decoding: Decoding) -> int:
    if not decoding.exif or image.format == "TIFF":  # Pillow turns TIFFs by itself
        return 1
    with warnings.catch_warnings(), suppress(Exception):  # damaged EXIF is no orientation
        warnings.simplefilter("ignore")
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in _TURNS else 1
    return 1


def shrink(image: Image.Image, width: float, height: float, decoding: Decoding) -> None:
    """Let a JPEG decode at 1/2, 1/4 or 1/8, but upright not smaller than so many pixels."""
    size = (math.ceil(width), math.ceil(height))
    image.draft(None, size[::-1] if _orientation(image, decoding) >= 5 else size)


def to_channels(image: Image.Image, channels: int, decoding: Decoding = DEFAULT) -> Image.Image:
    """Decode into upright RGB or gray.

    Transparency is dropped and CMYK goes by Pillow's plain formula, as in torchvision's folders.

    Raises:
        NeedsRange: see `Decoding.value_range`.
        OSError, ValueError: it cannot be decoded.
    """
    turn = _TURNS.get(_orientation(image, decoding))
    with own_limit():
        image = _to_eight_bits(image, decoding)
        if "transparency" in image.info and image.mode == "P":
            image = image.convert("RGBA")  # Pillow warns about the direct way
        mode = "RGB" if channels == 3 else "L"
        image.load()
        image = image if image.mode == mode else image.convert(mode)
    return image if turn is None else image.transpose(turn)


def number_type(image: Image.Image) -> NumberType | None:
    """What a file deeper than 8 bits holds, from its header; None for 8 bits."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits, signed = (_first(tags.get(tag, default)) for tag, default in ((258, 0), (339, 1)))
    if image.mode == "F":
        return NumberType("floating-point")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = bits or 16
    elif image.mode == "I":
        bits, signed = bits or 32, signed if bits else 2
    elif ";16" in _raw_mode(image):
        bits = 16
    elif maximum := _ppm_maximum(image):
        return NumberType("16-bit", 0, maximum)
    elif not (image.mode == "L" and signed == 2):
        return None
    if signed == 2:
        return NumberType(f"signed {bits}-bit", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return NumberType(f"{bits}-bit", 0, 2**bits - 1)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _raw_mode(image: Image.Image) -> str:
    """How the pixels lie in a file that is not yet decoded."""
    tiles = getattr(image, "tile", None)
    return str(_first(tiles[0][3])) if tiles and tiles[0][3] else ""


def numbers_of(image: Image.Image, kind: NumberType) -> np.ndarray:
    """The numbers (H, W) or (H, W, colors) of a deep image; transparency is left out."""
    if _ppm_maximum(image):
        return _ppm_numbers(image)
    if _is_sixteen_bit_color(image):
        return _sixteen_bit_color(image)
    numbers = np.asarray(image)
    if image.mode == "L":
        return numbers.view(np.int8)
    return numbers.view(np.uint32) if kind.high == 2**32 - 1 else numbers


def _ppm_maximum(image: Image.Image) -> int | None:
    """The largest number of a PPM of more than 8 bits in color, which Pillow scales to 8."""
    tiles = getattr(image, "tile", None)
    if image.format == "PPM" and image.mode == "RGB" and tiles and isinstance(tiles[0].args, tuple):
        maximum = tiles[0].args[-1]
        return maximum if maximum > 255 else None
    return None


def _ppm_numbers(image: Any) -> np.ndarray:
    """Numbers (H, W, 3), in two bytes each or as text."""
    (name, _, offset, _), (width, height) = image.tile[0], image.size
    image.fp.seek(offset)
    content, count = image.fp.read(), 3 * width * height
    if name == "ppm_plain":
        content = np.array(re.sub(rb"#[^\r\n]*", b" ", content).split()[:count], dtype=np.uint16)
    else:
        content = np.frombuffer(content, ">u2", count)
    return content.astype(np.uint16).reshape(height, width, 3)


def _is_sixteen_bit_color(image: Image.Image) -> bool:
    """Pillow has no such images: it decodes the upper byte."""
    return ";16" in _raw_mode(image) and not image.mode.startswith("I")


def _sixteen_bit_color(image: Any) -> np.ndarray:
    """Numbers (H, W, colors): the file is decoded twice, once as if its bytes had the other order."""
    image.fp.seek(0)
    content = image.fp.read()
    mode = _raw_mode(image).replace("RGBa", "RGBA")
    if mode.startswith("LA"):  # gray and transparency are four bytes
        both = np.asarray(_decoded_as("RGBA", content)).astype(np.uint16)
        return both[..., 0] * 256 + both[..., 1]
    native, other = ("L", "B") if sys.byteorder == "little" else ("B", "L")
    order = mode[-1].replace("N", native)
    upper = np.asarray(_decoded_as(mode, content)).astype(np.uint16)
    lower = np.asarray(_decoded_as(mode[:-1] + (other if order == native else native), content))
    numbers = upper * 256 + lower
    return numbers[..., :3] if image.mode == "RGBA" else numbers


def _decoded_as(mode: str, content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode) for tile in image.tile
    ]
    return image


def _to_eight_bits(image: Image.Image, decoding: Decoding) -> Image.Image:
    """The image itself, or a deep one with its numbers mapped to 0..255."""
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
            raise ValueError(f"it holds {kind.described(low, high)}; {kind.remedy(low, high)}")
    if _is_sixteen_bit_color(image) or _ppm_maximum(image):
        return image  # Pillow scales it
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
    """Which of `count` files are looked at before a run: the first ones, and as many spread over the rest."""
    step = max(1, (count - _LOOKED_AT) // _LOOKED_AT)
    return [*range(min(count, _LOOKED_AT)), *range(_LOOKED_AT, count, step)][: 2 * _LOOKED_AT]


def settled(
    decoding: Decoding, records: Iterable[tuple[str, dict[str, Any] | None]], max_megapixels: float, where: str
) -> Decoding:
    """The decoding after a look at some files before a run starts.

    Args:
        records: name and encoded image.
        where: what a message calls the dataset.

    Raises:
        RecipeError: deep files need a `data.value_range`, or a file has other bands than gray, colors, transparency.
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
                f"{where} has images of {kind.described(low, high)} ({len(extents)} were looked at), and does not say "
                f"which of them are black and white; {kind.remedy(low, high)}."
            )
    return replace(decoding, value_range="full") if used else decoding


def _numbers_in(
    record: dict[str, Any] | None, max_megapixels: float, decoding: Decoding
) -> tuple[NumberType, tuple[float, float]] | None:
    """Type and extent of a deep file's numbers; None for 8 bits, and for a broken file, which a loader skips.

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
    except Exception:  # whatever a decoder raises
        return None
