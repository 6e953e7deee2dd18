# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Published evaluation protocols by name, with their settings and sources; docs/evaluation.md has a table."""

from dataclasses import dataclass
from pathlib import Path
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
    """L-BFGS on standardized features; C is chosen on a held-out fifth of the training examples.

    Args:
        weight_decay: use this penalty on the mean cross-entropy instead.
    """

    source: str
    cs: tuple[float, ...] = CS
    weight_decay: float | None = None

    def said(self) -> str:
        if self.weight_decay is not None:
            return f"weight decay {self.weight_decay:g}"
        return (
            f"C of {self.cs[0]:g} to {self.cs[-1]:g}, chosen on a fifth of train"
            if len(self.cs) > 1
            else f"C={self.cs[0]:g}"
        )


@dataclass(frozen=True)
class SVM:
    """One-vs-rest linear SVMs with squared hinge loss; mean average precision for several labels per example."""

    source: str
    c: float = 10.0

    def said(self) -> str:
        return f"C={self.c:g}"


@dataclass(frozen=True)
class SeveralSVM:
    """Mean average precision of one linear SVM per class, with several labels per example; see `several`."""

    source: str
    costs: tuple[float, ...] = (0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000)

    def said(self) -> str:
        return f"SVMs, C of {self.costs[0]:g} to {self.costs[-1]:g} for each class, chosen by 3 folds of train"


@dataclass(frozen=True)
class LowShot:
    """Logistic regression on few examples of each class, over several draws.

    Args:
        share: fraction of the training examples to use, or set `per_class`.
        lists: files with the names of the training examples, instead of draws; see `hf_ssl.evaluation.lists`.
    """

    source: str
    share: float | None = None
    per_class: int | None = None
    draws: int = 5
    c: float = 1.0
    lists: tuple[str, ...] = ()

    def said(self) -> str:
        if self.lists:
            return f"{', '.join(Path(file).name for file in self.lists)}, C={self.c:g}"
        few = f"{self.per_class} per class" if self.share is None else f"{self.share:.0%}"
        return f"{few}, {self.draws} draws, C={self.c:g}"


@dataclass(frozen=True)
class Retrieval:
    """Mean average precision of retrieving examples of the same class, or of annotated queries.

    Args:
        ground_truth: annotation file of ROxford or RParis.
    """

    source: str
    ground_truth: str | None = None

    def said(self) -> str:
        return "by class, cosine" if self.ground_truth is None else f"{Path(self.ground_truth).name}, cosine"


@dataclass(frozen=True)
class Supervised:
    """A classifier trained by gradient descent on augmented images (a random crop, and a flip), in the loop of
    `hf_ssl.training.supervised`.

    Args:
        frozen: train only the linear layer, with the encoder in evaluation mode; otherwise train everything.
        lr: for `batch_size`; several values train several linear layers at once, and the best one on a held-out part
            of the training examples is used.
        head_lr: learning rate of the linear layer, if different.
        milestones: epochs after which the learning rate is multiplied by `gamma`; without any it follows a cosine to
            0, updated per step, or per epoch with `by_epoch`.
        weight_decay: decoupled for AdamW.
        share: fraction of the training examples, drawn with the seed; None for all.
        size: image size; None for the encoder's own.
    """

    source: str
    epochs: float
    batch_size: int = 256
    frozen: bool = True
    optimizer: str = "sgd"
    lr: tuple[float, ...] = (0.3,)
    head_lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    by_epoch: bool = False
    warmup_epochs: float = 0.0
    share: float | None = None
    size: int | None = None
    seeds: int = 1

    def said(self) -> str:
        rates = f"lr {self.lr[0]:g}" if len(self.lr) == 1 else f"{len(self.lr)} lrs, chosen on a tenth of train"
        how = f"{self.optimizer}, {self.epochs:g} epochs, batch {self.batch_size}, {rates}"
        return how + (f", {self.share:.0%} of the labels" if self.share else "")


@dataclass(frozen=True)
class Dense:
    """BatchNorm and a linear layer on each position of the last feature map, trained on crops; see
    `hf_ssl.training.dense`.

    Args:
        size: size of the training crops and test windows; None for the encoder's own.
        scales: range of the image's short side, relative to `size`.
        dropout: dropout of whole channels.
        epochs: instead of `steps`.
    """

    source: str
    steps: int
    batch_size: int = 16
    size: int | None = None
    scales: tuple[float, float] = (0.5, 2.0)
    lr: tuple[float, ...] = (1e-3,)
    weight_decay: float = 1e-2
    warmup: float = 1500 / 40_000
    dropout: float = 0.1
    clip: float = 35.0
    epochs: float | None = None

    def said(self) -> str:
        length = f"{self.steps:,} steps" if self.epochs is None else f"{self.epochs:g} epochs"
        size = "" if self.size is None else f", {self.size} pixels"
        return f"BatchNorm and linear layer, {length}, batch {self.batch_size}, lr {self.lr[0]:g}{size}"


