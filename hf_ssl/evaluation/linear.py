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
    return _accuracy(train, test, F.cross_entropy, lambda scores: scores.softmax(-1), (weight_decay, 0), max_iter)


def linear_svm_accuracy(train: Features, test: Features, *, c: float = 10.0, max_iter: int = 1000) -> float:
    """As `linear_accuracy`, by one linear SVM for each class against the rest; the published c is 10 (DCASE: 1).

    liblinear's default problem: the hinge is squared, for a gradient everywhere (the published one is not), and the
    bias is penalised too. Features are divided by std + 0.01, as published.
    """

    def squared_hinge(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        signs = F.one_hot(targets, scores.shape[1]) * 2 - 1
        return (1 - signs * scores).clamp(min=0).square().sum(1).mean()

    decay = 1 / (c * max(1, _labelled(train)[0].shape[:2].numel()))
    return _accuracy(train, test, squared_hinge, lambda scores: scores, (decay, decay), max_iter, eps=0.01)


def kfold_accuracy(
    features: Features,
    folds: torch.Tensor,
    test: Features | None = None,
    *,
    accuracy: Callable[[Features, Features], float] = linear_svm_accuracy,
) -> float:
    """Mean over the folds of the accuracy on one fold after training on the others.

    Args:
        features: N labelled examples; folds: the fold (N,) of each, such as ESC's column `fold`.
        test: the same N examples as they are seen when tested, if otherwise (other windows).

    Raises:
        ValueError: fewer than two folds, or not one for each example.
    """
    test = test or features
    if len(folds) != len(features.labels) or len(folds) != len(test.labels) or len(folds.unique()) < 2:
        raise ValueError("k folds need at least two of them, and the fold of every example.")

    def part(of: Features, mask: torch.Tensor) -> Features:
        return Features(of.vectors[mask], of.labels[mask], of.failed)

    accuracies = [accuracy(part(features, folds != fold), part(test, folds == fold)) for fold in folds.unique()]
    return sum(accuracies) / len(accuracies)


def _accuracy(
    train: Features,
    test: Features,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    activation: Callable[[torch.Tensor], torch.Tensor],
    decay: tuple[float, float],
    max_iter: int,
    eps: float = 0.0,
) -> float:
    (x, labels), (queries, query_labels) = _labelled(train), _labelled(test)  # (N, clips, D), (N,)
    if len(labels) == 0 or len(query_labels) == 0:
        raise ValueError("Linear classification needs labelled examples for both training and test.")
    classes, targets = labels.unique(return_inverse=True)
    targets = targets.repeat_interleave(x.shape[1])
    x = x.flatten(0, 1)
    std, mean = torch.std_mean(x, dim=0, correction=0)
    varies = std > 1e-6 * x.abs().amax(0)  # else float32's rounding would be blown up
    scale = torch.where(varies, 1 / (std + eps), 0)
    weight, bias = _fit((x - mean) * scale, targets, len(classes), loss, decay, max_iter)
    scores = activation((queries - mean) * scale @ weight + bias).mean(1)  # (M, K)
    return (classes[scores.argmax(1)] == query_labels).float().mean().item()


def _labelled(features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    known = features.labels >= 0
    vectors = features.vectors[known]
    dtype = torch.float32 if vectors.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return (vectors[:, None] if vectors.ndim == 2 else vectors).to(dtype), features.labels[known]


def _fit(
    x: torch.Tensor, targets: torch.Tensor, num_classes: int, loss: Callable, decay: tuple[float, float], max_iter: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (D, K) and bias (K,), each with its own decay."""
    weight = x.new_zeros(x.shape[1], num_classes).requires_grad_()
    bias = x.new_zeros(num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iter,
        max_eval=10 * max_iter,
        tolerance_grad=1e-5,
        tolerance_change=1e-10,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = decay[0] / 2 * weight.square().sum() + decay[1] / 2 * bias.square().sum()
        objective = loss(x @ weight + bias, targets) + penalty
        objective.backward()
        return objective

    optimizer.step(closure)
    if optimizer.state[weight]["n_iter"] >= max_iter:
        logger.warning(f"The linear fit has not converged in {max_iter} iterations; more or a stronger penalty help.")
    return weight.detach(), bias.detach()
