# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Labeled examples for evaluation: a bank, and queries to classify with it.

Subsets are drawn with a seed and balanced over the classes, because the first examples of a sorted dataset all have
the same class. Each subset has a name that says what it is; the terminal and the model card show it.
"""

import hashlib
import logging
import os
from dataclasses import replace
from typing import Any

import numpy as np

from ..recipe import DataConfig, MonitorConfig, RecipeError
from .folders import SPLITS
from .labels import NoLabels, check_classes, find_label_column, number_classes, why_no_label_column
from .sources import Source, available_splits, check_source, load_source


logger = logging.getLogger(__name__)

_HELD_OUT = 5  # without a query split, one in five examples of each class becomes a query
_SMALL = 10_000  # up to this many examples, duplicates are found by content, not only by path
_SEEN = ", {} seen in pretraining, without labels"
_SEED = 0  # every run draws the same subsets, so results are comparable


def labeled_sources(
    data: DataConfig, monitor: MonitorConfig, kind: str = "image", *, trained_on: bool = True
) -> tuple[Source, Source] | tuple[None, None]:
    """Bank and queries for kNN: the splits of `monitor.path`, or of `data.path` if it has labels; see `paired`.

    If the "test" split is missing or its labels are withheld (-1), "validation" is used. Without either, 20 % of each
    class of the bank become queries (`held_out`).

    Args:
        trained_on: whether the encoder is trained on `data`. If so, the names of the parts mention it.

    Raises:
        RecipeError: `monitor.path` or `monitor.label_column` is set but cannot be used.
    """
    own = monitor.path is not None
    where = DataConfig(path=monitor.path, name=monitor.name) if own else replace(data, max_examples=None)
    if not isinstance(where.path, str | None):
        where = replace(where, path=tuple(where.paths))  # drop the sampling weights: each example once
    where = replace(
        where,
        image_column=monitor.image_column or where.image_column,
        label_column=monitor.label_column or where.label_column,
        max_megapixels=max(DataConfig.max_megapixels, data.max_megapixels),  # a lower limit is for training only
        value_range=data.value_range,  # decode as in training
        exif=data.exif,
    )
    splits = available_splits(where, kind)
    if not own and monitor.label_column is None and monitor.bank_split not in splits:
        return None, None
    try:
        bank = labeled_source(where, monitor.bank_split, kind)
        queries = _queries(where, monitor, splits, kind)
        seen = data if trained_on and (not own or where.path == data.path) else None
        if queries is None:
            return paired(*held_out(bank, _seen(seen, bank.part)), monitor)
        said = _seen(seen, queries.part)
        queries.part, queries.trained_on = queries.part + said, bool(said)
        return paired(bank, queries, monitor)
    except NoLabels as error:
        if own or monitor.label_column is not None:
            raise
        if "no labels for kNN" not in str(error):  # unlabeled data is normal and needs no warning
            logger.warning(f"kNN accuracy is not measured: {error}")
        return None, None


def labeled_source(where: DataConfig, split: str, kind: str) -> Source:
    """A split with usable class labels.

    Raises:
        RecipeError: there is no such split.
        NoLabels: it has no labels, or accuracy on them would be meaningless (see `check_classes`).
    """
    features = check_source(where, split, kind)
    if find_label_column(features, where.label_column, where.path) is None:
        raise NoLabels(why_no_label_column(features, where.path))
    source = load_source(where, split, kind)
    check_classes(source.classes(), source.label_column, where.path)
    source.part = split
    return source


def _queries(where: DataConfig, monitor: MonitorConfig, splits, kind: str) -> Source | None:
    """The labeled query split, or None if queries must be held out from the bank."""
    asked = monitor.query_split
    names = [asked]
    if asked == "test":  # saved and Hub datasets also name these splits "valid", "dev" or "eval"
        names = [name for split in ("test", "validation") for name in sorted(splits) if SPLITS.get(name) == split]
        names.sort(key=lambda name: SPLITS[name] != name)
    for name in names:
        queries = load_source(where, name, kind)
        if any(one is not None for one in queries.classes()):
            if name != asked:
                logger.info(f"{where.path} has no labeled split {asked!r}; using {name!r} for kNN.")
            queries.part = name
            return queries
    if asked != "test":
        raise NoLabels(
            f"The split {asked!r} of {where.path} has no labels; set monitor.query_split to a labeled split."
        )
    return None


def _seen(data: DataConfig | None, split: str) -> str:
    """The note for a split that the encoder is trained on; empty for other splits."""
    if data is None or split != data.split:
        return ""
    return _SEEN.format("also" if data.max_examples is None else "partly")


def held_out(source: Source, seen: str = "") -> tuple[Source, Source]:
    """Split one labeled source into bank (80 % of each class) and queries (20 %), drawn with a seed.

    A class of two to nine examples gets one query, a class of one gets none.

    Raises:
        NoLabels: no class has two examples.
    """
    place, size = place_in_class(source.numbers)
    labeled, asking = source.numbers >= 0, place < np.maximum(size // _HELD_OUT, size > 1)
    if not (labeled & asking).any():
        raise NoLabels(f"No class of {source.part} has two examples, one for the bank and one as a query.")
    parts = ((labeled & ~asking, f"80 % of {source.part}"), (labeled & asking, f"20 % of {source.part}{seen}"))
    bank, queries = (source.select(np.flatnonzero(mask).tolist(), name) for mask, name in parts)
    queries.trained_on = bool(seen)
    return bank, queries


def part_held_out(source: Source, monitor: MonitorConfig) -> tuple[Source, Source] | tuple[None, None]:
    """Bank and queries held out from the training source, as `labeled_sources` does for a plain folder.

    Raises:
        RecipeError: `monitor.label_column` is set but cannot be used.
    """
    if source.label_column is None:
        return None, None
    try:
        check_classes(source.classes(), source.label_column, source.part)
        return paired(*held_out(source, _SEEN.format("also")), monitor)
    except NoLabels as error:
        if monitor.label_column is not None:
            raise
        logger.warning(f"kNN accuracy is not measured: {error}")
        return None, None


def paired_by_hand(bank: Source, queries: Source, monitor: MonitorConfig) -> tuple[Source, Source]:
    """`paired` for datasets passed from Python. Clips need no labels.

    Raises:
        RecipeError: see `paired`; also for images without labels.
    """
    sides = {"the bank": bank, "the queries": queries}
    for name, side in sides.items():
        side.part = side.split if side.split in ("train", "validation", "test") else name
        if "image" in side.columns:
            if side.label_column is None:
                raise NoLabels(f"{name} has no labels; set monitor.label_column to a column of classes.".capitalize())
            check_classes(side.classes(), side.label_column, name)
    return paired(with_usable_labels(bank), with_usable_labels(queries), monitor)


def paired(bank: Source, queries: Source, monitor: MonitorConfig) -> tuple[Source, Source]:
    """Number the classes of both consistently, then subsample to at most `max_bank` and `max_queries` examples.

    Raises:
        RecipeError: one side has names as labels, the other has numbers.
        NoLabels: they share no class.
    """
    numbers = number_classes(bank.classes(), queries.classes())
    known = [set(side.tolist()) - {-1} for side in numbers]
    if all(known) and not known[0] & known[1]:
        raise NoLabels(f"No class of {queries.part} is in {bank.part}, so every query would be misclassified.")
    sides = zip((bank, queries), numbers, (monitor.max_bank, monitor.max_queries), strict=True)
    bank, queries = (limited(side.numbered(own), limit) for side, own, limit in sides)
    return bank, queries


def labeled_for_probe(
    source: Any, bank: Source | None, queries: Source | None, same_rows: bool
) -> tuple[Source, Source, Source]:
    """Training images, bank and queries with consistent class numbers, for the online linear probe.

    The probe is trained on the first and evaluated on the last. Training images that are also queries get label -1.

    Args:
        same_rows: whether an image has the same row number in the training source and in the queries.

    Raises:
        RecipeError: labels are missing, or the overlap of training images and queries cannot be determined.
    """
    without = "or set monitor.probe=false."
    if not isinstance(source, Source) or "image" not in source.columns:
        raise RecipeError(f"monitor.probe needs labeled images that are not streamed; use such data, {without}")
    if source.label_column is None:
        raise RecipeError(f"monitor.probe needs labels for the training images; add a label column, {without}")
    if bank is None or queries is None:
        raise RecipeError(f"monitor.probe needs labeled images for evaluation; set monitor.path, {without}")
    try:
        check_classes(source.classes(), source.label_column, source.split)
    except NoLabels as error:
        raise RecipeError(f"monitor.probe needs training labels: {error} Add labels, {without}") from None
    sides = (source, bank, queries)
    numbers = number_classes(*(side.classes() for side in sides))
    if queries.trained_on:
        if not same_rows:
            raise RecipeError(
                "monitor.probe with a list as data.path needs queries outside the training data; set monitor.path to "
                f"other labeled images, {without}"
            )
        numbers[0][np.isin(source.rows, queries.rows)] = -1
    if not (numbers[0] >= 0).any():
        raise RecipeError(
            f"All labeled training images are also queries of the probe; set monitor.query_split, {without}"
        )
    source, bank, queries = (side.numbered(own) for side, own in zip(sides, numbers, strict=True))
    return source, bank, queries


def limited(source: Source, limit: int | None) -> Source:
    """Subsample to at most `limit` examples with `balanced_sample`."""
    if limit is None or limit >= len(source):
        return source
    kind = "class-balanced sample" if (source.numbers >= 0).any() else "random sample"
    return source.select(balanced_sample(source.numbers, limit), f"a {kind} of {source.part}")


def balanced_sample(numbers: np.ndarray, count: int, seed: int = _SEED) -> list[int]:
    """Sorted indices of at most `count` labeled examples, with the classes as balanced as possible.

    If no example has a label, the sample is drawn from all.

    Args:
        numbers: classes (N,), -1 for none.
    """
    candidates = np.flatnonzero(numbers >= 0) if (numbers >= 0).any() else np.arange(len(numbers))
    place, _ = place_in_class(numbers[candidates], seed)
    order = np.lexsort((np.random.default_rng(seed).random(len(place)), place))
    return sorted(candidates[order[:count]].tolist())


def place_in_class(numbers: np.ndarray, seed: int = _SEED) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each example in a random order within its class, from 0, and the size of its class; both (N,)."""
    order = np.random.default_rng(seed).permutation(len(numbers))
    order = order[np.argsort(numbers[order], kind="stable")]
    _, first, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    place, size = np.empty_like(order), np.empty_like(order)
    place[order], size[order] = np.arange(len(order)) - first.repeat(counts), counts.repeat(counts)
    return place, size


