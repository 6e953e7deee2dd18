# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Linear classifiers on frozen features, fitted by L-BFGS, without a learning rate or seed.

L-BFGS stops where no entry of the gradient exceeds 1e-5. With weak penalties that is short of the optimum.

Features are standardized with the mean and std of the training set. Several clips per example, (N, clips, D), are
separate examples in training; in testing, their scores are averaged. Features larger than memory are processed in
blocks.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.bank import place_in_class
from .features import Features
from .scores import Scores


logger = logging.getLogger(__name__)

CS = tuple(10.0**power for power in range(-4, 5))  # candidates for C of logistic regression
_HELD_OUT = 5  # one in this many training examples of each class is held out to choose C
_AT_ONCE = 2**29  # bytes of standardized features to keep; larger ones are recomputed in every pass


@dataclass
class Linear:
    """A fitted classifier: scores (n, K) of vectors x (n, D) are ((x - mean) * scale) weight + bias, for `classes`."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def scores(self, vectors: Tensor) -> Tensor:
        return (vectors.to(self.mean.dtype) - self.mean) * self.scale @ self.weight + self.bias


def logistic_regression(train: Features, *, cs: tuple[float, ...] = CS, max_iter: int = 1000) -> tuple[Linear, float]:
    """Fit multinomial logistic regression; also return the chosen C.

    C (as in scikit-learn) is chosen by the accuracy on a held-out fifth of each class of `train`; ties go to the
    strongest penalty. The final fit uses all of `train`.
    """
    best = cs[0]
    place, size = place_in_class(train.labels.cpu().numpy())
    held_out = torch.from_numpy(place < np.maximum(size // _HELD_OUT, size > 1))
    found = None
    if len(cs) > 1 and held_out.any():
        fitted, asked = train.select((~held_out).nonzero().flatten()), train.select(held_out.nonzero().flatten())
        accuracies = {}
        for c in sorted(cs):
            found = fit(fitted, _cross_entropy(c, len(fitted)), max_iter=max_iter, start=found)
            accuracies[c] = accuracy_of(found, asked)["top1"]
        best = max(accuracies, key=lambda c: (accuracies[c], -c))
    elif len(cs) > 1:
        best = 1.0
    return fit(train, _cross_entropy(best, len(train)), max_iter=max_iter), best


@dataclass(frozen=True)
class Objective:
    """Objective: the sum of `loss(scores, targets)` over the examples plus `penalty(weight, bias)`, divided by
    `count`. `activation` is applied to scores before they are averaged over the clips of a test example; `eps` is
    added to the std.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    penalty: Callable[[Tensor, Tensor], Tensor]
    count: float
    activation: Callable[[Tensor], Tensor]
    eps: float = 0.0


def _cross_entropy(c: float, count: int) -> Objective:
    return Objective(
        lambda scores, targets: F.cross_entropy(scores, targets, reduction="sum"),
        lambda weight, bias: weight.square().sum() / (2 * c),
        count,
        lambda scores: scores.softmax(-1),
    )


def _one_against_rest(c: float, count: int) -> Objective:
    """Squared hinge loss, as in liblinear's default, which is differentiable; the bias is penalized, too."""

    def loss(scores: Tensor, targets: Tensor) -> Tensor:
        signs = 2 * F.one_hot(targets, scores.shape[1]) - 1
        return c * (1 - signs * scores).clamp(min=0).square().sum()

    def penalty(weight: Tensor, bias: Tensor) -> Tensor:
        return (weight.square().sum() + bias.square().sum()) / 2

    return Objective(loss, penalty, c * count, lambda scores: scores, eps=0.01)


def linear_accuracy(train: Features, test: Features, *, weight_decay: float = 1e-3, max_iter: int = 1000) -> float:
    """Accuracy (0..1) on `test` of multinomial logistic regression on standardized features.

    Minimizes mean cross-entropy + weight_decay / 2 * |W|^2 without penalizing the bias; scikit-learn's C is
    1 / (weight_decay * number of training clips).

    Raises:
        ValueError: train or test have no labeled example.
    """
    return _accuracy(train, test, lambda count: _cross_entropy(1 / (weight_decay * count), count), max_iter)


def linear_svm_accuracy(train: Features, test: Features, *, c: float = 10.0, max_iter: int = 1000) -> float:
    """Like `linear_accuracy`, with one-vs-rest linear SVMs; the published c is 10 (DCASE: 1).

    Features are divided by std + 0.01, as published. The published hinge is not squared.
    """
    return _accuracy(train, test, lambda count: _one_against_rest(c, count), max_iter)


