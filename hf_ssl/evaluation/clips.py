# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Features of both towers on videos with sound, or of one on sound alone: several clips of each, evenly spaced."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..data.clips import ClipTransform, eval_clip, eval_sound
from ..data.sources import Source
from .features import Features, clip_average
from .knn import knn_accuracy
from .retrieval import retrieval


Embed = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class ClipFeatures:
    """`vectors`: name -> (N, clips, D) float32; `labels` (N,) int64, -1 for none; `failed`: unread files."""

    vectors: dict[str, torch.Tensor]
    labels: torch.Tensor
    failed: list[str]


class _EvalClips(Dataset):
    def __init__(self, source: Source, indices: range, config, num_clips: int):
        self.source, self.indices, self.config, self.num_clips = source, indices, config, num_clips

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int):
        index = self.indices[i]
        read = eval_clip if "video" in self.source.columns else eval_sound
        try:
            found = read(self.source.cell(index), self.config, self.num_clips)
        except Exception as error:  # any decoder's failure is the same to us: this file does not count
            return None, f"{self.source.name(index)} ({error})"
        frames, sound = found if isinstance(found, tuple) else (None, found)
        return (frames, sound), self.source.label(index)


def _collate(items: list):
    good = [(*clip, -1 if label is None else label) for clip, label in items if clip is not None]
    failed = [name for clip, name in items if clip is None]
    if not good:
        return None, None, None, failed
    frames, sound, labels = zip(*good, strict=True)
    seen = None if frames[0] is None else torch.from_numpy(np.concatenate(frames))
    return seen, torch.from_numpy(np.concatenate(sound)), torch.tensor(labels), failed


@torch.no_grad()
def extract_clips(
    embed: Embed,
    source: Source,
    config,
    *,
    device: torch.device,
    batch_size: int = 64,
    num_workers: int = 0,
    num_clips: int = 1,
    max_examples: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> ClipFeatures:
    """Embed every `world_size`-th video from `rank` on, up to `max_examples` in all.

    Every process calls `embed` equally often: on a black and silent clip where it has no batch.

    Args:
        embed: model inputs of some clips -> name -> vectors (clips, D).
        config: `AvidConfig`, which says how long and how large clips are.
    """
    total = min(len(source), max_examples or len(source))
    loader = DataLoader(
        _EvalClips(source, range(rank, total, world_size), config, num_clips),
        batch_size=max(1, batch_size // num_clips),
        num_workers=min(num_workers, os.cpu_count() or 1),
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global random state stays untouched
    )
    transform = ClipTransform(config)
    black = torch.zeros(
        1, config.num_frames, config.image_size, config.image_size, config.num_channels, dtype=torch.uint8
    )
    silence = torch.zeros(1, int(config.audio_seconds * config.sampling_rate))
    found: list[dict[str, torch.Tensor]] = []
    labels, failed = [], []
    batches = iter(loader)
    for _ in range(math.ceil(math.ceil(total / world_size) / loader.batch_size)):
        frames, sound, batch_labels, batch_failed = next(batches, (None, None, None, []))
        failed += batch_failed
        pair = (black if "video" in source.columns else None, silence) if sound is None else (frames, sound)
        vectors = embed(transform.normalize(*pair, device))
        if sound is not None:
            found.append({name: v.float().unflatten(0, (-1, num_clips)) for name, v in vectors.items()})
            labels.append(batch_labels)
    if not found and total:  # a process without clips has vectors of the others' widths: they are gathered
        found = [{name: v.new_zeros(0, num_clips, v.shape[1], dtype=torch.float32) for name, v in vectors.items()}]
    return ClipFeatures(
        {name: torch.cat([vectors[name] for vectors in found]) for name in (found[0] if found else {})},
        torch.cat(labels).to(device) if labels else torch.zeros(0, dtype=torch.long, device=device),
        failed,
    )


def evaluate_clips(
    banks: list[ClipFeatures], queries: ClipFeatures, *, k: int = 20, temperature: float = 0.1
) -> dict[str, float]:
    """Retrieval between the towers, and `knn_video`, `knn_audio` against a labelled bank.

    Args:
        banks: training videos, at most once.
    """
    labelled = bool((queries.labels >= 0).any())
    results = {}
    if {"video_embeds", "audio_embeds"} <= queries.vectors.keys() and len(queries.labels):
        video, audio = (clip_average(queries.vectors[name]) for name in ("video_embeds", "audio_embeds"))
        results |= retrieval(video, audio, queries.labels if labelled else None)
    for bank in banks:
        for tower in ("video", "audio"):
            if tower in bank.vectors and labelled and (bank.labels >= 0).any():
                sides = [tower_features(side, tower) for side in (bank, queries)]
                sides = [Features(clip_average(side.vectors), side.labels, side.failed) for side in sides]
                results[f"knn_{tower}"] = knn_accuracy(*sides, k=k, temperature=temperature)
    return results


def tower_features(clips: ClipFeatures, tower: str) -> Features:
    """The labelled videos' vectors (N, clips, D) of one tower."""
    known = clips.labels >= 0
    return Features(clips.vectors[tower][known], clips.labels[known], clips.failed)


def clip_embedding(model) -> Embed:
    """Both towers of a transformers encoder, ours, as a function of its inputs: embeddings, and pooled features."""

    def embed(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        output = model(**inputs)
        names = {"video_embeds": "video_embeds", "audio_embeds": "audio_embeds"}
        names |= {"video": "video_pooler_output", "audio": "audio_pooler_output"}
        return {name: output[key] for name, key in names.items() if output.get(key) is not None}

    return embed