def unlabeled_queries(where: DataConfig, monitor: MonitorConfig, kind: str) -> Source:
    """At most `max_queries` examples of the query split, with or without labels, for retrieval."""
    queries = with_usable_labels(load_source(where, monitor.query_split, kind))
    queries.part = monitor.query_split
    return limited(queries, monitor.max_queries)


def with_usable_labels(source: Source) -> Source:
    """The source, without its labels if accuracy on them would be meaningless (see `check_classes`)."""
    if source.label_column is None:
        return source
    try:
        check_classes(source.classes(), source.label_column, source.split)
    except NoLabels as error:
        logger.warning(f"Labels are not used: {error}")
        return source.unlabeled()
    return source


def measured_on(bank: Source | None, queries: Source | None, k: int) -> dict[str, Any]:
    """Describe the evaluation data, for `results.json`, the terminal and the card; empty without queries.

    Returns:
        `queries` and `bank` (display names), `num_queries` and `num_bank` (labeled examples, or all if none is
        labeled), `num_classes`, and `notes`: one sentence for each reason to doubt the results.
    """
    if queries is None:
        return {}
    found: dict[str, Any] = {"queries": queries.part, "num_queries": _count(queries)}
    if bank is None:
        return found | {"notes": []}
    classes = np.union1d(bank.numbers, queries.numbers)
    found |= {"bank": bank.part, "num_bank": _count(bank), "num_classes": int((classes >= 0).sum())}
    return found | {"notes": _doubts(bank, queries, k)}