def kfold_accuracy(features: Features, folds: Tensor, *, accuracy: Callable = linear_svm_accuracy) -> float:
    """Mean over the folds of `accuracy(train, test)` on one fold after training on the others.

    Args:
        features: N labeled examples; folds: fold (N,) of each, such as ESC's column `fold`.

    Raises:
        ValueError: fewer than two folds, or an example without one.
    """
    if len(folds) != len(features) or len(folds.unique()) < 2:
        raise ValueError("Cross-validation needs at least two folds, and a fold for every example.")

    def part(mask: Tensor) -> Features:
        return features.select(mask.nonzero().flatten())

    accuracies = [accuracy(part(folds != fold), part(folds == fold)) for fold in folds.unique()]
    return sum(accuracies) / len(accuracies)


def _accuracy(train: Features, test: Features, objective: Callable[[int], Objective], max_iter: int) -> float:
    train, test = train.labeled(), test.labeled()
    if len(train) == 0 or len(test) == 0:
        raise ValueError("Linear classification needs labeled examples for both training and test.")
    clips = train.vectors.shape[1] if train.vectors.ndim == 3 else 1
    chosen = objective(len(train) * clips)
    return accuracy_of(fit(train, chosen, max_iter=max_iter), test, chosen.activation)["top1"]


def accuracy_of(
    model: Linear, test: Features, activation: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(-1)
) -> dict[str, Any]:
    """Accuracies of a classifier, see `Scores`."""
    scores = Scores(model.classes)
    with torch.no_grad():
        for part, vectors in test.blocks():
            scores.add(activation(model.scores(_clips(vectors))).mean(1), test.labels[part])
    return scores.read()


def _clips(vectors: Tensor) -> Tensor:
    return vectors[:, None] if vectors.ndim == 2 else vectors  # (n, clips, D)


def fit(train: Features, objective: Objective, *, max_iter: int = 1000, start: Linear | None = None) -> Linear:
    """Minimize an objective over labeled features, starting from another classifier or from zero."""
    device = train.vectors.device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    classes, targets = train.labels.unique(return_inverse=True)
    mean, scale = _standardization(train, dtype, objective.eps)
    if start is None:
        weight = torch.zeros(len(mean), len(classes), dtype=dtype, device=device)
        bias = torch.zeros(len(classes), dtype=dtype, device=device)
    else:  # convert to this standardization; the scores stay the same
        weight = start.weight * (start.scale / scale.where(scale > 0, torch.ones_like(scale)))[:, None]
        bias = start.bias + (mean - start.mean) * start.scale @ start.weight
    weight.requires_grad_(), bias.requires_grad_()
    parts = _parts(train, targets, mean, scale)

    def value_of() -> Tensor:
        total = objective.penalty(weight, bias) / objective.count
        total.backward()
        total = total.detach()
        for x, asked in parts():
            value = objective.loss(x @ weight + bias, asked) / objective.count
            value.backward()
            total = total + value.detach()
        return total

    minimize([weight, bias], value_of, max_iter=max_iter)
    return Linear(mean, scale, weight.detach(), bias.detach(), classes)


def minimize(
    tensors: list[Tensor],
    value_of: Callable[[], Tensor],
    *,
    max_iter: int,
    tolerance_grad: float = 1e-5,
    tolerance_change: float = 1e-10,
) -> None:
    """L-BFGS, in place; `value_of` returns the value and sets the gradients of the tensors."""
    optimizer = torch.optim.LBFGS(
        tensors,
        max_iter=max_iter,
        max_eval=10 * max_iter,
        tolerance_grad=tolerance_grad,
        tolerance_change=tolerance_change,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        return value_of()

    optimizer.step(closure)
    if optimizer.state[tensors[0]]["n_iter"] >= max_iter:
        logger.warning(
            f"The linear classifier did not converge in {max_iter} iterations; increase max_iter or the penalty."
        )


def _standardization(train: Features, dtype: torch.dtype, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / std (D,) of all vectors; 0 for dimensions that are constant up to rounding."""
    total: Any = 0
    largest: Any = None
    count = 0
    for _, vectors in train.blocks():
        x = vectors.flatten(0, -2).to(dtype)
        total, count = total + x.sum(0), count + len(x)
        now = x.abs().amax(0)
        largest = now if largest is None else torch.maximum(largest, now)
    mean = total / count
    square = sum((vectors.flatten(0, -2).to(dtype) - mean).square().sum(0) for _, vectors in train.blocks())
    std = (square / count).sqrt()
    return mean, torch.where(std > 1e-6 * largest, 1 / (std + eps), 0)


def _parts(
    train: Features, targets: Tensor, mean: Tensor, scale: Tensor
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Iterate over standardized vectors and their targets, clip by clip."""

    def made() -> Iterator[tuple[Tensor, Tensor]]:
        for part, vectors in train.blocks():
            x = _clips(vectors)
            asked = targets[part].repeat_interleave(x.shape[1], 0)
            yield (x.flatten(0, 1).to(mean.dtype) - mean) * scale, asked

    if len(train) * train.vectors[:1].numel() * mean.element_size() > _AT_ONCE:
        return made
    kept = list(made())
    return lambda: iter(kept)
