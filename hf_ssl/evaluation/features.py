# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Features of a labelled dataset under a frozen encoder: what every evaluation starts from."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..data.sources import ImageSource
from ..data.views import eval_image


@dataclass(frozen=True)
class EvalTransform:
    """Inference preprocessing: short side to `size / crop_pct`, centre crop of `size` pixels, normalisation."""

    size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config) -> "EvalTransform":
        """The preprocessing that a model's `SSLConfig` states."""
        mean, std = tuple(config.image_mean), tuple(config.image_std)
        return cls(config.image_size, config.crop_pct, config.interpolation, mean, std)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W) -> float."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class Features:
    """`vectors` (N, D) float32, `labels` (N,) int64, and the names of images that could not be read.

    Several clips of each video: `vectors` (N, clips, D), for linear.py and `clip_average`.
    """

    vectors: torch.Tensor
    labels: torch.Tensor
    failed: list[str]


class _EvalImages(Dataset):
    def __init__(self, source: ImageSource, indices: range, transform: EvalTransform):
        self.source, self.indices, self.transform = source, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int):
        index = self.indices[i]
        t = self.transform
        try:
            image = eval_image(self.source.image(index), t.size, t.crop_pct, t.interpolation, channels=len(t.mean))
        except Exception:  # any decoder's failure is the same to us: this image does not count
            return None, self.source.name(index)
        return torch.from_numpy(image.copy()), self.source.label(index)


def _collate(items: list):
    good = [(image, label) for image, label in items if image is not None]
    failed = [name for image, name in items if image is None]
    if not good:
        return None, None, failed
    images = torch.stack([image for image, _ in good]).permute(0, 3, 1, 2)  # HWC storage = channels_last
    labels = torch.tensor([-1 if label is None else label for _, label in good])
    return images, labels, failed


@torch.no_grad()
def extract_features(
    embed: Callable[[torch.Tensor], torch.Tensor],
    source: ImageSource,
    transform: EvalTransform,
    *,
    device: torch.device,
    batch_size: int = 256,
    num_workers: int = 0,
    max_examples: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Features:
    """Embed every `world_size`-th labelled image from `rank` on, up to `max_examples` in all.

    Every process calls `embed` equally often, as a sharded network needs it: on a black image where it has no batch.

    Args:
        embed: normalised images (B, C, H, W) -> vectors (B, D).
    """
    total = min(len(source), max_examples or len(source))
    dataset = _EvalImages(source, range(rank, total, world_size), transform)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=min(num_workers, os.cpu_count() or 1),
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global random state stays untouched
    )
    vectors, labels, failed = [], [], []
    batches = iter(loader)
    black = torch.zeros(1, len(transform.mean), transform.size, transform.size, dtype=torch.uint8)
    for _ in range(math.ceil(math.ceil(total / world_size) / batch_size)):
        images, batch_labels, batch_failed = next(batches, (None, None, []))
        failed += batch_failed
        embedded = embed(transform.normalize((black if images is None else images).to(device, non_blocking=True)))
        if images is not None:
            vectors.append(embedded.float())
            labels.append(batch_labels)
    if not vectors:  # as wide as those of other processes, with which they are gathered
        width = embedded.shape[1] if total else 0
        return Features(torch.zeros(0, width, device=device), torch.zeros(0, dtype=torch.long, device=device), failed)
    return Features(torch.cat(vectors), torch.cat(labels).to(device), failed)


def clip_average(vectors: torch.Tensor) -> torch.Tensor:
    """One vector (N, D) of each video for kNN and retrieval: the mean of its clips' (N, clips, D) unit vectors."""
    return F.normalize(vectors, dim=-1).mean(1)


def encoder_embedding(encoder: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The pooled features of a transformers encoder (ours or timm's wrapper) as a function of the images."""
    return lambda images: encoder(pixel_values=images).pooler_output.flatten(1)


def raw_pixel_embedding(images: torch.Tensor) -> torch.Tensor:
    """The image itself, averaged down to at most 32 x 32, as the baseline that needs no network."""
    side = min(32, images.shape[-1])
    return F.adaptive_avg_pool2d(images, side).flatten(1)
