# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Features of images, or of videos with sound, under a frozen encoder: what every evaluation starts from."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..data.sources import Source
from ..data.workers import batches, share, start_worker
from ..disk import first_line


Embed = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


class Transform(Protocol):
    """Preprocessing at inference, see `Modality.inference`: `num_clips` of each example are embedded and averaged."""

    @property
    def num_clips(self) -> int:
        """Of an example."""

    def read(self, source: Source, index: int) -> tuple[np.ndarray, ...]:
        """The arrays of an example, (num_clips, ...) each."""

    def blank(self, source: Source) -> tuple[torch.Tensor, ...]:
        """As many and as large arrays of nothing."""

    def inputs(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """(*arrays, device=...) -> the model's inputs of a batch of them."""


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
    total, size = len(source), max(1, batch_size // transform.num_clips)
    loader = DataLoader(
        _Examples(source, range(rank, total, world_size), transform),
        batch_size=size,
        num_workers=min(num_workers, os.cpu_count() or 1),
        collate_fn=_collate,
        worker_init_fn=start_worker,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global random state stays untouched
    )
    found, labels = [], [torch.zeros(0, dtype=torch.long)]
    failed: list[str] = []
    loaded = batches(loader)
    nothing: Any = (None, None, [])
    for _ in range(max(1, math.ceil(math.ceil(total / world_size) / size))):
        made, batch_labels, batch_failed = next(loaded, nothing)
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
