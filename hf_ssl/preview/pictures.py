# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a preview's cells."""

import numpy as np
import torch
from PIL import Image


CELL = 208  # pixels: side of a picture
INK = "#1d2430"
COLORS = ("#d1495b", "#2274a5", "#e08e1b", "#3b8b5a", "#8e5bb5", "#00838f", "#a2672d", "#c2408f")

Picture = tuple[Image.Image, str, list[str], str]  # picture, title, what was applied, color


def picture_of(pixels: torch.Tensor) -> Image.Image:
    """(C, S, S) in 0..1 -> image as large as a cell; small ones keep hard pixels, to look as small as they are."""
    array = (pixels.clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(np.squeeze(array, 2) if array.shape[2] == 1 else array).convert("RGB")
    hard = picture.size[0] < CELL // 2
    return picture.resize((CELL, CELL), Image.Resampling.NEAREST if hard else Image.Resampling.BICUBIC)
