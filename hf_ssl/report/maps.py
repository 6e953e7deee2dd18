# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Embeddings of examples, and their 2-D map."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.manifold import TSNE

from ..data.sources import Source
from ..evaluation.encoders import Encoder
from ..evaluation.features import Features, clip_average, embedded


def every_vector(encoder: Encoder, source: Source) -> dict[str, Features]:
    """Vectors by name, in memory; computed by this process only, since others may have ended already."""
    device = torch.device("cpu")
    parts = list(embedded(encoder.to(device).embed, source, encoder.transform, device=device, batch_size=128))
    found = {key: torch.cat([part.vectors[key] for part in parts]) for key in parts[0].vectors}
    labels, rows = (torch.cat([getattr(part, key) for part in parts]) for key in ("labels", "rows"))
    failed = [one for part in parts for one in part.failed]
    return {key: Features(clip_average(one), labels, failed, examples=rows) for key, one in found.items()}


def map_of(features: Features, source: Source, numbers: dict[int, int], names: list[str]) -> list[dict[str, Any]]:
    """One point per image: t-SNE position, thumbnail, class and file."""
    near = max(2, min(30, (len(features) - 1) // 3))
    places = TSNE(perplexity=near, init="pca", random_state=0, metric="cosine").fit_transform(features.vectors.numpy())
    low, high = places.min(0), places.max(0)
    places = (places - low) / np.maximum(high - low, 1e-12)
    classes = source.classes()
    points = []
    for (x, y), example in zip(places.round(4).tolist(), features.examples.tolist(), strict=True):
        label = "" if classes[example] is None else str(classes[example])
        number = names.index(label) if label else -1
        points.append({"x": x, "y": y, "c": number, "t": numbers[example], "n": short_name(source, example)})
    return points


def short_name(source: Source, example: int) -> str:
    return Path(source.name(example)).name


def title_of(source: Source, example: int) -> str:
    label = source.classes()[example]
    return short_name(source, example) if label is None else f"{label}: {short_name(source, example)}"
