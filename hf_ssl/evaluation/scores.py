# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Accuracies of predicted classes, counted batch by batch."""

import math
import statistics

import torch


class Scores:
    """Top-1 and top-5 accuracy, and the mean of the accuracies of each class.

    Args:
        classes: (K,) the class that each column of the scores stands for. Examples of others are told wrong.
    """

    def __init__(self, classes: torch.Tensor):
        self.classes = classes
        self._asked: list[torch.Tensor] = []
        self._hits: list[torch.Tensor] = []

    def add(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Scores (n, K) and classes (n,) of some examples."""
        order = scores.topk(min(5, scores.shape[1]), dim=1).indices
        self._hits.append((self.classes[order] == labels[:, None]).cpu())
        self._asked.append(labels.cpu())

    def read(self) -> dict[str, float]:
        """Accuracies, 0..1; there is no top-5 of five classes or fewer, which it always is."""
        hits, asked = torch.cat(self._hits), torch.cat(self._asked)
        first = hits[:, 0].float()
        of_class = [first[asked == one].mean() for one in asked.unique()]
        found = {"top1": first.mean().item(), "mean_per_class": torch.stack(of_class).mean().item()}
        return found | ({"top5": hits.any(1).float().mean().item()} if len(self.classes) > 5 else {})


def is_share(name: str) -> bool:
    """Whether a figure of this name is a share of the examples that are judged, and no mean of others."""
    return not name.endswith(("mean_per_class", "map"))


def standard_error(share: float, count: int) -> float:
    """Of a share of `count` examples that were drawn at random."""
    return math.sqrt(share * (1 - share) / count)


def spread(values: list[float]) -> dict[str, float]:
    """Mean, sample standard deviation and standard error over seeds or draws."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "value": statistics.fmean(values),
        "spread": deviation,
        "standard_error": deviation / math.sqrt(len(values)),
    }
