# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Features of images, or of videos with sound, under a frozen encoder: what every evaluation starts from."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor

from ..data.clips import ClipTransform, eval_clip, eval_sound
from ..data.pixels import open_image, to_channels
from ..data.sources import Source
from ..data.views import eval_image
from ..data.workers import batches, share, start_worker
from ..disk import first_line


Embed = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class EvalTransform:
    """Inference preprocessing: short side to `size / crop_pct`, centre crop of `size` pixels, normalisation."""

    num_clips: ClassVar[int] = 1
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

    def read(self, source: Source, index: int) -> tuple[np.ndarray, ...]:
        """uint8 (1, S, S, C)."""
        image = open_image(source.cell(index), source.max_megapixels)
        how = (self.size, self.crop_pct, self.interpolation, len(self.mean), source.decoding)
        return (eval_image(image, *how)[None],)

    def blank(self, source: Source) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(1, self.size, self.size, len(self.mean), dtype=torch.uint8),)

    def inputs(self, images: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        images = images.permute(0, 3, 1, 2).to(device, non_blocking=True)  # HWC storage = channels_last
        return {"pixel_values": TF.normalize(images.float() / 255, self.mean, self.std)}


class ProcessorTransform:
    """Inference preprocessing as an image processor of transformers does it, for the encoders of others."""

    num_clips: ClassVar[int] = 1

    def __init__(self, processor: BaseImageProcessor):
        self.processor = processor

    def read(self, source: Source, index: int) -> tuple[np.ndarray, ...]:
        """float32 (1, C, H, W)."""
        image = open_image(source.cell(index), source.max_megapixels)
        return (self._prepared(to_channels(image, 3, source.decoding)),)

    def blank(self, source: Source | None = None) -> tuple[torch.Tensor, ...]:
        return (torch.from_numpy(self._prepared(Image.new("RGB", (64, 64)))),)

    def inputs(self, images: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        return {"pixel_values": images.to(device, non_blocking=True)}

    def _prepared(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self.processor(images=image, return_tensors="np")["pixel_values"], dtype=np.float32)


class ClipEvalTransform:
    """The same of `num_clips` evenly spaced clips of each video with sound, or of sound alone, of an `AvidConfig`."""

    def __init__(self, config, num_clips: int = 1):
        self.config, self.num_clips = config, num_clips
        self.normalize = ClipTransform(config).normalize

    def read(self, source: Source, index: int) -> tuple[np.ndarray, ...]:
        """Frames uint8 (clips, T, S, S, C), where there are any, and sound (clips, samples)."""
        cell = source.cell(index)
        if "video" in source.columns:
            return eval_clip(cell, self.config, self.num_clips)
        return (eval_sound(cell, self.config, self.num_clips),)

    def blank(self, source: Source) -> tuple[torch.Tensor, ...]:
        c = self.config
        black = torch.zeros(1, c.num_frames, c.image_size, c.image_size, c.num_channels, dtype=torch.uint8)
        silence = torch.zeros(1, int(c.audio_seconds * c.sampling_rate))
        return (black, silence) if "video" in source.columns else (silence,)

    def inputs(self, *clips: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        return self.normalize(clips[0] if len(clips) == 2 else None, clips[-1], device)


Transform = EvalTransform | ProcessorTransform | ClipEvalTransform


@dataclass(frozen=True)
class Features:
    """`vectors` (N, D) float32, `labels` (N,) int64, and the names of examples that could not be read.

    Several clips of each video: `vectors` (N, clips, D), for linear.py and `clip_average`.
    """

    vectors: torch.Tensor
    labels: torch.Tensor
    failed: list[str]

    def labelled(self) -> "Features":
        """Without the examples of class -1, which have no label."""
        known = self.labels != -1
        return Features(self.vectors[known], self.labels[known], self.failed)


@dataclass(frozen=True)
class Extracted:
    """`vectors`: name -> (N, clips, D) float32; `labels` (N,) int64, -1 for none; `failed`: unread files."""

    vectors: dict[str, torch.Tensor]
    labels: torch.Tensor
    failed: list[str]

    def of(self, name: str) -> Features:
        """The labelled examples' vectors (N, clips, D) of that name."""
        return Features(self.vectors[name], self.labels, self.failed).labelled()


class _Examples(Dataset):
    def __init__(self, source: Source, indices: range, transform: Transform):
        self.source, self.indices, self.transform = source, indices, transform
        self.numbers = source.numbers  # once, not in every worker

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int):
        index = self.indices[i]
        try:
            made = self.transform.read(self.source, index)
        except Exception as error:  # any decoder's failure is the same to us: this file does not count
            return None, f"{self.source.name(index)} ({first_line(error)})"
        return made, int(self.numbers[index])


def _collate(items: list):
    good = [(made, label) for made, label in items if made is not None]
    failed = [name for made, name in items if made is None]
    if not good:
        return None, None, failed
    made, labels = zip(*good, strict=True)
    joined = [torch.from_numpy(np.concatenate(part)) for part in zip(*made, strict=True)]
    return share((joined, torch.tensor(labels), failed))


@torch.no_grad()
def extract(
    embed: Embed,
    source: Source,
    transform: Transform,
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Extracted:
    """Embed every `world_size`-th example from `rank` on; labels are the source's `numbers`.

    Every process calls `embed` equally often, as a sharded network needs it: on a black (and silent) example where it
    has no batch, whose vectors also are as wide as those of other processes, with which they are gathered.

    Args:
        embed: model inputs of some images or clips -> name -> vectors (B, D).
        batch_size: images or clips.
    """
    total = len(source)
    loader = DataLoader(
        _Examples(source, range(rank, total, world_size), transform),
        batch_size=max(1, batch_size // transform.num_clips),
        num_workers=min(num_workers, os.cpu_count() or 1),
        collate_fn=_collate,
        worker_init_fn=start_worker,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global random state stays untouched
    )
    found, labels, failed = [], [torch.zeros(0, dtype=torch.long)], []
    loaded = batches(loader)
    for _ in range(max(1, math.ceil(math.ceil(total / world_size) / loader.batch_size))):
        made, batch_labels, batch_failed = next(loaded, (None, None, []))
        failed += batch_failed
        vectors = embed(transform.inputs(*(made or transform.blank(source)), device=device))
        if made:
            found.append({name: v.float().unflatten(0, (-1, transform.num_clips)) for name, v in vectors.items()})
            labels.append(batch_labels)
    if not found:
        found = [{name: v.new_zeros(0, transform.num_clips, v.shape[1]).float() for name, v in vectors.items()}]
    whole = {name: torch.cat([part[name] for part in found]) for name in vectors}
    return Extracted(whole, torch.cat(labels).to(device), failed)


def clip_average(vectors: torch.Tensor) -> torch.Tensor:
    """One vector (N, D) of each video for kNN and retrieval: the mean of its clips' (N, clips, D) unit vectors."""
    return F.normalize(vectors, dim=-1).mean(1)


def encoder_embedding(encoder: nn.Module) -> Embed:
    """Pooled features "" of an encoder of images, ours or timm's wrapper; of AVID's, "video" and "audio", and the
    embeddings of both.
    """
    names = {"": "pooler_output", "video_embeds": "video_embeds", "audio_embeds": "audio_embeds"}
    names |= {"video": "video_pooler_output", "audio": "audio_pooler_output"}

    def embed(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        output = encoder(**inputs)
        return {name: output[key].flatten(1) for name, key in names.items() if output.get(key) is not None}

    return embed


def raw_pixel_embedding(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The image itself, averaged down to at most 32 x 32, as the baseline that needs no network."""
    images = inputs["pixel_values"]
    return {"": F.adaptive_avg_pool2d(images, min(32, images.shape[-1])).flatten(1)}
