# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Small test images, and image files."""

import io

import numpy as np
from PIL import Image


def gray(shade: int, side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), (shade, shade, shade))


def noise(seed: int, side: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()
