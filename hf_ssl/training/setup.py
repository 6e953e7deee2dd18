# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What a run needs before its loop: the recipe that is continued, the data, their counts, and the model."""

from dataclasses import replace
from pathlib import Path

from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel

from ..data.bank import labelled_sources, paired_by_hand, part_held_out, unlabelled_queries
from ..data.fingerprint import difference
from ..data.loader import steps_in_epoch
from ..data.modality import Modality, modality_of
from ..data.sources import Source, available_splits, load_source, source_of
from ..data.streams import ImageStream, open_stream
from ..data.views import View, resolve_views
from ..models import METHODS, SSLConfig
from ..recipe import Recipe, RecipeError, TrainConfig, changed_keys, continued, model_config
from .checkpoint import Found, RunState


logger = get_logger(__name__)


def described(recipe: Recipe) -> tuple[list[View], SSLConfig, Modality]:
    """The views of a recipe, its model's config, and what it is trained on."""
    views = resolve_views(recipe.views, recipe.method)
    config = model_config(recipe, image_size=views[0].size)
    return views, config, modality_of(config)


def continue_recipe(recipe: Recipe, found: Found) -> Recipe:
    """The recipe with which a checkpoint's run goes on.

    Raises:
        RecipeError: the checkpoint was made by another one.
    """
    state = found.state
    asked, recipe = recipe, continued(recipe, state.recipe, state.format)
    if kept := changed_keys(asked.to_dict(), recipe.to_dict()):
        logger.warning(f"The run goes on as an earlier version began it, with the {', '.join(kept)} of then.")
    changed = changed_keys(state.recipe, recipe.to_dict(), state.format)
    if not changed:
        return recipe
    said = f"{found.path} was made by another recipe: {', '.join(changed)} differ(s)"
    if set(changed) <= {"train.epochs", "train.steps"}:
        raise RecipeError(
            f"{said}. The schedule of a run is fixed when it starts: restore the value, or train longer in another "
            f"train.output_dir with train.init_from={found.path.parent.parent}."
        )
    raise RecipeError(f"{said}; restore these values or set another train.output_dir.")


def refuse_other_data(recipe: Recipe, state: RunState, now: dict, num_examples: int | None) -> None:
    """Raises RecipeError where a run was begun with other data."""
    changed = difference(state.data, now)
    before = state.results.get("num_examples")
    if state.data is None and None not in (before, num_examples) and before != num_examples:  # format 1
        changed = f"the number of examples ({before:,} then, {num_examples:,} now)"
    if changed:
        where = recipe.data.path or "the dataset"
        folder = recipe.train.output_dir
        raise RecipeError(
            f"{where} is not what the run in {folder} was begun with: {changed} changed. Restore the data, or train "
            f"on these in another train.output_dir with train.init_from={folder}."
        )


def note_other_examples(measured: dict, state: RunState) -> None:
    """Add to the notes of `measured_on` where a run's first figures may be of other examples than its next ones:
    because `monitor.*` changed, or because an earlier version chose others.
    """
    chosen = ("bank", "num_bank", "queries", "num_queries")
    before = state.results.get("measured", {})
    if measured and state.results.get("baseline") and any(before.get(key) != measured.get(key) for key in chosen):
        measured["notes"].append(
            "The figures before training may be of other examples: the choice has changed since the run began."
        )


def count_instances(config, instances: int, before: int, output_dir: Path) -> None:
    """Give the memories a row for each of the data's clips.

    Raises:
        RecipeError: the recipe, or the checkpoint, has another number.
    """
    if before != instances:
        raise RecipeError(
            f"The data have {instances:,} clips, but the run in {output_dir} was begun with {before:,}, a row of its "
            "memories for each; restore them, or start another train.output_dir from it with train.init_from."
        )
    if config.num_instances not in (0, instances):
        raise RecipeError(
            f"model.num_instances={config.num_instances}, but the data have {instances:,} clips; leave it out, it is "
            "counted."
        )
    config.num_instances = instances


def build(recipe: Recipe, config) -> PreTrainedModel:
    """The model of a recipe, with its initial weights."""
    try:
        return METHODS[recipe.method][1](config)
    except ValueError as error:  # sizes that do not fit each other, or the data
        raise RecipeError(f"model: {error}") from None


def count_steps(train: TrainConfig, num_examples: int | None) -> tuple[int, int]:
    """Steps of a run, and of an epoch; a stream of unknown length is one epoch.

    Raises:
        RecipeError: fewer examples than a batch, or epochs of an unknown length.
    """
    if num_examples is not None:
        steps_per_epoch = steps_in_epoch(num_examples, train.batch_size)
        return train.steps or max(1, round(train.epochs * steps_per_epoch)), steps_per_epoch
    if train.steps is None:
        raise RecipeError("The length of the stream is not known; set data.num_examples, or train.steps for epochs.")
    return train.steps, train.steps


def training_source(recipe: Recipe, dataset, modality: Modality) -> Source | ImageStream:
    data, medium = recipe.data, modality.medium
    if data.streaming or isinstance(dataset, IterableDataset):
        return open_stream(data, dataset, medium)
    return load_source(data, kind=medium) if dataset is None else source_of(dataset, data, medium)


def monitor_sources(recipe: Recipe, dataset, bank, queries, modality: Modality) -> tuple[Source | None, Source | None]:
    """Labelled bank and queries of the monitor, or None where nothing is labelled; videos need no labels."""
    data, monitor, medium = recipe.data, recipe.monitor, modality.medium
    if (bank is None) != (queries is None):
        raise RecipeError("Give pretrain both a bank and queries, or neither.")
    if bank is not None:
        columns = replace(data, image_column=monitor.image_column, label_column=monitor.label_column)
        return paired_by_hand(source_of(bank, columns, medium), source_of(queries, columns, medium), monitor)
    if monitor.path is None and isinstance(dataset, Dataset):
        columns = replace(data, label_column=monitor.label_column or data.label_column)
        return part_held_out(source_of(dataset, columns, medium), monitor)
    if monitor.path is None and (dataset is not None or data.streaming):
        return None, None  # a stream is not indexed for the sake of its labels
    where = replace(data, path=monitor.path or data.path, max_examples=None)
    unlabeled = not modality.needs_labels and monitor.query_split in available_splits(where, medium)
    try:
        found = labelled_sources(data, monitor, medium)
    except RecipeError:
        if monitor.label_column is not None or not unlabeled:
            raise
        found = None, None
    if found[1] is not None or not unlabeled:
        return found
    return None, unlabelled_queries(where, monitor, medium)
