# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Weighted k-nearest-neighbor classification on frozen features.

https://huggingface.co/papers/1805.01978, section 3.4.
Votes are weighted by exp(similarity / temperature); nothing is fitted. (Normalizing the weights, as DINO's softmax
does, gives the same classes, since a common factor does not change a vote.)
"""

from typing import Any

import torch
import torch.nn.functional as F

from .features import Features
from .scores import Scores


@torch.no_grad()
def knn(
    bank: Features,
    queries: Features,
    *,
    k: tuple[int, ...] = (20,),
    temperature: float = 0.1,
    normalize: bool = True,
    chunk: int = 1024,
) -> dict[int, dict[str, Any]]:
    """Accuracies of `queries` by a vote of their nearest neighbors in `bank`, for every k.

    Several clips per example, (N, clips, D), are averaged first. Classes are integers; -1 is ignored. Vectors and
    similarities are processed in blocks, so neither is in memory as a whole.

    Args:
        normalize: use cosine similarity; otherwise the dot product (VISSL).

    Returns:
        k -> "top1", "top5", "mean_per_class" (0..1) and "errors", see `Scores`.

    Raises:
        ValueError: bank or queries have no labeled image.
    """
    bank, queries = bank.labeled().averaged(), queries.labeled().averaged()
    if len(bank) == 0 or len(queries) == 0:
        raise ValueError("kNN needs labeled images in both the bank and the queries.")
    classes, targets = bank.labels.unique(return_inverse=True)
    scores = {one: Scores(classes) for one in k}
    for part, asked in queries.blocks(chunk):
        similarity, neighbors = nearest(_ready(asked, normalize), bank, min(max(k), len(bank)), normalize)
        for one, score in scores.items():
            near = similarity[:, :one]
            weights = ((near - near[:, :1]) / temperature).exp()  # a common factor does not change the vote
            votes = torch.zeros(len(asked), len(classes), device=asked.device)
            votes.scatter_add_(1, targets[neighbors[:, :one]], weights)
            score.add(votes, queries.labels[part])
    return {one: score.read() for one, score in scores.items()}


def knn_accuracy(
    bank: Features, queries: Features, *, k: int = 20, temperature: float = 0.1, chunk: int = 1024
) -> float:
    """kNN accuracy (0..1) of `queries` (M, D) with `k` neighbors in `bank` (N, D).

    Raises:
        ValueError: see `knn`.
    """
    return knn(bank, queries, k=(k,), temperature=temperature, chunk=chunk)[k]["top1"]


def _ready(vectors: torch.Tensor, normalize: bool) -> torch.Tensor:
    return F.normalize(vectors, dim=1) if normalize else vectors


def nearest(asked: torch.Tensor, bank: Features, k: int, normalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities (m, k) and indices of the nearest bank vectors, highest first."""
    best: torch.Tensor | None = None
    numbers: torch.Tensor | None = None
    for part, keys in bank.blocks(16384):
        found, place = (asked @ _ready(keys, normalize).T).topk(min(k, len(keys)), dim=1)
        place = place + part.start
        if best is not None and numbers is not None:
            found, order = torch.cat([best, found], 1).topk(min(k, best.shape[1] + found.shape[1]), dim=1)
            place = torch.cat([numbers, place], 1).gather(1, order)
        best, numbers = found, place
    assert best is not None and numbers is not None, "a bank is not empty"
    return best, numbers