def measured_line(measured: dict[str, Any]) -> str:
    """The result of `measured_on` as a line for the terminal."""
    line = f"Measured on {measured['num_queries']:,} examples ({measured['queries']})"
    if "bank" in measured:
        line += f" against {measured['num_bank']:,} ({measured['bank']}), {measured['num_classes']:,} classes"
    return f"{line}."


def _count(source: Source) -> int:
    return int((source.numbers >= 0).sum()) or len(source)


def _doubts(bank: Source, queries: Source, k: int) -> list[str]:
    notes = []
    asked = queries.numbers[queries.numbers >= 0]
    if k > _count(bank):
        notes.append(f"k={k} exceeds the {_count(bank):,} examples of the bank, so all of them vote.")
    if len(np.unique(bank.numbers[bank.numbers >= 0])) == 1:
        notes.append("The bank has only one class, so the accuracy does not depend on the encoder.")
    if unknown := int((~np.isin(asked, bank.numbers)).sum()):
        notes.append(f"{unknown:,} of {len(asked):,} queries have classes that are not in the bank.")
    if shared := _shared(bank, queries):
        notes.append(f"{shared:,} of {len(queries):,} queries are also in the bank, so the accuracy is too high.")
    return notes


def _shared(bank: Source, queries: Source) -> int:
    """Number of queries that are also in the bank, by path, or by content in small image datasets."""
    content = len(bank) + len(queries) <= _SMALL and "image" in bank.columns
    known = set(_marks(bank, content))
    return sum(mark in known for mark in _marks(queries, content) if mark is not None)


def _marks(source: Source, content: bool) -> list[bytes | str | None]:
    """A digest or path to identify each file. Empty if files are embedded in the dataset and `content` is False."""
    if not content and len(source) and (source.record(0) or {}).get("bytes") is not None:
        return []
    return [_mark(source.record(index), content) for index in range(len(source))]


def _mark(record: dict[str, Any] | None, content: bool) -> bytes | str | None:
    if record is None:
        return None
    if not content:
        return record["path"]
    try:
        data = record["bytes"]
        if data is None:
            with open(record["path"], "rb") as file:
                data = file.read()
        return hashlib.blake2b(data).digest()
    except OSError:  # remote, or unreadable
        return os.path.abspath(record["path"])
