# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Stage 2 of the views on a CPU: one image at a time, with Pillow's arithmetic at OpenCV's speed.

Images stay in 8 bits between steps, truncated as Pillow does, so a view equals that of `reference_photometric` except
for single levels here and there. Two details of Pillow are not reproduced: a jump of one hue level at red, and its
edge handling in the three passes of a blur. Each result depends only on the image and its row.
"""

import math

import cv2
import numpy as np


cv2.setNumThreads(0)  # images are small, and OpenCV's threads do not survive the fork of a loader worker

LUMA = (0.299, 0.587, 0.114)
Steps = list[tuple[str, float]]  # names from `PARAMS` and their values, in order of application

_CUT = -0.498  # Pillow truncates, OpenCV rounds; not -0.5, so that float32 errors do not change whole numbers
_HSV = ("saturation", "hue")
_TO_GRAY = np.tile((*LUMA, _CUT), (3, 1))  # affine matrix; the last column is the offset
_FROM_GRAY = np.eye(3, 4) - np.tile((*LUMA, 0.0), (3, 1))


def adjust(
    image: np.ndarray, steps: Steps, gray: float, sigma: float, threshold: float, deepmind: float
) -> np.ndarray:
    """Apply jitter, grayscale, blur and solarization to uint8 (S, S, C); the arguments are values of `PARAMS`."""
    single = image.shape[2] == 1
    if single:  # OpenCV drops the channel dimension, and gray has no saturation or hue
        image, steps, gray = image[:, :, 0], [step for step in steps if step[0] not in _HSV], 0
    if deepmind and steps:
        image = _deepmind_colors(image, steps)
    else:
        for name, value in steps:
            image = _torchvision_step(image, name, value)
    if gray:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if sigma:
        kernel = blur_kernel(sigma)
        image = cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    if threshold <= 1:
        level = np.arange(256)
        image = cv2.LUT(image, np.where(level < math.ceil(threshold * 255), level, 255 - level).astype(np.uint8))
    return image[:, :, None] if single else image


def blur_kernel(sigma: float) -> np.ndarray:
    """The kernel of Pillow's GaussianBlur: three box averages whose end pixels have fractional weight."""
    variance = sigma**2 / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.ones(2 * whole + 3)
    box[[0, -1]] = part
    box /= box.sum()
    return np.convolve(np.convolve(box, box), box).astype(np.float32)


def _torchvision_step(image: np.ndarray, name: str, value: float) -> np.ndarray:
    """One step of torchvision's color jitter, as on a Pillow image."""
    if name == "multiply":
        return cv2.convertScaleAbs(image, None, value, _CUT)
    if name == "add":
        return _scaled(image, 1, 255 * value)
    if name == "contrast":
        red, green, blue, _ = cv2.mean(image)
        level = int((LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue if image.ndim == 3 else red) + 0.5)
        return cv2.addWeighted(image, value, image, 0, (1 - value) * level + _CUT)
    if name == "saturation":
        return cv2.transform(image, _TO_GRAY + value * _FROM_GRAY)
    # Pillow's hue has 255 levels per turn and truncates both the pixel's (by half a level on average) and the shift.
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    _turn(hsv, (int(value * 255) - 0.5) / 255)
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _deepmind_colors(image: np.ndarray, steps: Steps) -> np.ndarray:
    """DeepMind's colors: clip to 0..255 after each step, round to 8 bits once at the end."""
    x: np.ndarray = image.astype(np.float32)
    is_hsv = False
    for name, value in steps:
        if (name in _HSV) != is_hsv:
            x, is_hsv = cv2.cvtColor(x, cv2.COLOR_HSV2RGB if is_hsv else cv2.COLOR_RGB2HSV), not is_hsv
        if name == "hue":
            _turn(x, value)
        elif name == "saturation":
            x[:, :, 1] = np.minimum(x[:, :, 1] * value, 1)
        elif name == "contrast":
            bands = x.shape[2] if x.ndim == 3 else 1
            matrix = value * np.eye(bands, bands + 1)
            matrix[:, bands] = (1 - value) * np.array(cv2.mean(x)[:bands])
            x = cv2.transform(x, matrix)
        else:
            x = _scaled(x, value, 0) if name == "multiply" else _scaled(x, 1, 255 * value)
        if not is_hsv:
            x.clip(0, 255, out=x)
    return cv2.convertScaleAbs(cv2.cvtColor(x, cv2.COLOR_HSV2RGB) if is_hsv else x)


def _scaled(image: np.ndarray, factor: float, shift: float) -> np.ndarray:
    """factor x + shift, rounded for uint8."""
    lines = image.reshape(len(image), -1)  # OpenCV vectorizes over a single channel
    return cv2.transform(lines, np.array([[factor, shift]])).reshape(image.shape)


def _turn(hsv: np.ndarray, turns: float) -> None:
    """Shift the hue in place; OpenCV accepts up to two turns and no negative values."""
    hsv[:, :, 0] += 360 * (turns % 1)
