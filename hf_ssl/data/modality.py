# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What a run trains on: images, or clips of videos with sound.

A model's config names its modality, and only `modality_of` looks it up. The data's half stands here: columns, what a
worker does with a record, what the device does with a batch, and the inference transform. Other rooms have a half of
their own, a module of the modality's name (`evaluation/images.py`, `hub/clips.py`), see `Modality.half`. A third
modality adds such modules and changes none.
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
    """What a worker does to a record. `name` is what a message counts, `numbered` see `Modality`."""

    name: ClassVar[str]
    numbered: ClassVar[bool]

    def make(self, record: dict[str, Any] | None, key: tuple[int, ...], source: Any) -> Any:
        """The arrays of an example; `key` seeds what is drawn, `source` says how files are read."""

    def blank(self) -> Any:
        """As many and as large arrays of nothing."""

    def stack(self, made: Sequence[Any]) -> dict[str, np.ndarray]:
        """A batch of them."""


class Modality:
    """One kind of training data. Subclasses are stateless, and there is one instance of each.

    Attributes:
        name: what a message counts ("images"), and what the halves of other rooms are called.
        medium: what `hf_ssl.data.sources` calls a column of the files ("image").
        smallest_batch: examples of one forward, of which BatchNorm has statistics.
        needs_labels: whether nothing but labels can be measured on unseen examples.
        numbered: whether the method keeps a row for each example, so that batches carry the rows of what they hold.
        towers: the encoders of a model, by the names of their features ("" for a single one).
    """

    name: ClassVar[str]
    medium: ClassVar[str]
    smallest_batch: ClassVar[int] = 1
    needs_labels: ClassVar[bool] = True
    numbered: ClassVar[bool] = False
    towers: ClassVar[tuple[str, ...]] = ("",)

    def check_views(self, views: list[View]) -> None:
        """Raises RecipeError for a number of views that no method can have of such an example."""

    def fit(self, views: list[View], config, pretrained: bool) -> None:
        """Let the network take the views, where it can be told to; `pretrained`: with weights of another size."""

    def check(self, views: list[View], config) -> None:
        """Raises RecipeError where the network does not take the views."""

    def stage1(self, views: list[View], config, recipe: Recipe) -> Stage1:
        """What a worker does to a record, see `hf_ssl.data.loader`."""
        raise NotImplementedError

    def stage2(self, config, recipe: Recipe) -> Stage2:
        """What the device does to a batch: (the loader's batch, device) -> the model's inputs."""
        raise NotImplementedError

    def inference(self, config, num_clips: int = 1) -> Any:
        """Preprocessing at inference, see `hf_ssl.evaluation.features.Transform`."""
        raise NotImplementedError

    def input_shapes(self, views: list[View], batch: int, config) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of every input of a training step, for a simulation."""
        raise NotImplementedError

    def medium_of(self, data: DataConfig) -> str:
        """The medium of a place to evaluate on, where the modality can do with a part of it."""
        return self.medium

    def half(self, room: str) -> ModuleType:
        """The module that a package (its `__package__`) has for the modality."""
        return import_module(f"{room}.{self.name}")


def modality_of(config) -> Modality:
    """The modality that a model's config names; networks of others, whose configs name none, take images."""
    return import_module(f".{getattr(config, 'modality', 'images')}", __package__).MODALITY
