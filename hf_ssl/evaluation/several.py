# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Several labels per example: one linear SVM per class and mean average precision, as VISSL evaluates VOC07.

As in its `svm_utils`: features have unit length; squared hinge loss, with weight 2 for positives; C of each class is
chosen by average precision in 3-fold cross-validation, with ignored examples as negatives; average precision is the
area under the envelope of the curve, without ignored examples. Unlike liblinear, which may stop early, the fit is run
to the optimum.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.labels import several_classes, targets_of
from ..data.places import open_place
from ..data.sources import Source, load_source
from ..recipe import DataConfig, MonitorConfig, RecipeError
from .features import Features
from .linear import minimize
from .scores import drawn_anew


_FOLDS = 3
_DRAWS = 200  # bootstrap samples for the standard error
_EPS = 1e-5  # added to norms


def several_targets(
    data: DataConfig, monitor: MonitorConfig, medium: str
) -> tuple[dict[str, Source], dict[str, Tensor], list[Any]]:
    """Bank and queries, their targets (N, K), see `targets_of`, and the K classes.

    Raises:
        RecipeError: there are no lists of labels, or a class has no example in bank or queries.
    """
    splits = {"bank": monitor.bank_split, "queries": monitor.query_split}
    sources, rows = {}, {}
    for side, split in splits.items():
        where = replace(data, image_column=monitor.image_column or data.image_column, label_column=None)
        sources[side] = load_source(where, split, medium).unlabeled()
        sources[side].part = split
        rows[side] = several_classes(open_place(data, False, medium)[split], monitor.label_column, data.path)
    known = {one for some, _ in rows.values() for row in some for one in row or ()}
    if len({isinstance(one, str) for one in known}) > 1:
        raise RecipeError(
            f"The labels of {data.path} are names in one split and numbers in the other; use the same type."
        )
    classes = sorted(known)
    targets = {side: torch.from_numpy(targets_of(*of_side, classes)) for side, of_side in rows.items()}
    for side, split in splits.items():
        lacking = [one for one, here in zip(classes, (targets[side] == 1).any(0).tolist(), strict=True) if not here]
        if lacking or not classes:
            missed = ", ".join(map(str, lacking[:5])) or "no class"
            raise RecipeError(
                f"The split {split!r} of {data.path} has no example of {missed}, so its average precision is "
                "undefined; remove such classes, or choose other splits."
            )
    return sources, targets, classes


def several_svms(
    train: Features, test: Features, *, costs: tuple[float, ...], max_iter: int = 1000
) -> tuple[float, list[dict[str, float]], float]:
    """Mean average precision (0..1) on `test`, "ap" and "C" of each class, and the bootstrap standard error of the
    mean over `test`.

    Args:
        train, test: vectors (N, D) with labels (N, K) of 1, 0 and -1.
    """
    x, y = _unit(train), _unit(test)
    learned = train.labels.clamp(min=0)
    folds = torch.stack([stratified_folds(column) for column in learned.T], 1)
    found = torch.zeros(len(costs), learned.shape[1], dtype=torch.float64)
    for i, c in enumerate(costs):
        machine = _Machines(x, c, max_iter)
        for fold in range(_FOLDS):
            weight = machine.fit(learned.where(folds != fold, -1))
            asked = learned.where(folds == fold, -1)
            found[i] += _precisions(x @ weight, asked, envelope=False) / _FOLDS
    best = found.argmax(0)  # the first of ties
    scores = torch.zeros(len(y), len(best), dtype=torch.float64, device=y.device)
    for i in best.unique().tolist():
        chosen = (best == i).to(y.device)
        scores[:, chosen] = y @ _Machines(x, costs[i], max_iter).fit(learned)[:, chosen]
    of_class = _precisions(scores, test.labels, envelope=True)
    told = [{"ap": ap, "C": float(costs[i])} for ap, i in zip(of_class.tolist(), best.tolist(), strict=True)]
    return of_class.mean().item(), told, _error(scores.cpu(), test.labels.cpu())


