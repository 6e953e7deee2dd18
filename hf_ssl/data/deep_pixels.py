# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Read images deeper than 8 bits, which Pillow truncates or misinterprets."""

import io
import math
import re
import sys
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin


ValueRange = Literal["full"] | tuple[float, float] | None

_LEAST_USE = 1 / 8  # of an unsigned type's range; images that use less would come out nearly black or flat


class NumberType(NamedTuple):
    """Pixel type of a file deeper than 8 bits, with the type's range; NaN for floating point."""

    name: str
    low: float = math.nan
    high: float = math.nan

    @property
    def is_whole(self) -> bool:
        return self.low == self.low

    def may_be_full(self, low: float, high: float, value_range: ValueRange) -> bool:
        """Whether the type's minimum and maximum can serve as black and white for values from `low` to `high`."""
        if value_range == "full":
            return self.is_whole
        return self.low == 0 and high - low >= _LEAST_USE * (self.high + 1)

    def described(self, low: float, high: float) -> str:
        whole = f", of {self.low:g} to {self.high:g}" if self.is_whole else ""
        return f"{self.name} numbers from {low:g} to {high:g}{whole}"

    def remedy(self, low: float, high: float) -> str:
        either = ", or to full for the full range of the type" if self.is_whole else ""
        return (
            f"set data.value_range to the values of black and white, for example [{low:g}, {high:g}]{either} "
            "(hf-ssl evaluate: --value-range)"
        )


def number_type(image: Image.Image) -> NumberType | None:
    """Pixel type of a file deeper than 8 bits, from its header; None for 8 bits."""
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
    """Pillow's raw mode (pixel layout) of a file that is not decoded yet."""
    tiles = getattr(image, "tile", None)
    return str(_first(tiles[0][3])) if tiles and tiles[0][3] else ""


def numbers_of(image: Image.Image, kind: NumberType) -> np.ndarray:
    """Pixel values (H, W) or (H, W, colors) of a deep image, without alpha."""
    if _ppm_maximum(image):
        return _ppm_numbers(image)
    if _is_sixteen_bit_color(image):
        return _sixteen_bit_color(image)
    numbers = np.asarray(image)
    if image.mode == "L":
        return numbers.view(np.int8)
    return numbers.view(np.uint32) if kind.high == 2**32 - 1 else numbers


def is_scaled_by_pillow(image: Image.Image) -> bool:
    """Whether Pillow itself scales the file's full range to 8 bits."""
    return _is_sixteen_bit_color(image) or bool(_ppm_maximum(image))


def _ppm_maximum(image: Image.Image) -> int | None:
    """Maximum value of a color PPM deeper than 8 bits, which Pillow scales to 8; else None."""
    tiles = getattr(image, "tile", None)
    if image.format == "PPM" and image.mode == "RGB" and tiles and isinstance(tiles[0].args, tuple):
        maximum = tiles[0].args[-1]
        return maximum if maximum > 255 else None
    return None


def _ppm_numbers(image: Any) -> np.ndarray:
    """Pixel values (H, W, 3) of a binary or plain-text PPM."""
    (name, _, offset, _), (width, height) = image.tile[0], image.size
    image.fp.seek(offset)
    content, count = image.fp.read(), 3 * width * height
    if name == "ppm_plain":
        content = np.array(re.sub(rb"#[^\r\n]*", b" ", content).split()[:count], dtype=np.uint16)
    else:
        content = np.frombuffer(content, ">u2", count)
    return content.astype(np.uint16).reshape(height, width, 3)


def _is_sixteen_bit_color(image: Image.Image) -> bool:
    """Whether the file has 16-bit color, for which Pillow has no mode: it decodes only the upper byte."""
    return ";16" in _raw_mode(image) and not image.mode.startswith("I")


def _sixteen_bit_color(image: Any) -> np.ndarray:
    """Pixel values (H, W, colors). Decodes twice, the second time with swapped byte order for the lower byte."""
    image.fp.seek(0)
    content = image.fp.read()
    mode = _raw_mode(image).replace("RGBa", "RGBA")
    if mode.startswith("LA"):  # gray and alpha take four bytes, so read them as RGBA
        both = np.asarray(decoded_as("RGBA", content)).astype(np.uint16)
        return both[..., 0] * 256 + both[..., 1]
    native, other = ("L", "B") if sys.byteorder == "little" else ("B", "L")
    order = mode[-1].replace("N", native)
    upper = np.asarray(decoded_as(mode, content)).astype(np.uint16)
    lower = np.asarray(decoded_as(mode[:-1] + (other if order == native else native), content))
    numbers = upper * 256 + lower
    return numbers[..., :3] if image.mode == "RGBA" else numbers


def decoded_as(mode: str, content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode) for tile in image.tile
    ]
    return image
