# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Accuracies, accumulated over batches."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Scores:
    """Top-1, top-5 and mean per-class accuracy.

    Args:
        classes: (K,) class of each column of the scores. Examples of other classes count as errors.
    """

    def __init__(self, classes: torch.Tensor):
        self.classes = classes
        self._asked: list[torch.Tensor] = []
        self._hits: list[torch.Tensor] = []

    def add(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Add scores (n, K) and classes (n,) of a batch."""
        order = scores.topk(min(5, scores.shape[1]), dim=1).indices
        self._hits.append((self.classes[order] == labels[:, None]).cpu())
        self._asked.append(labels.cpu())

    def read(self) -> dict[str, Any]:
        """Accuracies, 0..1; no top-5 for five classes or fewer, where it is always 1.

        "errors" has the standard error of the mean per-class accuracy, as the mean of independent proportions.
        """
        hits, asked = torch.cat(self._hits), torch.cat(self._asked)
        first = hits[:, 0].float()
        of_class = [first[asked == one] for one in asked.unique()]
        shares = torch.stack([one.mean() for one in of_class])
        found: dict[str, Any] = {"top1": first.mean().item(), "mean_per_class": shares.mean().item()}
        if len(self.classes) > 5:
            found["top5"] = hits.any(1).float().mean().item()
        variances = shares * (1 - shares) / torch.tensor([len(one) for one in of_class])
        return found | {"errors": {"mean_per_class": variances.sum().sqrt().item() / len(of_class)}}


def standard_error(share: float, count: int) -> float:
    """Standard error of a proportion of `count` randomly drawn examples."""
    return math.sqrt(share * (1 - share) / count)


def spread(values: list[float]) -> dict[str, float]:
    """Mean, sample standard deviation and standard error over seeds or draws."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "value": statistics.fmean(values),
        "spread": deviation,
        "standard_error": deviation / math.sqrt(len(values)),
    }


def bootstrap_error(rows: Tensor, statistic: Callable[[Tensor], Tensor]) -> float:
    """Bootstrap standard error of a statistic of sums.

    Args:
        rows: summand of each example, (N, ...).
        statistic: sums (draws, ...) -> values (draws,).
    """
    flat, found = rows.cpu().double().flatten(1), []
    for weights in drawn_anew(len(rows)).split(50):
        found.append(statistic((weights @ flat).unflatten(1, rows.shape[1:])))
    return torch.cat(found).std().item()


def drawn_anew(count: int, draws: int = 1000) -> Tensor:
    """How often each of `count` examples occurs in bootstrap samples, (draws, count) float64."""
    drawn = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(0))
    once = torch.ones(1, dtype=torch.float64).expand(draws, count)
    return torch.zeros(draws, count, dtype=torch.float64).scatter_add_(1, drawn, once)
