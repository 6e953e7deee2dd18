# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Stage 2 of the views: colours, blur and normalisation.

`Photometric` does a whole batch on its device in a few kernels: jitter and grayscale of an image are one affine map of
its colours, blur is two products with a Gaussian matrix. `reference_photometric` does one image with the published
pipelines' arithmetic (Pillow, torchvision). Both apply the same drawn numbers.
"""

import math
from itertools import permutations
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter, ImageOps


# Columns of a view's row of drawn numbers; each has a value that changes nothing.
PARAMS = ("multiply", "add", "contrast", "saturation", "hue", "order", "gray", "sigma", "threshold")
NEUTRAL = np.array([1, 0, 1, 1, 0, 0, 0, 0, 2], dtype=np.float32)
ORDERS = tuple(permutations(range(4)))  # of brightness, contrast, saturation, hue
LUMA = (0.299, 0.587, 0.114)
_CHUNK = 512  # images whose intermediate results are in memory at once


class Photometric:
    """Batches of uint8 views and their drawn numbers -> normalised model inputs.

    Args:
        mean, std: a number a channel, for pixels in 0..1.
    """

    def __init__(self, mean, std):
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __call__(self, batch: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """The loader's batch -> `pixel_values` (B, V, C, H, W) and, with small crops, `local_pixel_values`.

        The storage is view-major and channels-last, so `pixel_values[:, v]` needs no copy.
        """
        inputs = {"pixel_values": self.apply(batch["pixel_values"], batch["params"], device)}
        if "local_pixel_values" in batch:
            inputs["local_pixel_values"] = self.apply(batch["local_pixel_values"], batch["local_params"], device)
        return inputs

    def apply(self, pixels: torch.Tensor, params: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
        """uint8 (V, B, H, W, C), rows (V, B, P) on the CPU -> float32 (B, V, C, H, W) on `device`."""
        views, size, height, width, channels = pixels.shape
        flat = pixels.reshape(-1, height, width, channels).to(device, non_blocking=True)
        rows = params.reshape(-1, len(PARAMS))
        out = torch.empty(flat.shape, device=device)
        for start in range(0, len(flat), _CHUNK):
            part = slice(start, start + _CHUNK)
            out[part] = self._chunk(flat[part], rows[part])
        return out.view(views, size, height, width, channels).permute(1, 0, 4, 2, 3)

    def _chunk(self, pixels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) uint8 -> float; which images need what is decided on the CPU, so the device never waits."""
        device = pixels.device
        x = pixels.float().div_(255)
        on_device = rows.to(device, non_blocking=True)
        if (rows[:, :5] != torch.tensor([1.0, 0, 1, 1, 0])).any() or rows[:, 6].any():
            x = _jitter(x, on_device)
        blurred = rows[:, 7].nonzero().flatten()
        if len(blurred):
            chosen = blurred.to(device, non_blocking=True)
            x[chosen] = _blur(x[chosen], on_device[chosen, 7])
        if (rows[:, 8] <= 1).any():
            x = torch.where(x >= on_device[:, 8].view(-1, 1, 1, 1), 1 - x, x)
        mean, std = (t.to(device, non_blocking=True) for t in (self.mean, self.std))
        return x.sub_(mean).div_(std)


