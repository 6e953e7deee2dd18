# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The published protocols of evaluation, by name: settings, and where they stand. docs/evaluation.md has the table."""

from dataclasses import dataclass
from typing import Any

from .linear import CS


@dataclass(frozen=True)
class KNN:
    """Weighted kNN vote; see `hf_ssl.evaluation.knn`."""

    source: str
    k: tuple[int, ...] = (20,)
    temperature: float = 0.1
    normalize: bool = True

    def said(self) -> str:
        return f"k={','.join(map(str, self.k))}, T={self.temperature:g}" + ("" if self.normalize else ", dot product")


@dataclass(frozen=True)
class Logistic:
    """L-BFGS on standardized features; C is chosen on a held-out fifth of the training examples."""

    source: str
    cs: tuple[float, ...] = CS

    def said(self) -> str:
        return (
            f"C of {self.cs[0]:g} to {self.cs[-1]:g}, chosen on a fifth of train"
            if len(self.cs) > 1
            else f"C={self.cs[0]:g}"
        )


@dataclass(frozen=True)
class SVM:
    """One linear SVM a class against the rest, squared hinge; mean average precision where labels are several."""

    source: str
    c: float = 10.0

    def said(self) -> str:
        return f"C={self.c:g}"


@dataclass(frozen=True)
class LowShot:
    """Logistic regression on few examples of each class, over several draws.

    Args:
        share: of the training examples, or `per_class` of them.
    """

    source: str
    share: float | None = None
    per_class: int | None = None
    draws: int = 5
    c: float = 1.0

    def said(self) -> str:
        few = f"{self.per_class} per class" if self.share is None else f"{self.share:.0%}"
        return f"{few}, {self.draws} draws, C={self.c:g}"


@dataclass(frozen=True)
class Retrieval:
    """Mean average precision of each example's neighbors of its own class."""

    source: str

    def said(self) -> str:
        return "cosine"


KNN_PROTOCOLS = {
    "hf_ssl": KNN("SwAV's k (arXiv:2006.09882), the temperature of Wu et al. (arXiv:1805.01978)"),
    "lightly": KNN("lightly's benchmarks", k=(200,)),
    "dinov3": KNN("DINOv3's eval/knn.py", k=(10, 20, 100, 200), temperature=0.07),
    "vissl": KNN("VISSL's nearest_neighbor_test", k=(200,), normalize=False),
}
LINEAR_PROTOCOLS = {
    "logistic": Logistic("BYOL's transfer (arXiv:2006.07733, appendix): L-BFGS over l2 values"),
    "svm": SVM("VISSL's low-shot and AVID's audio evaluation: linear SVMs"),
}
LOWSHOT_PROTOCOLS = {
    "1%": LowShot("shares of the training set, drawn anew", share=0.01),
    "10%": LowShot("shares of the training set, drawn anew", share=0.1),
    "1": LowShot("one example of each class", per_class=1),
    "5": LowShot("five examples of each class", per_class=5),
    "10": LowShot("ten examples of each class", per_class=10),
}
RETRIEVAL_PROTOCOLS = {"class": Retrieval("neighbors of the same class; AVID: the other tower's, see retrieval.py")}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "knn": KNN_PROTOCOLS,
    "linear": LINEAR_PROTOCOLS,
    "lowshot": LOWSHOT_PROTOCOLS,
    "retrieval": RETRIEVAL_PROTOCOLS,
}
