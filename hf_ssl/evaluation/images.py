# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What is measured of an encoder of images."""

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
    """kNN accuracy while training, before it also of raw pixels.

    Args:
        extract: (embed, source) -> the vectors of all processes.
        bank, queries: labeled sources, or None: then nothing is measured.
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
        """What needs no network."""
        return {} if self.bank is None else {"knn_raw_pixels": self.knn(raw_pixel_embedding)}

    def of(self, model: nn.Module, probe: OnlineProbe | None = None) -> dict[str, float]:
        """Measurements of a model in evaluation mode, on other data than the training batches."""
        if self.bank is None:
            return {}
        # Through the whole model: under FSDP a part of it cannot be called by itself.
        bank, queries = self._sides(lambda inputs: {"": model(**inputs).features[:, 0]})
        results = {"knn": knn_accuracy(bank, queries, k=self.config.k, temperature=self.config.temperature)}
        probed = None if probe is None else probe.accuracy(queries)
        return results if probed is None else {**results, "probe": probed}

    def ready(self) -> bool:
        """Whether there is something to measure before training."""
        return self.bank is not None

    def headline(self, values: dict[str, float]) -> str | None:
        """What a person wants to see of a measurement at once."""
        names = {"knn": "kNN", "probe": "linear probe"}
        return ", ".join(f"{name} {values[key]:.1%}" for key, name in names.items() if key in values) or None

    def knn(self, embed) -> float:
        """Weighted kNN accuracy (0..1) of the queries against the bank under `embed`."""
        return knn_accuracy(*self._sides(embed), k=self.config.k, temperature=self.config.temperature)

    def _sides(self, embed) -> tuple[Features, Features]:
        sides = [self.extract(embed, part)[""].labeled() for part in (self.bank, self.queries)]
        bank, queries = (replace(side, vectors=side.vectors.flatten(1)) for side in sides)
        return bank, queries


class ProcessorTransform:
    """Inference preprocessing as an image processor of transformers does it, for the encoders of others."""

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
    """The image itself, averaged down to at most 32 x 32, as the baseline that needs no network."""
    images = inputs["pixel_values"]
    return {"": F.adaptive_avg_pool2d(images, min(32, images.shape[-1])).flatten(1)}
