# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a saved encoder, ours or timm's, from a folder or the Hub."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, PreTrainedModel, TimmWrapperConfig

from ..data.bank import labelled_source, labelled_sources, measured_on, unlabelled_queries
from ..data.modality import modality_of
from ..data.places import open_place
from ..hub.weights import open_encoder
from ..models import METHODS  # also registers our classes with AutoModel
from ..recipe import DataConfig, MonitorConfig, RecipeError, nearest
from .features import Extracted, Transform, encoder_embedding, extract
from .images import ProcessorTransform
from .knn import knn_accuracy
from .linear import kfold_accuracy, linear_accuracy, linear_svm_accuracy
from .retrieval import evaluate_clips


logger = logging.getLogger(__name__)


def load_encoder(model: str, num_clips: int = 1) -> tuple[PreTrainedModel, Transform]:
    """An encoder in evaluation mode with its own preprocessing.

    Args:
        model: a run's folder (its `model/` is taken), an exported folder, or a Hub id: of ours, of timm, or of
            transformers with an image processor.
        num_clips: of each video or sound.

    Raises:
        RecipeError: no model can be loaded from there, or it is no encoder of images or clips.
    """
    inner = Path(model) / "model"
    location = str(inner) if inner.is_dir() else model
    encoder = open_encoder(location)
    if encoder.config.model_type in METHODS or isinstance(encoder.config, TimmWrapperConfig):
        return encoder, modality_of(encoder.config).inference(encoder.config, num_clips)
    return encoder, _processing_of(encoder, location)


def _processing_of(encoder: PreTrainedModel, location: str) -> ProcessorTransform:
    """The preprocessing of an encoder of transformers' own, tried with a black image.

    Raises:
        RecipeError: it takes no images, or does not say how they are prepared, or has no pooled features.
    """
    kind = type(encoder).__name__
    if encoder.main_input_name != "pixel_values":
        raise RecipeError(f"{location} is no encoder of images: its {kind} takes {encoder.main_input_name}.")
    try:
        transform = ProcessorTransform(AutoImageProcessor.from_pretrained(location))
    except Exception:
        raise RecipeError(
            f"{location} does not say how the images of its {kind} are prepared; save its image processor "
            "(preprocessor_config.json) beside it."
        ) from None
    try:
        with torch.no_grad():
            found = encoder_embedding(encoder)(transform.inputs(*transform.blank(), device=encoder.device))
    except Exception as error:
        raise RecipeError(
            f"{location}: its {kind} does not take an image as prepared: {_first_line(error)}"
        ) from error
    if "" not in found:
        raise RecipeError(f"{location}: its {kind} gives no pooled features (pooler_output) to measure.")
    return transform


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def evaluate(
    protocol: str,
    model: str,
    data: DataConfig,
    monitor: MonitorConfig,
    *,
    num_clips: int = 10,
    folds: str | None = None,
    classifier: str = "logistic",
) -> dict[str, Any]:
    """A saved encoder on a labelled dataset: accuracies, the numbers of examples, and the files that failed.

    An encoder of images gives "knn" or "linear"; AVID's gives them for each tower ("knn_video", "linear_audio" ..) on
    videos with sound, or for the audio tower on sound alone, and retrieval between the towers.

    Args:
        protocol: "knn", "linear" or "retrieval".
        num_clips: of a video or sound, evenly spaced, over which is averaged.
        folds: column of fold numbers: the mean over them instead of two splits, as ESC-50 wants it.
        classifier: of "linear": "logistic" or "svm".

    Raises:
        RecipeError: the model or the data cannot be loaded, or do not suit the protocol.
    """
    encoder, transform = load_encoder(model, num_clips)
    modality = modality_of(encoder.config)
    if protocol == "retrieval" and len(modality.towers) < 2:
        raise RecipeError(f"{model} is no model of video and sound; retrieval is between the two.")
    medium = modality.medium_of(data)
    if protocol == "retrieval" and medium != modality.medium:
        raise RecipeError(f"{data.path} holds sound alone; retrieval needs videos with sound.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)  # type: ignore[arg-type]  # transformers decorates `to` without its self
    k = monitor.k if protocol == "knn" else 0
    if folds is not None:
        where = replace(data, label_column=monitor.label_column)
        sources = {"examples": labelled_source(where, monitor.bank_split, medium)}
    elif protocol == "retrieval":
        sources = {"examples": unlabelled_queries(data, monitor, medium)}
    else:
        bank, queries = labelled_sources(data, monitor, medium, trained_on=False)
        if bank is None or queries is None:
            raise RecipeError(f"{data.path} has no labels to measure {protocol} accuracy with; see --label-column.")
        sources = {"bank": bank, "queries": queries}
    result: dict[str, Any] = {"failed": [], "measured": measured_on(sources.get("bank"), sources.get("queries"), k)}
    for note in result["measured"].get("notes", ()):
        logger.warning(note)
    embed, found = encoder_embedding(encoder), []
    for name, source in sources.items():
        part = extract(
            embed, source, transform, device=device, batch_size=monitor.batch_size, num_workers=data.num_workers
        )
        if len(part.labels) == 0:
            raise RecipeError(f"None of {len(part.failed)} files could be read, the first is {part.failed[0]}.")
        if protocol != "retrieval" and not (part.labels >= 0).any():
            raise RecipeError(f"No example of the split {source.split!r} of {data.path} has a label.")
        found.append(part)
        result["failed"] += part.failed
        result[name] = len(part.labels)
    if protocol == "retrieval":
        return result | evaluate_clips([], found[-1])
    fit = linear_svm_accuracy if classifier == "svm" else linear_accuracy
    for tower in (name for name in modality.towers if name in found[0].vectors):
        key = f"{protocol}_{tower}".rstrip("_")
        sides = [part.of(tower) for part in found]
        if protocol == "knn":
            result[key] = knn_accuracy(*sides, k=monitor.k, temperature=monitor.temperature)
        elif folds:
            of_each = _folds(data, monitor.bank_split, folds, found[0], medium)
            result[key] = kfold_accuracy(sides[0], of_each, accuracy=fit)
        else:
            result[key] = fit(*sides)
    return result


def _folds(data: DataConfig, split: str, column: str, found: Extracted, medium: str) -> torch.Tensor:
    """The folds of the labelled examples."""
    dataset = open_place(data, False, medium)[split]
    if column not in dataset.features:
        raise RecipeError(f"{data.path} has no column {column!r}{nearest(column, dataset.features)}")
    if found.failed:
        raise RecipeError(
            f"{len(found.failed)} files of {data.path} could not be read, the first is {found.failed[0]}; mend or "
            "remove them first."
        )
    numbers = {name: i for i, name in enumerate(dict.fromkeys(dataset[column]))}
    folds = torch.tensor([numbers[name] for name in dataset[column]])[(found.labels >= 0).cpu()]
    if len(folds.unique()) < 2:
        raise RecipeError(f"The column {column!r} of {data.path} has one fold only.")
    return folds.to(found.labels.device)