KNN_PROTOCOLS = {
    "hf_ssl": KNN("SwAV's k (arXiv:2006.09882), the temperature of Wu et al. (arXiv:1805.01978)"),
    "lightly": KNN("lightly's benchmarks", k=(200,)),
    "dinov3": KNN("DINOv3's eval/knn.py", k=(10, 20, 100, 200), temperature=0.07),
    "vissl": KNN("VISSL's nearest_neighbor_test", k=(200,), normalize=False),
}
_DINO_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)  # per 256 images
_SEMI: dict[str, Any] = {"frozen": False, "milestones": (12, 16), "gamma": 0.2, "seeds": 5}
LINEAR_PROTOCOLS = {
    "logistic": Logistic("BYOL's transfer (arXiv:2006.07733, appendix): L-BFGS over l2 values"),
    "fixed": Logistic("nothing is chosen", weight_decay=1e-3),
    "svm": SVM("VISSL's low-shot and AVID's audio evaluation: linear SVMs"),
    "voc07": SeveralSVM("VISSL's SVMs on VOC07 (its images are squeezed to 224 pixels; here the encoder's own crop)"),
    "swav": Supervised("SwAV's eval_linear.py", 100, weight_decay=1e-6, by_epoch=True),
    "barlow_twins": Supervised("Barlow Twins' evaluate.py", 100, weight_decay=1e-6, by_epoch=True),
    "byol": Supervised("BYOL's eval_experiment.py", 80, 1024, lr=(0.8,), nesterov=True),
    "simsiam": Supervised("SimSiam's main_lincls.py --lars", 90, 4096, optimizer="larc", lr=(1.6,), by_epoch=True),
    "dinov3": Supervised("DINOv2's and DINOv3's eval/linear.py", 10, 1024, lr=tuple(4 * lr for lr in _DINO_RATES)),
}
LOWSHOT_PROTOCOLS = {
    "1%": LowShot("random subsets of the training set", share=0.01),
    "10%": LowShot("random subsets of the training set", share=0.1),
    "1": LowShot("one example of each class", per_class=1),
    "5": LowShot("five examples of each class", per_class=5),
    "10": LowShot("ten examples of each class", per_class=10),
    "list": LowShot("MSN's imagenet_subsets, whose files list the images (its classifier differs, see the docs)"),
    "swav-1%": Supervised("SwAV's eval_semisup.py", 20, share=0.01, lr=(0.02,), head_lr=5.0, **_SEMI),
    "swav-10%": Supervised("SwAV's eval_semisup.py", 20, share=0.1, lr=(0.01,), head_lr=0.2, **_SEMI),
}
_SEER: dict[str, Any] = {"frozen": False, "lr": (0.0125,), "weight_decay": 1e-4, "nesterov": True}
FINETUNE_PROTOCOLS = {
    "small": Supervised(
        "ours, for a few thousand images: AdamW, three seeds",
        50,
        64,
        frozen=False,
        optimizer="adamw",
        lr=(5e-4,),
        head_lr=5e-3,
        weight_decay=0.05,
        warmup_epochs=5,
        seeds=3,
    ),
    "seer2021": Supervised("SEER (arXiv:2103.01988): 35 epochs, divided by ten once", 35, milestones=(30,), **_SEER),
    "seer2022": Supervised("SEER (arXiv:2202.08360): the same at 384 pixels", 35, size=384, milestones=(30,), **_SEER),
    "vissl": Supervised(
        "VISSL's full fine-tuning", 105, frozen=False, lr=(0.1,), nesterov=True, milestones=(30, 60, 90, 100)
    ),
    "byol": Supervised("BYOL's fine-tuning: 20,000 steps there", 50, frozen=False, lr=(0.01,), nesterov=True),
}
RETRIEVAL_PROTOCOLS = {
    "class": Retrieval("neighbors of the same class; AVID: the other tower's, see retrieval.py"),
    "revisited": Retrieval("Radenovic et al. (arXiv:1803.11285), ROxford and RParis, by their evaluate.py"),
}
DENSE_PROTOCOLS = {
    "small": Dense("ours, for a few thousand images: DINOv3's at the encoder's own size", 2000),
    "dinov3": Dense("DINOv3's eval/segmentation, its linear head on ADE20K", 40_000, size=512),
}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "knn": KNN_PROTOCOLS,
    "linear": LINEAR_PROTOCOLS,
    "lowshot": LOWSHOT_PROTOCOLS,
    "finetune": FINETUNE_PROTOCOLS,
    "retrieval": RETRIEVAL_PROTOCOLS,
    "dense": DENSE_PROTOCOLS,
}
