# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Features of images or clips from a frozen encoder, the input of every evaluation."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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
    """Inference preprocessing, see `Modality.inference`; `num_clips` clips per example are embedded and averaged."""

    @property
    def num_clips(self) -> int:
        """Clips per example."""

    def read(self, source: Source, index: int) -> tuple[np.ndarray, ...]:
        """Arrays of an example, (num_clips, ...) each."""

    def blank(self, source: Source) -> tuple[torch.Tensor, ...]:
        """Blank arrays of the same shapes."""

    def inputs(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """(*arrays, device=...) -> the model's inputs for a batch."""


@dataclass(frozen=True)
class Features:
    """Vectors of labeled examples, and names of files that could not be read.

    Attributes:
        vectors: (N, D), or (N, clips, D) for several clips per example; float32, or memory-mapped, to be multiplied by
            `scale`.
        labels: (N,) int64, -1 for none; for several labels per example, (N, classes) of 1, 0 and -1.
        rows: selected vectors, (N,); None for all.
        examples: index (N,) of each vector's example in the source, if known.
    """

    vectors: torch.Tensor
    labels: torch.Tensor
    failed: list[str]
    scale: float = 1.0
    rows: torch.Tensor | None = None
    examples: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def numbers(self) -> torch.Tensor:
        """Indices (N,) in the source."""
        return self.examples if self.rows is None else self.examples[self.rows.cpu()]

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Vectors `start` to `stop` in float32, (n, D) or (n, clips, D)."""
        part = self.vectors[start:stop] if self.rows is None else self.vectors[self.rows[start:stop]]
        return part.float() * self.scale if self.scale != 1 else part.float()

    def blocks(self, size: int = 8192) -> Iterator[tuple[slice, torch.Tensor]]:
        """Iterate over the vectors; only one block is in memory as float32."""
        for start in range(0, len(self), size):
            yield slice(start, start + size), self.block(start, start + size)

    def select(self, rows: torch.Tensor) -> "Features":
        """A subset of the examples, by index."""
        known = rows if self.rows is None else self.rows[rows]
        return replace(self, labels=self.labels[rows], rows=known)

    def labeled(self) -> "Features":
        """Only labeled examples: class not -1; for several labels per example, not all labels -1."""
        known = self.labels != -1
        known = known.any(1) if known.ndim == 2 else known
        return self if bool(known.all()) else self.select(known.nonzero().flatten())

    def averaged(self) -> "Features":
        """One vector (N, D) per example; several clips are averaged as unit vectors."""
        if self.vectors.ndim == 2:
            return self
        return replace(self, vectors=clip_average(self.block(0, len(self))), scale=1.0, rows=None)


class _Examples(Dataset):
    def __init__(self, source: Source, indices: range, transform: Transform):
        self.source, self.indices, self.transform = source, indices, transform
        self.numbers = source.numbers  # computed once, not in every worker

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int):
        index = self.indices[i]
        try:
            made = self.transform.read(self.source, index)
        except Exception as error:  # decoders may raise anything; skip the file
            return index, None, f"{self.source.name(index)} ({first_line(error)})"
        return index, made, int(self.numbers[index])


def _collate(items: list):
    good = [(index, made, label) for index, made, label in items if made is not None]
    failed = [name for _, made, name in items if made is None]
    if not good:
        return None, None, None, failed
    rows, made, labels = zip(*good, strict=True)
    joined = [torch.from_numpy(np.concatenate(part)) for part in zip(*made, strict=True)]
    return share((torch.tensor(rows), joined, torch.tensor(labels), failed))


@dataclass(frozen=True)
class Batch:
    """Vectors (n, clips, D) by name, labels (n,) and indices of a batch of examples; n may be 0."""

    rows: torch.Tensor
    vectors: dict[str, torch.Tensor]
    labels: torch.Tensor
    failed: list[str]


@torch.no_grad()
def embedded(
    embed: Embed,
    source: Source,
    transform: Transform,
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Embed every `world_size`-th example from `rank` on; labels are the source's `numbers`.

    All processes must call `embed` the same number of times under FSDP, so a process that runs out of data embeds a
    blank example. Its vectors have the same width, as gathering requires.

    Args:
        embed: model inputs of a batch -> {name: vectors (B, D)}.
        batch_size: images or clips per batch.
    """
    total, size = len(source), max(1, batch_size // transform.num_clips)
    loader = DataLoader(
        _Examples(source, range(rank, total, world_size), transform),
        batch_size=size,
        num_workers=min(num_workers, os.cpu_count() or 1),
        collate_fn=_collate,
        worker_init_fn=start_worker,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # do not use the global random state
    )
    loaded = batches(loader)
    nothing: Any = (None, None, None, [])
    for _ in range(max(1, math.ceil(math.ceil(total / world_size) / size))):
        rows, made, labels, failed = next(loaded, nothing)
        vectors = embed(transform.inputs(*(made or transform.blank(source)), device=device))
        if made:
            vectors = {name: v.float().unflatten(0, (-1, transform.num_clips)) for name, v in vectors.items()}
        else:  # a blank example has one clip
            rows = labels = torch.zeros(0, dtype=torch.long)
            vectors = {name: v.new_zeros(0, transform.num_clips, v.shape[1]).float() for name, v in vectors.items()}
        yield Batch(rows, vectors, labels, failed)


def extract(embed: Embed, source: Source, transform: Transform, **how: Any) -> dict[str, Features]:
    """This process's vectors (N, clips, D) by name, in memory; arguments as in `embedded`."""
    parts = list(embedded(embed, source, transform, **how))
    labels = torch.cat([part.labels for part in parts]).to(how["device"])
    failed = [name for part in parts for name in part.failed]
    names = parts[0].vectors
    return {name: Features(torch.cat([part.vectors[name] for part in parts]), labels, failed) for name in names}


def clip_average(vectors: torch.Tensor) -> torch.Tensor:
    """One vector (N, D) per video for kNN and retrieval: the mean of its clips' unit vectors (N, clips, D)."""
    return F.normalize(vectors, dim=-1).mean(1)


def encoder_embedding(encoder: nn.Module) -> Embed:
    """Embedding function: pooled features "" of an image encoder; for AVID, "video" and "audio" and the embeddings of
    both.
    """
    names = {"": "pooler_output", "video_embeds": "video_embeds", "audio_embeds": "audio_embeds"}
    names |= {"video": "video_pooler_output", "audio": "audio_pooler_output"}

    def embed(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        output = encoder(**inputs)
        return {name: output[key].flatten(1) for name, key in names.items() if output.get(key) is not None}

    return embed