def _jitter(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(N, H, W, C) in 0..1, rows (N, P) -> the same after jitter and grayscale, clamped."""
    channels = x.shape[-1]
    matrix, offset = colour_maps(rows, x.mean((1, 2)))
    if channels == 1:
        return (x * matrix.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)).clamp_(0, 1)
    flat = x.view(len(x), -1, channels)
    return torch.baddbmm(offset[:, None], flat, matrix.transpose(1, 2)).view(x.shape).clamp_(0, 1)


def colour_maps(rows: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Jitter in the drawn order, then grayscale, as one affine map an image: x -> matrix x + offset.

    Hue turns the colours in the YIQ plane; contrast pulls towards the mean grey that the image has by then.

    Args:
        rows: (N, P) drawn numbers.
        mean: (N, C) mean colour of every image.

    Returns:
        matrix (N, C, C) and offset (N, C).
    """
    n, channels = mean.shape
    luma = mean.new_tensor(LUMA if channels == 3 else [1.0])
    eye = torch.eye(channels, device=mean.device)
    to_grey = luma.expand(channels, channels)  # every row is the luma: (C, C)
    multiply, add, contrast, saturation, hue = (rows[:, i].view(n, 1, 1) for i in range(5))
    linear = torch.stack(
        [
            multiply * eye,
            contrast * eye,
            saturation * eye + (1 - saturation) * to_grey,
            _hue_rotation(hue) if channels == 3 else eye.expand(n, 1, 1),
        ],
        1,
    )  # (N, 4, C, C)
    matrix, offset = eye.expand(n, channels, channels), mean.new_zeros(n, channels)
    order = torch.tensor(ORDERS, device=mean.device)[rows[:, 5].long()]  # (N, 4)
    every = torch.arange(n, device=mean.device)
    for slot in range(4):
        op = order[:, slot]
        chosen = linear[every, op]
        grey = ((matrix @ mean[:, :, None]).squeeze(2) + offset) @ luma  # (N,) mean grey so far
        shift = (op == 0) * add.view(n) + (op == 1) * (1 - contrast.view(n)) * grey
        matrix = chosen @ matrix
        offset = (chosen @ offset[:, :, None]).squeeze(2) + shift[:, None]
    gray = rows[:, 6].view(n, 1, 1)
    final = gray * to_grey + (1 - gray) * eye
    return final @ matrix, (final @ offset[:, :, None]).squeeze(2)


_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def _hue_rotation(hue: torch.Tensor) -> torch.Tensor:
    """(N, 1, 1) in turns -> (N, 3, 3). Pillow's hue runs from red over green to blue, against the I-Q plane."""
    n = len(hue)
    angle = -2 * math.pi * hue.view(n)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.zeros(n, 3, 3, device=hue.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = cos
    turn[:, 1, 2], turn[:, 2, 1] = -sin, sin
    yiq = _YIQ.to(hue.device)
    return torch.linalg.inv(_YIQ).to(hue.device) @ turn @ yiq


def _blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(N, H, W, C), one sigma (N,) in pixels an image -> blurred; weights are renormalised at the borders."""
    n, height, width, channels = x.shape
    rows = _gaussian(height, sigma) @ x.reshape(n, height, width * channels)
    turned = rows.view(n, height, width, channels).transpose(1, 2).reshape(n, width, height * channels)
    return (_gaussian(width, sigma) @ turned).view(n, width, height, channels).transpose(1, 2)


def _gaussian(size: int, sigma: torch.Tensor) -> torch.Tensor:
    """(N,) -> (N, size, size), rows summing to 1."""
    position = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    distance = (position[:, None] - position[None]).square()
    weights = (-distance / (2 * sigma.square())[:, None, None]).exp()
    return weights / weights.sum(2, keepdim=True)


def reference_photometric(image: Image.Image, params: np.ndarray) -> Image.Image:
    """One image with the published order and arithmetic: jitter in the drawn order, grayscale, blur, solarise."""
    multiply, add, contrast, saturation, hue, order, gray, sigma, threshold = (float(p) for p in params)
    colour = image.mode == "RGB"
    for op in ORDERS[int(order)]:
        if op == 0 and multiply != 1:
            image = TF.adjust_brightness(image, multiply)
        elif op == 0 and add != 0:
            brighter = (np.asarray(image) / 255 + add).clip(0, 1)
            image = Image.fromarray((brighter * 255).round().astype(np.uint8))
        elif op == 1 and contrast != 1:
            image = TF.adjust_contrast(image, contrast)
        elif op == 2 and saturation != 1 and colour:
            image = TF.adjust_saturation(image, saturation)
        elif op == 3 and hue != 0 and colour:
            image = TF.adjust_hue(image, hue)
    if gray and colour:
        image = image.convert("L").convert("RGB")
    if sigma:
        image = image.filter(ImageFilter.GaussianBlur(sigma))
    if threshold <= 1:
        image = ImageOps.solarize(image, math.ceil(threshold * 255))
    return image
