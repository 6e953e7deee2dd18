# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Open and count the data of a run, for training and monitoring, and check that they have not changed on resume."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from transformers import PreTrainedConfig

from ..data.bank import (
    labeled_for_probe,
    labeled_sources,
    measured_on,
    paired_by_hand,
    part_held_out,
    unlabeled_queries,
)
from ..data.fingerprint import difference, fingerprint
from ..data.loader import steps_in_epoch
from ..data.modality import Modality
from ..data.sources import Source, available_splits, load_source, source_of
from ..data.streams import ImageStream, open_stream
from ..recipe import Recipe, RecipeError, TrainConfig
from .checkpoint import RunState


@dataclass
class Examples:
    """The data of a run.

    Attributes:
        source: training data.
        bank, queries: evaluation data of the monitor, or None.
        measured: description of bank and queries, see `hf_ssl.data.bank.measured_on`.
        fingerprint: of the source, see `hf_ssl.data.fingerprint`.
        count: number of training examples; None for a stream of unknown length.
        counted: `count` when the run began; epochs keep that length.
    """

    source: Source | ImageStream
    bank: Source | None
    queries: Source | None
    measured: dict[str, Any]
    fingerprint: dict[str, Any]
    count: int | None
    counted: int | None

    @property
    def streamed(self) -> bool:
        return isinstance(self.source, ImageStream)


def open_examples(
    recipe: Recipe,
    given: tuple[Any, Any, Any],
    modality: Modality,
    config: PreTrainedConfig,
    state: RunState | None,
    accelerator: Accelerator,
) -> Examples:
    """Open a run's data and compare them with the checkpoint `state`. Sets `config.num_instances` if needed.

    Args:
        given: dataset, bank and queries passed to `pretrain`.

    Raises:
        RecipeError: they cannot be opened, or have changed since the run began.
    """
    dataset, bank, queries = given
    with accelerator.main_process_first():  # one process fills the cache of `datasets`
        source = _training_source(recipe, dataset, modality)
        bank, queries = _monitor_sources(recipe, dataset, bank, queries, modality)
        if recipe.monitor.probe:
            same_rows = dataset is not None or isinstance(recipe.data.path, str)
            source, bank, queries = labeled_for_probe(source, bank, queries, same_rows)
    measured = measured_on(bank, queries, recipe.monitor.k)
    count = source.num_examples if isinstance(source, ImageStream) else len(source)
    own = fingerprint(source, dataset is not None) if accelerator.is_main_process else None
    data = gather_object([own])[0]
    if modality.numbered:
        stream = state.stream if state else None
        instances = int(source.rows(stream)[-1]) if isinstance(source, ImageStream) else len(source)
        _count_instances(config, instances, state, recipe.train.folder)
    if state:
        _note_other_examples(measured, state)
        _refuse_other_data(recipe, state, data, None if isinstance(source, ImageStream) else count)
    # Keep the epoch length even if a shard has become unreadable since the run began.
    counted = state.stream["num_examples"] if state and state.stream else count
    return Examples(source, bank, queries, measured, data, count, counted)


def _training_source(recipe: Recipe, dataset, modality: Modality) -> Source | ImageStream:
    data, monitor, medium = recipe.data, recipe.monitor, modality.medium
    if monitor.probe and monitor.path is None:  # the probe uses the monitor's label column
        data = replace(data, label_column=monitor.label_column or data.label_column)
    if data.streaming or isinstance(dataset, IterableDataset):
        return open_stream(data, dataset, medium)
    return load_source(data, kind=medium) if dataset is None else source_of(dataset, data, medium)


def _monitor_sources(
    recipe: Recipe, dataset, bank, queries, modality: Modality
) -> tuple[Source | None, Source | None]:
    """Bank and queries of the monitor, or None without labels; some modalities accept unlabeled queries."""
    data, monitor, medium = recipe.data, recipe.monitor, modality.medium
    if (bank is None) != (queries is None):
        raise RecipeError("Pass both bank and queries to pretrain, or neither.")
    if bank is not None:
        columns = replace(data, image_column=monitor.image_column, label_column=monitor.label_column)
        return paired_by_hand(source_of(bank, columns, medium), source_of(queries, columns, medium), monitor)
    if monitor.path is None and isinstance(dataset, Dataset):
        columns = replace(data, label_column=monitor.label_column or data.label_column)
        return part_held_out(source_of(dataset, columns, medium), monitor)
    if monitor.path is None and (dataset is not None or data.streaming):
        return None, None  # do not index a stream just for its labels
    where = replace(data, path=monitor.path or data.path, max_examples=None)
    unlabeled = not modality.needs_labels and monitor.query_split in available_splits(where, medium)
    try:
        found = labeled_sources(data, monitor, medium)
    except RecipeError:
        if monitor.label_column is not None or not unlabeled:
            raise
        found = None, None
    if found[1] is not None or not unlabeled:
        return found
    return None, unlabeled_queries(where, monitor, medium)


def _count_instances(config: PreTrainedConfig, instances: int, state: RunState | None, folder: Path) -> None:
    """Set `config.num_instances`, the rows of the memory bank, to the number of examples.

    Raises:
        RecipeError: it differs from the recipe or the checkpoint.
    """
    before = state.num_instances if state else None
    if before not in (None, instances):
        raise RecipeError(
            f"The data have {instances:,} clips, but the run in {folder} started with {before:,}, one memory row "
            "each; restore them, or start from this run in another train.output_dir with train.init_from."
        )
    if config.num_instances not in (0, instances):
        raise RecipeError(
            f"model.num_instances={config.num_instances}, but the data have {instances:,} clips; remove it, the clips "
            "are counted."
        )
    config.num_instances = instances


def _note_other_examples(measured: dict[str, Any], state: RunState) -> None:
    """Add a note to `measured` if the baseline was measured on different examples: because `monitor.*` changed, or
    because an earlier version of hf_ssl chose them differently.
    """
    chosen = ("bank", "num_bank", "queries", "num_queries")
    before = state.results.get("measured", {})
    if measured and state.results.get("baseline") and any(before.get(key) != measured.get(key) for key in chosen):
        measured["notes"].append(
            "The figures before training may be for other examples: the selection has changed since the run started."
        )


def _refuse_other_data(recipe: Recipe, state: RunState, now: dict[str, Any], count: int | None) -> None:
    """Raise RecipeError if the data have changed since the run began."""
    changed = difference(state.data, now)
    before = state.results.get("num_examples")
    if state.data is None and None not in (before, count) and before != count:  # format 1
        changed = f"the number of examples ({before:,} then, {count:,} now)"
    if changed:
        where = recipe.data.path or "the dataset"
        folder = recipe.train.output_dir
        raise RecipeError(
            f"{where} has changed since the run in {folder} started: {changed} changed. Restore the data, or train "
            f"on the new data in another train.output_dir with train.init_from={folder}."
        )


def count_steps(train: TrainConfig, count: int | None) -> tuple[int, int]:
    """Steps per run and per epoch. For a stream of unknown length, the run is one epoch.

    Raises:
        RecipeError: fewer examples than a batch, or `train.epochs` for a stream of unknown length.
    """
    steps, per_epoch = train.steps, None if count is None else steps_in_epoch(count, train.batch_size)
    if steps is None and train.epochs is not None and per_epoch is not None:
        steps = max(1, round(train.epochs * per_epoch))
    if steps is None:
        raise RecipeError(
            "The length of the stream is unknown; set data.num_examples, or train.steps instead of train.epochs."
        )
    return steps, per_epoch or steps
