# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Retrieval by class and between video and sound of the same clips, and precision of CMA's positive sets.

AVID has no published cross-modal retrieval protocol; we use cosine similarity of the embeddings of unseen clips. Ties
are resolved in expectation over a random order. An encoder with constant embeddings then gets exactly chance (k / N);
counting ties as hits would give it 100 %, and counting them as misses would punish duplicate clips.
"""

import logging
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..coerce import listed
from ..data.bank import unlabeled_queries
from ..data.folders import SPLITS
from ..data.sources import Source, available_splits
from ..recipe import DataConfig, MonitorConfig, RecipeError
from .features import Features
from .knn import knn_accuracy
from .scores import spread


logger = logging.getLogger(__name__)

TIE = 1e-6  # cosines this close only differ by float32 rounding


def evaluate_clips(
    banks: list[dict[str, Features]], queries: dict[str, Features], *, k: int = 20, temperature: float = 0.1
) -> dict[str, float]:
    """Cross-modal retrieval, and `knn_video`, `knn_audio` against a labeled bank.

    Args:
        banks: training videos, at most once.
    """
    labels = next(iter(queries.values())).labels
    labeled = bool((labels >= 0).any())
    results: dict[str, float] = {}
    if {"video_embeds", "audio_embeds"} <= queries.keys() and len(labels):
        video, audio = (queries[name].averaged().vectors for name in ("video_embeds", "audio_embeds"))
        results |= retrieval(video, audio, labels if labeled else None)
    for bank in banks:
        for tower in ("video", "audio"):
            if tower in bank and labeled and (bank[tower].labels >= 0).any():
                sides = (bank[tower].labeled(), queries[tower].labeled())
                results[f"knn_{tower}"] = knn_accuracy(*sides, k=k, temperature=temperature)
    return results


@torch.no_grad()
def retrieval(video: Tensor, audio: Tensor, labels: Tensor | None = None, *, chunk: int = 1024) -> dict[str, float]:
    """Retrieve each clip's sound among all N from its video, and the reverse.

    Args:
        video, audio: embeddings (N, D) of the same N clips in the same order.
        labels: classes (N,), for precision at 1; clips without a label (-1) are neither queries nor results there.
        chunk: number of queries whose similarities to all N clips are in memory at once.

    Returns:
        `video_to_audio_r1`, `_r5`, `_r10` (recall at k, 0..1), `_median_rank` (from 1), with labels `_p1` (share of
        nearest neighbors of the same class), and the same for `audio_to_video`.

    Raises:
        ValueError: no clips, or different numbers of video and audio embeddings.
    """
    sizes = [len(x) for x in (video, audio, labels) if x is not None]
    if min(sizes) != max(sizes) or len(video) == 0:
        raise ValueError(
            f"Retrieval needs video, sound (and labels) of the same clips, but their numbers are {sizes}."
        )
    video, audio = (
        F.normalize(x.float(), dim=1).nan_to_num(0) for x in (video, audio)
    )  # non-finite vectors are similar to nothing
    labels = None if labels is None else labels.to(video.device)
    ways = (("video_to_audio", video, audio), ("audio_to_video", audio, video))
    return {key: value for way in ways for key, value in _one_way(*way, labels, chunk).items()}


def _one_way(name: str, queries: Tensor, gallery: Tensor, labels: Tensor | None, chunk: int) -> dict[str, float]:
    better, tied, precision = [], [], []
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ gallery.T  # (m, N)
        own = similarity.diagonal(start)[:, None]
        better.append((similarity > own + TIE).sum(1))
        tied.append(((similarity - own).abs() <= TIE).sum(1))  # includes the clip itself
        if labels is not None:
            asking = labels[start : start + chunk] >= 0
            similarity, classes = similarity[asking][:, labels >= 0], labels[labels >= 0]
            if len(similarity):
                nearest = similarity >= similarity.amax(1, keepdim=True) - TIE
                right = nearest & (classes == labels[start : start + chunk][asking][:, None])
                precision.append(right.sum(1) / nearest.sum(1))
    ahead, level = torch.cat(better).float(), torch.cat(tied).float()
    # The rank of the clip itself is uniform over ahead + 1 .. ahead + level.
    results = {f"{name}_r{k}": ((k - ahead) / level).clamp(0, 1).mean().item() for k in (1, 5, 10)}
    results[f"{name}_median_rank"] = (ahead + (level + 1) / 2).quantile(0.5).item()
    if precision:
        results[f"{name}_p1"] = torch.cat(precision).mean().item()
    return results


def gallery(where: DataConfig, monitor: MonitorConfig, kind: str) -> Source:
    """The split to retrieve within: `monitor.query_split`, with or without labels.

    If there is no split "test", "validation" or the only split is used; nothing is trained on any of them.

    Raises:
        RecipeError: the split does not exist.
    """
    splits, asked = available_splits(where, kind), monitor.query_split
    other = [name for name in sorted(splits) if SPLITS.get(name) in ("test", "validation")] or list(splits)
    if asked not in splits and asked == "test" and len(other) == 1:
        logger.info(f"{where.path} has no split 'test'; retrieval is within {other[0]!r}.")
        asked = other[0]
    if asked not in splits:
        raise RecipeError(f"{where.path} has no split {asked!r}; set --query-split to one of {listed(splits)}.")
    return unlabeled_queries(where, replace(monitor, query_split=asked), kind)


def has_pairs(features: Features) -> bool:
    """Whether any class has two examples."""
    return bool((features.labeled().labels.unique(return_counts=True)[1] > 1).any())


@torch.no_grad()
def mean_average_precision(features: Features, *, chunk: int = 256) -> dict[str, Any]:
    """For each labeled example, retrieve those of the same class (or instance) among all others, by cosine.

    Returns:
        "map": mean average precision; "p1": share whose nearest neighbor has the same class; "errors": the standard
        error of "map", from the std of the average precisions. Examples alone in their class are not queries.

    Raises:
        ValueError: no class has two examples.
    """
    known = features.labeled().averaged()
    precisions, first = [], []
    for part, asked in known.blocks(chunk):
        similarity = torch.cat(
            [F.normalize(asked, dim=1) @ F.normalize(keys, dim=1).T for _, keys in known.blocks(16384)], 1
        )
        own = torch.arange(part.start, part.start + len(asked), device=asked.device)
        similarity[torch.arange(len(asked), device=asked.device), own] = -torch.inf
        order = similarity.argsort(dim=1, descending=True, stable=True)[:, :-1]  # without the query itself
        right = known.labels[order] == known.labels[own][:, None]
        asking = right.any(1)
        places = torch.arange(1, right.shape[1] + 1, device=asked.device)
        precision = right.cumsum(1) / places
        precisions.append(((precision * right).sum(1) / right.sum(1))[asking])
        first.append(right[asking, 0].float())
    if sum(map(len, first)) == 0:
        raise ValueError("Retrieval by class needs a class with two examples.")
    found = spread(torch.cat(precisions).tolist())
    return {
        "map": found["value"],
        "p1": torch.cat(first).mean().item(),
        "errors": {"map": found["standard_error"]},
    }


def positive_precision(positives: Tensor, labels: Tensor) -> float:
    """Share (0..1) of CMA's positives with the same class as their anchor.

    Args:
        positives: instances (N, k) in the set of each of N anchors.
        labels: classes (N,); pairs with an unlabeled instance (-1) are ignored.

    Raises:
        ValueError: no pair has labels.
    """
    found, anchors = labels[positives.long()], labels[:, None]  # (N, k), (N, 1)
    known = (found >= 0) & (anchors >= 0)
    if not known.any():
        raise ValueError("Precision of the positive sets needs labeled instances.")
    return ((found == anchors) & known).sum().item() / known.sum().item()
