# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Stage 2 of the views on a CPU: one image at a time, in the arithmetic of Pillow and at the speed of OpenCV.

Levels are whole numbers between the steps, and cut off as Pillow cuts them, so a view is that of
`reference_photometric` but for a level here and there; only Pillow's jump of one level of hue at red is not imitated,
and its three steps over the edge in a blur. An image depends on nothing but itself and its row.
"""

import math

import cv2
import numpy as np


cv2.setNumThreads(0)  # images are small, and threads of OpenCV would not outlive the fork of a loader's worker

LUMA = (0.299, 0.587, 0.114)
Steps = list[tuple[str, float]]  # names of `PARAMS` and their numbers, in the drawn order

_CUT = -0.498  # Pillow cuts fractions off where OpenCV rounds; whole numbers, with float32's errors, stay
_HSV = ("saturation", "hue")
_TO_GRAY = np.tile((*LUMA, _CUT), (3, 1))  # as a matrix whose last column is added
_FROM_GRAY = np.eye(3, 4) - np.tile((*LUMA, 0.0), (3, 1))


def adjust(
    image: np.ndarray, steps: Steps, gray: float, sigma: float, threshold: float, deepmind: float
) -> np.ndarray:
    """uint8 (S, S, C) -> the same with jitter, grayscale, blur and solarization; the numbers are those of `PARAMS`."""
    single = image.shape[2] == 1
    if single:  # OpenCV has no third dimension there, and gray has no saturation or hue
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
    """The weights of Pillow's GaussianBlur: three averages over a box whose two ends count in part."""
    variance = sigma**2 / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.ones(2 * whole + 3)
    box[[0, -1]] = part
    box /= box.sum()
    return np.convolve(np.convolve(box, box), box).astype(np.float32)


def _torchvision_step(image: np.ndarray, name: str, value: float) -> np.ndarray:
    """One step of torchvision's jitter of a Pillow image."""
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
    # Pillow's hue has 255 levels a turn: fractions of the pixel's (half a level on average) and of the shift are lost.
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    _turn(hsv, (int(value * 255) - 0.5) / 255)
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _deepmind_colors(image: np.ndarray, steps: Steps) -> np.ndarray:
    """DeepMind's: clipped to 0..255 after each step, and rounded to whole levels once."""
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
    """factor x + shift; of uint8, the nearest level."""
    lines = image.reshape(len(image), -1)  # as one band OpenCV does several values at a time
    return cv2.transform(lines, np.array([[factor, shift]])).reshape(image.shape)


def _turn(hsv: np.ndarray, turns: float) -> None:
    """Shift the hue in place; OpenCV takes up to two turns, and no negative ones."""
    hsv[:, :, 0] += 360 * (turns % 1)
