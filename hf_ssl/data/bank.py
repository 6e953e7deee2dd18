# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The labeled examples that an encoder is measured on: a bank, and queries whose classes it tells.

Whatever part of a dataset is taken is drawn with a seed and balanced over the classes: the first examples of a sorted
dataset are all of one class. The parts keep their true names, which the terminal and the card repeat.
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

_HELD_OUT = 5  # one of so many examples of a class is a query where there is no split for them
_SMALL = 10_000  # examples of which the content is compared, too
_SEEN = ", {} seen in pretraining, without labels"
_SEED = 0  # the same parts in every run, so that their figures can be compared


def labeled_sources(
    data: DataConfig, monitor: MonitorConfig, kind: str = "image", *, trained_on: bool = True
) -> tuple[Source, Source] | tuple[None, None]:
    """Bank and queries for kNN: the splits of `monitor.path`, or of `data.path` when it has labels; see `paired`.

    A "test" split that is missing, or whose labels are kept secret (-1), falls back to "validation"; without either,
    20 % of each class of the bank become queries (`held_out`).

    Args:
        trained_on: whether `data` is what the encoder is trained on, which the parts' names then say.

    Raises:
        RecipeError: `monitor.path` or `monitor.label_column` is set but cannot be used.
    """
    own = monitor.path is not None
    where = DataConfig(path=monitor.path, name=monitor.name) if own else replace(data, max_examples=None)
    if not isinstance(where.path, str | None):
        where = replace(where, path=tuple(where.paths))  # each example once, whatever its weight in training
    where = replace(
        where,
        image_column=monitor.image_column or where.image_column,
        label_column=monitor.label_column or where.label_column,
        max_megapixels=max(DataConfig.max_megapixels, data.max_megapixels),  # `data` limits what is trained on
        value_range=data.value_range,  # its images are decoded alike
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
        if "no labels for kNN" not in str(error):  # plain unlabeled data are nothing to speak of
            logger.warning(f"kNN accuracy is not measured: {error}")
        return None, None


def labeled_source(where: DataConfig, split: str, kind: str) -> Source:
    """A split whose labels tell classes.

    Raises:
        RecipeError: there is no such split.
        NoLabels: it has none, or such that accuracy on them would mean nothing (see `check_classes`).
    """
    features = check_source(where, split, kind)
    if find_label_column(features, where.label_column, where.path) is None:
        raise NoLabels(why_no_label_column(features, where.path))
    source = load_source(where, split, kind)
    check_classes(source.classes(), source.label_column, where.path)
    source.part = split
    return source


def _queries(where: DataConfig, monitor: MonitorConfig, splits, kind: str) -> Source | None:
    """The labeled split of the queries, or None where a part of the bank has to be held out for them."""
    asked = monitor.query_split
    names = [asked]
    if asked == "test":  # "valid", "dev", "eval" are names of splits in saved and Hub datasets
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
    """What must be said about examples of the split that is trained on."""
    if data is None or split != data.split:
        return ""
    return _SEEN.format("also" if data.max_examples is None else "partly")


def held_out(source: Source, seen: str = "") -> tuple[Source, Source]:
    """Bank and queries out of one labeled source: 80 % and 20 % of each class, drawn with a seed.

    A class of two to nine examples has one query, a class of one has none.

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
    """Bank and queries out of the source that is trained on, as `labeled_sources` makes them of a plain folder.

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
    """`paired` for datasets given from Python; clips need no labels.

    Raises:
        RecipeError: see `paired`; or images without labels.
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
    """Bank and queries with common class numbers, of at most `max_bank` and `max_queries` examples.

    Raises:
        RecipeError: the labels are names on one side and numbers on the other.
        NoLabels: the two have no class in common.
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
    """The images that are trained on, the bank and the queries with common class numbers, for a probe that learns from
    the first and is judged on the last: an image that is also a query has no label (-1) in training.

    Args:
        same_rows: whether an image in both has the same row in both.

    Raises:
        RecipeError: one of the two has no labels, or it cannot be told which images are in both.
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
    """At most `limit` examples, see `balanced_sample`."""
    if limit is None or limit >= len(source):
        return source
    kind = "class-balanced sample" if (source.numbers >= 0).any() else "random sample"
    return source.select(balanced_sample(source.numbers, limit), f"a {kind} of {source.part}")


def balanced_sample(numbers: np.ndarray, count: int, seed: int = _SEED) -> list[int]:
    """Rising indices of `count` labeled examples, or of fewer where there are no more, equally many of each class as
    far as there are; of any examples where none has a label.

    Args:
        numbers: classes (N,), -1 for none.
    """
    candidates = np.flatnonzero(numbers >= 0) if (numbers >= 0).any() else np.arange(len(numbers))
    place, _ = place_in_class(numbers[candidates], seed)
    order = np.lexsort((np.random.default_rng(seed).random(len(place)), place))
    return sorted(candidates[order[:count]].tolist())


def place_in_class(numbers: np.ndarray, seed: int = _SEED) -> tuple[np.ndarray, np.ndarray]:
    """Place of each example in a random order of its class, from 0, and how many the class has, (N,) both."""
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
    """The source, without its labels where accuracy on them would mean nothing (see `check_classes`)."""
    if source.label_column is None:
        return source
    try:
        check_classes(source.classes(), source.label_column, source.split)
    except NoLabels as error:
        logger.warning(f"Labels are not used: {error}")
        return source.unlabeled()
    return source


def measured_on(bank: Source | None, queries: Source | None, k: int) -> dict[str, Any]:
    """What figures are measured on, for `results.json`, the terminal and the card; empty where nothing is.

    Returns:
        `queries` and `bank` (what a person calls them), `num_queries` and `num_bank` (labeled examples, where there
        are any), `num_classes`, and `notes`, one sentence each on what makes the figures mean less.
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
    """What `measured_on` found, for the terminal."""
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
        notes.append(f"k={k} is more than the {_count(bank):,} examples of the bank, so all of them vote.")
    if len(np.unique(bank.numbers[bank.numbers >= 0])) == 1:
        notes.append("The bank has one class only, so the accuracy does not depend on the encoder.")
    if unknown := int((~np.isin(asked, bank.numbers)).sum()):
        notes.append(f"{unknown:,} of {len(asked):,} queries are of classes that the bank does not have.")
    if shared := _shared(bank, queries):
        notes.append(f"{shared:,} of {len(queries):,} queries are also in the bank, so the accuracy is too high.")
    return notes


def _shared(bank: Source, queries: Source) -> int:
    """Queries whose file, or in small datasets of images whose content, is also in the bank."""
    content = len(bank) + len(queries) <= _SMALL and "image" in bank.columns
    known = set(_marks(bank, content))
    return sum(mark in known for mark in _marks(queries, content) if mark is not None)


def _marks(source: Source, content: bool) -> list[bytes | str | None]:
    """What tells each file from others, its content or its path; nothing where only content that is not read could."""
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
    except OSError:  # not here, or not readable
        return os.path.abspath(record["path"])
