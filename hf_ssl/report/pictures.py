# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Images embedded in a page: data URIs, and a shared sheet of thumbnails."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


SIDE = 64  # pixels per side of a thumbnail
_COLUMNS = 25


def data_uri(image: Image.Image, quality: int = 85) -> str:
    """A JPEG as text for `src`."""
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def thumbnail(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The center square; small images keep visible pixels."""
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    image = image.convert("RGB").crop((left, top, left + short, top + short))
    return image.resize((side, side), Image.Resampling.NEAREST if short < side // 2 else Image.Resampling.LANCZOS)


class Sheet:
    """Thumbnails side by side in one picture."""

    def __init__(self) -> None:
        self.images: list[Image.Image] = []

    def add(self, image: Image.Image) -> int:
        """Add a thumbnail and return its index, for `style`."""
        self.images.append(thumbnail(image))
        return len(self.images) - 1

    def uri(self) -> str:
        rows = -(-len(self.images) // _COLUMNS)
        sheet = Image.new("RGB", (_COLUMNS * SIDE, max(1, rows) * SIDE))
        for number, image in enumerate(self.images):
            sheet.paste(image, (number % _COLUMNS * SIDE, number // _COLUMNS * SIDE))
        return data_uri(sheet, 80)


def style(number: int) -> str:
    """CSS that shows one thumbnail of the sheet."""
    return f"background-position:{-(number % _COLUMNS) * SIDE}px {-(number // _COLUMNS) * SIDE}px"


def principal_colors(maps: np.ndarray) -> np.ndarray:
    """The first three principal components over all positions of all maps, as red, green and blue.

    Args:
        maps: (N, H, W, C).

    Returns:
        uint8 (N, H, W, 3); the 2nd and 98th percentile of each component map to 0 and 255.
    """
    flat = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    _, axes = np.linalg.eigh(flat.T @ flat)
    axes = axes[:, ::-1][:, :3]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0))  # fix the sign
    found = flat @ axes
    found = np.pad(found, ((0, 0), (0, 3 - found.shape[1])))
    low, high = np.percentile(found, [2, 98], axis=0)
    scaled = ((found - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return (255 * scaled).round().astype(np.uint8).reshape(*maps.shape[:-1], 3)


def enlarged(colors: np.ndarray, side: int) -> Image.Image:
    """Enlarge a small map, with visible cells."""
    return Image.fromarray(colors).resize((side, side), Image.Resampling.NEAREST)


def spectrum(vectors: Any) -> np.ndarray:
    """Singular values of centered torch vectors (N, D), relative to the largest."""
    values = np.linalg.svd(vectors.double().numpy() - vectors.double().numpy().mean(0), compute_uv=False)
    return np.maximum(values / max(values[0], 1e-12), 1e-8)
