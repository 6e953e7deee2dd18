# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The labelled examples that an encoder is measured on: a bank, and queries whose classes it tells."""

from dataclasses import replace

from ..recipe import DataConfig, MonitorConfig, RecipeError
from .labels import find_label_column
from .sources import Source, available_splits, check_source, load_source


def labelled_sources(
    data: DataConfig, monitor: MonitorConfig, kind: str = "image"
) -> tuple[Source, Source] | tuple[None, None]:
    """Bank and queries for kNN: the splits of `monitor.path`, or of `data.path` when it has labels.

    A "test" split that is missing, or whose labels are kept secret (-1), falls back to "validation"; without either,
    every fifth image of the bank becomes a query.

    Raises:
        RecipeError: `monitor.path` or `monitor.label_column` is set but cannot be used.
    """
    own = monitor.path is not None
    where = DataConfig(path=monitor.path, name=monitor.name) if own else replace(data, max_examples=None)
    if not isinstance(where.path, str | None):
        where = replace(where, path=tuple(where.paths))  # each example once, whatever its weight in training
    where.image_column = monitor.image_column or where.image_column
    where.label_column = monitor.label_column or where.label_column
    # `data` limits what is trained on; its images are decoded alike.
    where.max_megapixels = max(DataConfig.max_megapixels, data.max_megapixels)
    where.value_range, where.exif = data.value_range, data.exif
    splits = available_splits(where, kind)
    try:
        features = check_source(where, monitor.bank_split, kind)
        if find_label_column(features, where.label_column, where.path) is None:
            raise RecipeError(
                f"{where.path} has no labels for kNN; set monitor.label_column to a column of class numbers."
            )
    except RecipeError:
        if own or monitor.label_column is not None:
            raise
        return None, None
    bank = load_source(where, monitor.bank_split, kind)
    if monitor.query_split != "test":
        return bank, load_source(where, monitor.query_split, kind)
    for name in ("test", "validation", "val"):
        if name in splits:
            queries = load_source(where, name, kind)
            if queries.label(0) not in (None, -1):
                return bank, queries
    return bank.select([i for i in range(len(bank)) if i % 5]), bank.select(range(0, len(bank), 5))
