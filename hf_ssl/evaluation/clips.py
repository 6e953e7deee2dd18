# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Measurements of audio-visual models."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from ..data.bank import with_usable_labels
from ..data.sources import Source
from ..recipe import MonitorConfig
from .features import Features
from .retrieval import evaluate_clips, positive_precision


_WAYS = ("video_to_audio", "audio_to_video")


class Measures:
    """Measurements during training: cross-modal retrieval, kNN of each tower, and precision of CMA's positive sets.

    Args:
        extract: (embed, source) -> the vectors of all processes.
        bank, queries: training and unseen clips, or None; kNN needs labels.
        trained_on: the training source, whose labels give the precision of the positives.
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
        self._labels = None
        if isinstance(trained_on, Source) and trained_on.label_column is not None:
            self._labels = torch.from_numpy(with_usable_labels(trained_on).numbers)

    def untrained(self) -> dict[str, float]:
        """Measurements that need no network."""
        return {}

    def ready(self) -> bool:
        """Whether there is something to measure before training."""
        return self.queries is not None

    def headline(self, values: dict[str, float]) -> str | None:
        """Key figures of a measurement, for the log."""
        for key, name in {"p1": "class precision at 1", "r1": "R@1"}.items():
            found = [values[f"{way}_{key}"] for way in _WAYS if f"{way}_{key}" in values]
            if found:
                return f"{name} of video to audio {found[0]:.1%}, audio to video {found[1]:.1%}"
        return None

    def of(self, model: nn.Module, probe: None = None) -> dict[str, float]:
        """Measure a model in evaluation mode, on data outside the training batches."""

        def embed(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            output = model(**inputs)
            video, audio = output.embeddings.unbind(1)
            features = {"video": output.features[:, 0], "audio": output.audio_features[:, 0]}
            return {"video_embeds": video, "audio_embeds": audio, **features}

        results = {}
        if self.queries is not None:
            parts = [self.extract(embed, part) for part in (self.bank, self.queries) if part is not None]
            results = evaluate_clips(parts[:-1], parts[-1], k=self.config.k, temperature=self.config.temperature)
        positives = getattr(model, "positive_set", None)
        if positives is not None and self._labels is not None and positives[0, 0] >= 0:
            with suppress(ValueError):  # no labeled pair
                results["positive_precision"] = positive_precision(positives, self._labels.to(positives.device))
        return results
