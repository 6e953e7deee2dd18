# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Modalities: images, or clips of videos with sound.

A model's config names its modality, and only `modality_of` looks it up. This package has the data half: columns,
worker and device processing, and the inference transform. Other packages have their half in a module with the
modality's name (`evaluation/images.py`, `hub/clips.py`), see `Modality.half`. A new modality adds such modules and
changes no existing ones.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from ..recipe import DataConfig, Recipe
from .views import View


Stage2 = Callable[[dict[str, Any], torch.device], dict[str, torch.Tensor]]


class Stage1(Protocol):
    """Processing in the worker: record -> arrays. `name` is the unit in messages; for `numbered` see `Modality`."""

    name: ClassVar[str]
    numbered: ClassVar[bool]

    def make(self, record: dict[str, Any] | None, key: tuple[int, ...], source: Any) -> Any:
        """The arrays of an example; `key` seeds the random draws, `source` has the decoding options."""

    def blank(self) -> Any:
        """Placeholder arrays of the same shapes and types."""

    def stack(self, made: Sequence[Any]) -> dict[str, np.ndarray]:
        """Stack the arrays of several examples into a batch."""


class Modality:
    """One kind of training data. Subclasses are stateless, and there is one instance of each.

    Attributes:
        name: unit in messages ("images"), and name of its module in other packages.
        medium: key in `hf_ssl.data.media.MEDIA` ("image").
        smallest_batch: minimum examples per forward pass, for BatchNorm statistics.
        needs_labels: whether evaluation on held-out examples needs labels.
        numbered: whether the method keeps a memory row per example, so that batches carry the row of each example.
        towers: names of the model's encoders, as in its features ("" for a single one).
    """

    name: ClassVar[str]
    medium: ClassVar[str]
    smallest_batch: ClassVar[int] = 1
    needs_labels: ClassVar[bool] = True
    numbered: ClassVar[bool] = False
    towers: ClassVar[tuple[str, ...]] = ("",)

    def check_views(self, views: list[View]) -> None:
        """Raise RecipeError if the number of views is impossible for this modality."""

    def fit(self, views: list[View], config, pretrained: bool) -> None:
        """Adapt `config` so that the network accepts the views, if it can; `pretrained` keeps its native size."""

    def check(self, views: list[View], config) -> None:
        """Raise RecipeError if the network does not accept the views."""

    def stage1(self, views: list[View], config, recipe: Recipe) -> Stage1:
        """Processing in the worker, see `Stage1`."""
        raise NotImplementedError

    def stage2(self, config, recipe: Recipe) -> Stage2:
        """Processing on the device: (the loader's batch, device) -> the model's inputs."""
        raise NotImplementedError

    def inference(self, config, num_clips: int = 1) -> Any:
        """Inference preprocessing, see `hf_ssl.evaluation.features.Transform`."""
        raise NotImplementedError

    def input_shapes(self, views: list[View], batch: int, config) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every input of a training step, for simulation with `hf-ssl plan`."""
        raise NotImplementedError

    def medium_of(self, data: DataConfig) -> str:
        """The medium of an evaluation dataset; clips can also be evaluated on sound alone."""
        return self.medium

    def half(self, room: str) -> ModuleType:
        """The module for this modality in another package, given its `__package__`."""
        return import_module(f"{room}.{self.name}")


def modality_of(config) -> Modality:
    """The modality named in a model's config; "images" for third-party configs that name none."""
    return import_module(f".{getattr(config, 'modality', 'images')}", __package__).MODALITY
