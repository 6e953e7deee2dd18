# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Feature maps of frozen encoders, sliding-window prediction, and overlap with masks."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.masks import IGNORED
from ..errors import RecipeError
from .encoders import Encoder
from .scores import bootstrap_error


FeatureMap = Callable[[Tensor], Tensor]  # (B, C, H, W) -> (B, D, h, w)

_AT_ONCE = 16  # batch size of windows, and number of classes upsampled at once
_PATCH = 8  # raw pixels of a patch are averaged to this side, in pixels


def feature_map(encoder: Encoder) -> FeatureMap:
    """The last feature map of an image encoder; for transformers, the patch tokens as a map.

    Raises:
        RecipeError: (when called) its `last_hidden_state` is neither.
    """
    model: Any = encoder.model
    network = getattr(model, "timm_model", getattr(model, "backbone", None))

    def made(pixels: Tensor) -> Tensor:
        last = model(pixel_values=pixels).last_hidden_state
        if last.ndim == 4:
            return last.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else last
        patch = _patch_of(network, encoder.config)
        if last.ndim == 3 and patch is not None:
            size = (pixels.shape[-2] // patch[0], pixels.shape[-1] // patch[1])
            prefix = getattr(network, "num_prefix_tokens", 1 + getattr(encoder.config, "num_register_tokens", 0))
            if last.shape[1] == prefix + size[0] * size[1]:
                return last[:, prefix:].transpose(1, 2).unflatten(2, size)
        raise RecipeError(
            f"{encoder.name}: the output of its {type(model).__name__}, {tuple(last.shape)}, is neither a feature map "
            "nor a square grid of patch tokens, which dense evaluation needs."
        )

    return made


def _patch_of(network: Any, config: Any) -> tuple[int, int] | None:
    embedding = getattr(network, "patch_embed", None)
    size = getattr(embedding, "patch_size", None) or getattr(config, "patch_size", None)
    return (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1])


def patch_pixels(size: tuple[int, int]) -> FeatureMap:
    """Baseline without a network: the pixels of each of `size` patches, averaged to at most 8 x 8."""

    def made(pixels: Tensor) -> Tensor:
        high, wide = (s * min(_PATCH, max(1, side // s)) for s, side in zip(size, pixels.shape[-2:], strict=True))
        parts = F.adaptive_avg_pool2d(pixels, (high, wide)).unflatten(3, (size[1], -1)).unflatten(2, (size[0], -1))
        return parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)

    return made


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Start positions of windows along a side; the last window ends at the border."""
    count = max(0, math.ceil((length - size) / stride)) + 1
    return [min(number * stride, max(0, length - size)) for number in range(count)]


def slide(predict: Callable[[Tensor], Tensor], image: Tensor, size: int, stride: int) -> Tensor:
    """Mean scores (K, H, W) over all windows that cover a pixel of an image (C, H, W).

    Args:
        predict: windows (B, C, size, size) -> scores (B, K, size, size).
    """
    rows, columns = (window_starts(side, size, stride) for side in image.shape[1:])
    places = [(y, x) for y in rows for x in columns]
    total: Any = None
    for start in range(0, len(places), _AT_ONCE):
        some = places[start : start + _AT_ONCE]
        scores = predict(torch.stack([image[:, y : y + size, x : x + size] for y, x in some])).float()
        if total is None:
            total = scores.new_zeros(scores.shape[1], *image.shape[1:])
            count = scores.new_zeros(image.shape[1:])
        for (y, x), one in zip(some, scores, strict=True):
            total[:, y : y + size, x : x + size] += one
            count[y : y + size, x : x + size] += 1
    return total / count


def winner(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Class (H, W) with the highest score (K, h, w), upsampled to `size`, a few classes at a time to save memory."""
    best = scores.new_full(size, -torch.inf)
    numbers = torch.zeros(size, dtype=torch.long, device=scores.device)
    for start in range(0, len(scores), _AT_ONCE):
        part = F.interpolate(scores[None, start : start + _AT_ONCE], size, mode="bilinear", align_corners=False)[0]
        value, number = part.max(0)
        numbers = torch.where(value > best, number + start, numbers)
        best = torch.maximum(best, value)
    return numbers


def overlaps(predicted: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Pixel counts (3, K) per class: correct, predicted and labeled; ignored pixels are excluded."""
    known = mask != IGNORED
    told, asked = predicted[known], mask[known].long()
    parts = (asked[told == asked], told, asked)
    return torch.stack([torch.bincount(part, minlength=num_classes) for part in parts])


def mean_iou(counts: Tensor) -> Tensor:
    """Mean IoU over the classes that were predicted or labeled, from counts (..., 3, K)."""
    return iou(counts).nanmean(-1)


def iou(counts: Tensor) -> Tensor:
    """Intersection over union (..., K) from counts (..., 3, K); NaN for absent classes."""
    right, told, asked = counts.double().unbind(-2)
    return right / (told + asked - right)


def figures(counts: Tensor, classes: list[int]) -> dict[str, Any]:
    """Figures over the images (N, 3, K), with bootstrap standard errors."""
    total = counts.sum(0)
    pixels = total[2].sum()

    def accuracy(some: Tensor) -> Tensor:
        return some[..., 0, :].sum(-1).double() / some[..., 2, :].sum(-1)

    found: dict[str, Any] = {"miou": mean_iou(total).item(), "pixel_accuracy": accuracy(total).item()}
    found["errors"] = {
        "miou": bootstrap_error(counts, mean_iou),
        "pixel_accuracy": bootstrap_error(counts, accuracy),
    }
    of_class = zip(classes, iou(total).tolist(), (total[2] / pixels).tolist(), strict=True)
    told = {str(one): {"iou": value, "share": share} for one, value, share in of_class if not math.isnan(value)}
    return found | {"classes": {"encoder": told}}
