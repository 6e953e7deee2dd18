# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Measurements of image encoders."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import BaseImageProcessor

from ..data.pixels import open_image, to_channels
from ..data.sources import Source
from ..recipe import MonitorConfig
from .features import Features
from .knn import knn_accuracy
from .probe import OnlineProbe


class Measures:
    """kNN accuracy during training; before training, also of raw pixels.

    Args:
        extract: (embed, source) -> the vectors of all processes.
        bank, queries: labeled sources, or None to measure nothing.
    """

    def __init__(
        self,
        config: MonitorConfig,
        extract: Callable[..., dict[str, Features]],
        bank: Source | None,
        queries: Source | None,
        trained_on: Any = None,
    ):
        self.config, self.extract, self.bank, self.queries = config, extract, bank, queries

    def untrained(self) -> dict[str, float]:
        """Measurements that need no network."""
        return {} if self.bank is None else {"knn_raw_pixels": self.knn(raw_pixel_embedding)}

    def of(self, model: nn.Module, probe: OnlineProbe | None = None) -> dict[str, float]:
        """Measure a model in evaluation mode, on data outside the training batches."""
        if self.bank is None:
            return {}
        # Call the whole model: under FSDP, submodules cannot be called on their own.
        bank, queries = self._sides(lambda inputs: {"": model(**inputs).features[:, 0]})
        results = {"knn": knn_accuracy(bank, queries, k=self.config.k, temperature=self.config.temperature)}
        probed = None if probe is None else probe.accuracy(queries)
        return results if probed is None else {**results, "probe": probed}

    def ready(self) -> bool:
        """Whether there is something to measure before training."""
        return self.bank is not None

    def headline(self, values: dict[str, float]) -> str | None:
        """Key figures of a measurement, for the log."""
        names = {"knn": "kNN", "probe": "linear probe"}
        return ", ".join(f"{name} {values[key]:.1%}" for key, name in names.items() if key in values) or None

    def knn(self, embed) -> float:
        """Weighted kNN accuracy (0..1) of the queries against the bank, with features from `embed`."""
        return knn_accuracy(*self._sides(embed), k=self.config.k, temperature=self.config.temperature)

    def _sides(self, embed) -> tuple[Features, Features]:
        sides = [self.extract(embed, part)[""].labeled() for part in (self.bank, self.queries)]
        bank, queries = (replace(side, vectors=side.vectors.flatten(1)) for side in sides)
        return bank, queries


class ProcessorTransform:
    """Inference preprocessing by a transformers image processor, for encoders of other projects."""

    num_clips: ClassVar[int] = 1

    def __init__(self, processor: BaseImageProcessor):
        self.processor = processor

    def read(self, source: Source, index: int) -> tuple[np.ndarray, ...]:
        """float32 (1, C, H, W)."""
        image = open_image(source.record(index), source.max_megapixels)
        return (self._prepared(to_channels(image, 3, source.decoding)),)

    def blank(self, source: Source | None = None) -> tuple[torch.Tensor, ...]:
        return (torch.from_numpy(self._prepared(Image.new("RGB", (64, 64)))),)

    def inputs(self, images: torch.Tensor, *, device: torch.device) -> dict[str, torch.Tensor]:
        return {"pixel_values": images.to(device, non_blocking=True)}

    def _prepared(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self.processor(images=image, return_tensors="np")["pixel_values"], dtype=np.float32)


def raw_pixel_embedding(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Baseline without a network: the image, averaged down to at most 32 x 32."""
    images = inputs["pixel_values"]
    return {"": F.adaptive_avg_pool2d(images, min(32, images.shape[-1])).flatten(1)}
