# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a saved encoder, ours or timm's, from a folder or the Hub."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from .. import models  # registers our classes with AutoModel
from ..data.sources import labelled_sources
from ..recipe import DataConfig, MonitorConfig, RecipeError
from .features import EvalTransform, encoder_embedding, extract_features
from .knn import knn_accuracy


def load_encoder(model: str) -> tuple[PreTrainedModel, EvalTransform]:
    """An encoder in evaluation mode with its own preprocessing.

    Args:
        model: a run's folder (its `model/` is taken), an exported folder, or a Hub id.

    Raises:
        RecipeError: no model can be loaded from there.
    """
    inner = Path(model) / "model"
    location = str(inner) if inner.is_dir() else model
    try:
        encoder = AutoModel.from_pretrained(location).eval()
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise RecipeError(f"No encoder could be loaded from {model!r}: {first_line}") from error
    if isinstance(encoder.config, models.SSLConfig):
        return encoder, EvalTransform.of(encoder.config)
    settings = encoder.config.pretrained_cfg
    transform = EvalTransform(
        size=settings["input_size"][-1],
        crop_pct=settings["crop_pct"],
        interpolation=settings["interpolation"],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    return encoder, transform


def evaluate_knn(model: str, data: DataConfig, monitor: MonitorConfig) -> dict[str, Any]:
    """kNN accuracy of a saved encoder on a labelled dataset: {"knn", "bank", "queries", "failed"}.

    Raises:
        RecipeError: the model or the data cannot be loaded, or the data have no labels.
    """
    bank, queries = labelled_sources(data, monitor)
    encoder, transform = load_encoder(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)
    bank_features, query_features = (
        extract_features(
            encoder_embedding(encoder),
            source,
            transform,
            device=device,
            batch_size=monitor.batch_size,
            num_workers=data.num_workers,
            max_examples=limit,
        )
        for source, limit in ((bank, monitor.max_bank), (queries, monitor.max_queries))
    )
    return {
        "knn": knn_accuracy(bank_features, query_features, k=monitor.k, temperature=monitor.temperature),
        "bank": len(bank_features.labels),
        "queries": len(query_features.labels),
        "failed": bank_features.failed + query_features.failed,
    }
