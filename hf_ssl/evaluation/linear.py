# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Linear classification of frozen features: logistic regression, and the SVM of the sound benchmarks.

Fitted on all examples at once by L-BFGS from zero, so there is no learning rate, order or seed to choose.
An example may be several clips of a video or windows of a sound, (N, clips, D): each one trains, and at test time the
softmax (https://huggingface.co/papers/2004.12943: Video@1) or the SVM's decision values are averaged over them.
"""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import Features


logger = logging.getLogger(__name__)


def linear_accuracy(train: Features, test: Features, *, weight_decay: float = 1e-3, max_iter: int = 1000) -> float:
    """Share of `test` that multinomial logistic regression on standardised features classifies correctly, 0..1.

    Minimises mean cross-entropy + weight_decay / 2 * |W|^2, the bias left free: scikit-learn's C is
    1 / (weight_decay * number of training clips).

    Args:
        train, test: vectors (N, D) or (N, clips, D), the number of clips may differ; class -1 is left out.

    Raises:
        ValueError: no labelled example on one of the two sides.
    """

    def objective(scores: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.cross_entropy(scores, targets) + weight_decay / 2 * weight.square().sum()

    return _accuracy(train, test, objective, lambda scores: scores.softmax(-1), max_iter)


def linear_svm_accuracy(train: Features, test: Features, *, c: float = 10.0, max_iter: int = 1000) -> float:
    """As `linear_accuracy`, by one linear SVM for each class against the rest; the published c is 10 (DCASE: 1).

    liblinear's default problem: the hinge is squared, for a gradient everywhere (the published one is not), and the
    bias is penalised too. Features are divided by std + 0.01, as published.
    """

    def objective(scores: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        signs = F.one_hot(targets, len(bias)) * 2 - 1
        hinges = (1 - signs * scores).clamp(min=0).square().sum()
        return (c * hinges + (weight.square().sum() + bias.square().sum()) / 2) / (c * len(targets))

    return _accuracy(train, test, objective, lambda scores: scores, max_iter, eps=0.01)


def kfold_accuracy(features: Features, folds: Tensor, *, accuracy: Callable = linear_svm_accuracy) -> float:
    """Mean over the folds of `accuracy(train, test)` on one fold after training on the others.

    Args:
        features: N labelled examples; folds: the fold (N,) of each, such as ESC's column `fold`.

    Raises:
        ValueError: fewer than two folds, or not one for each example.
    """
    if len(folds) != len(features.labels) or len(folds.unique()) < 2:
        raise ValueError("k folds need at least two of them, and the fold of every example.")

    def part(mask: Tensor) -> Features:
        return Features(features.vectors[mask], features.labels[mask], features.failed)

    accuracies = [accuracy(part(folds != fold), part(folds == fold)) for fold in folds.unique()]
    return sum(accuracies) / len(accuracies)


def _accuracy(
    train: Features, test: Features, objective: Callable, activation: Callable, max_iter: int, eps: float = 0.0
) -> float:
    (x, labels), (queries, query_labels) = _labelled(train), _labelled(test)  # (N, clips, D), (N,)
    if len(labels) == 0 or len(query_labels) == 0:
        raise ValueError("Linear classification needs labelled examples for both training and test.")
    classes, targets = labels.unique(return_inverse=True)
    x, targets = x.flatten(0, 1), targets.repeat_interleave(x.shape[1])
    std, mean = torch.std_mean(x, dim=0, correction=0)
    scale = torch.where(std > 1e-6 * x.abs().amax(0), 1 / (std + eps), 0)  # else rounding would be blown up
    x = (x - mean) * scale
    weight, bias = (x.new_zeros(*shape).requires_grad_() for shape in ((x.shape[1], len(classes)), (len(classes),)))
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iter,
        max_eval=10 * max_iter,
        tolerance_grad=1e-5,
        tolerance_change=1e-10,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(x @ weight + bias, targets, weight, bias)
        value.backward()
        return value

    optimizer.step(closure)
    if optimizer.state[weight]["n_iter"] >= max_iter:
        logger.warning(f"The linear fit has not converged in {max_iter} iterations; more or a stronger penalty help.")
    with torch.no_grad():
        scores = activation((queries - mean) * scale @ weight + bias).mean(1)  # (M, K)
    return (classes[scores.argmax(1)] == query_labels).float().mean().item()


def _labelled(features: Features) -> tuple[Tensor, Tensor]:
    features = features.labelled()
    vectors, labels = features.vectors, features.labels
    dtype = torch.float32 if vectors.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return (vectors[:, None] if vectors.ndim == 2 else vectors).to(dtype), labels
