# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Weighted k-nearest-neighbour classification on frozen features.

https://huggingface.co/papers/1805.01978, section 3.4.
Cosine similarity, votes weighted by exp(similarity / temperature), evaluated once with no parameter fitted.
"""

import torch
import torch.nn.functional as F

from .features import Features, clip_average


@torch.no_grad()
def knn_accuracy(
    bank: Features, queries: Features, *, k: int = 20, temperature: float = 0.1, chunk: int = 1024
) -> float:
    """Share of `queries` (M, D) whose class wins the vote of their `k` nearest neighbours in `bank` (N, D), 0..1.

    Several clips of each, (N, clips, D), are averaged first. Classes are any whole numbers but -1, which is left out.

    Raises:
        ValueError: no labelled image on one of the two sides.
    """
    bank, queries = bank.labelled(), queries.labelled()
    if len(bank.labels) == 0 or len(queries.labels) == 0:
        raise ValueError("kNN needs labelled images in both the bank and the queries.")
    k = min(k, len(bank.labels))
    classes, targets = bank.labels.unique(return_inverse=True)
    keys, asked = (x.vectors if x.vectors.ndim == 2 else clip_average(x.vectors) for x in (bank, queries))
    keys = F.normalize(keys, dim=1)
    correct = torch.zeros((), dtype=torch.long, device=keys.device)
    for start in range(0, len(queries.labels), chunk):
        query = F.normalize(asked[start : start + chunk], dim=1)
        similarity, neighbours = (query @ keys.T).topk(k, dim=1)  # (m, k)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # a common factor does not change the vote
        votes = torch.zeros(len(query), len(classes), device=keys.device)
        votes.scatter_add_(1, targets[neighbours], weights)
        correct += (classes[votes.argmax(1)] == queries.labels[start : start + chunk]).sum()
    return correct.item() / len(queries.labels)