def _error(scores: Tensor, targets: Tensor) -> float:
    found = []
    for weights in drawn_anew(len(scores), _DRAWS).long():
        rows = torch.arange(len(scores)).repeat_interleave(weights)
        there = (targets[rows] == 1).any(0)  # a class absent from the sample has no precision
        found.append(_precisions(scores[rows][:, there], targets[rows][:, there], envelope=True).mean())
    return torch.stack(found).std().item()


class _Machines:
    """SVMs with one C on the same vectors: |w|^2 / 2 + C * sum of weighted squared hinges; the bias is a weight, too.

    The vectors are preconditioned for L-BFGS, so that the curvature is nearly the same in all directions.
    """

    def __init__(self, x: Tensor, c: float, max_iter: int):
        self.penalty, self.max_iter = 1 / (2 * c * len(x)), max_iter
        curvature = 2 * x.T @ x / len(x) + 2 * self.penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        self.root = torch.linalg.cholesky(curvature)
        self.x = torch.linalg.solve_triangular(self.root, x.T, upper=False).T

    def fit(self, targets: Tensor) -> Tensor:
        """Weights (D, K) for targets (N, K) of 1, 0, and -1 for ignored examples."""
        sign = 2 * targets.clamp(min=0) - 1
        share = torch.where(targets > 0, 2.0, 1.0) * (targets >= 0) / len(targets)
        turned = self.x.new_zeros(self.x.shape[1], targets.shape[1], requires_grad=True)

        def value_of() -> Tensor:
            hinges = (1 - sign * (self.x @ turned)).clamp(min=0).square()
            total = (share * hinges).sum() + self.penalty * self._weight(turned).square().sum()
            total.backward()
            return total

        minimize([turned], value_of, max_iter=self.max_iter, tolerance_grad=1e-7, tolerance_change=1e-12)
        return self._weight(turned).detach()

    def _weight(self, turned: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.root.T, turned, upper=True)


def average_precision(scores: Tensor, right: Tensor, *, envelope: bool) -> float:
    """Average precision of one class: mean of the precision at each positive example; 0 if there are none.

    Args:
        envelope: use the largest precision at that or a higher recall.
    """
    hits = right[scores.argsort(descending=True, stable=True)].double()
    if not hits.any():
        return 0.0
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)
    if envelope:
        precision = precision.flip(0).cummax(0).values.flip(0)
    return ((precision * hits).sum() / hits.sum()).item()


def stratified_folds(labels: Tensor) -> Tensor:
    """The fold (N,) of each example, as in scikit-learn's `StratifiedKFold` without shuffling.

    Args:
        labels: (N,) of 1 and 0.
    """
    numbers = (labels != labels[0]).long().cpu().numpy()  # in order of appearance
    ordered, folds = np.sort(numbers), np.zeros(len(numbers), dtype=np.int64)
    shares = np.stack([np.bincount(ordered[fold::_FOLDS], minlength=2) for fold in range(_FOLDS)])
    for number in (0, 1):
        folds[numbers == number] = np.arange(_FOLDS).repeat(shares[:, number])
    return torch.from_numpy(folds).to(labels.device)


def _unit(features: Features) -> Tensor:
    """Vectors (N, D + 1): unit length, with a column of ones for the bias."""
    features = features.averaged()
    vectors = torch.cat([v.double() for _, v in features.blocks()])
    unit = vectors / (vectors.norm(dim=1, keepdim=True) + _EPS)
    return torch.cat([unit, unit.new_ones(len(unit), 1)], 1)


def _precisions(scores: Tensor, targets: Tensor, *, envelope: bool) -> Tensor:
    """Average precision (K,) of each class, without ignored examples."""
    columns = zip(scores.T, targets.T, strict=True)
    found = [average_precision(s[t >= 0], t[t >= 0] == 1, envelope=envelope) for s, t in columns]
    return torch.tensor(found, dtype=torch.float64)
