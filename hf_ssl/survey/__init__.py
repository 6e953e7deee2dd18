# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Inspect a dataset before training: every file is opened and decoded once, by the same readers as in training."""

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.columns import find_columns, name_of, wanted_columns
from ..data.folders import walk
from ..data.media import MEDIA, STORAGE, require_reader
from ..data.places import is_saved, used_files
from ..data.sources import Source, available_splits, check_source, load_source
from ..data.streams import ImageStream, UnreadableShard, open_stream
from ..data.workers import batches, start_worker
from ..recipe import DataConfig, RecipeError
from .facts import Facts, facts_of
from .findings import Findings


__all__ = ["medium_of", "survey"]

_BATCH = 32  # files per worker message


class _Rows(torch.utils.data.Dataset):
    """Facts about the examples of a source."""

    def __init__(self, source: Source, kind: str):
        self.source, self.kind = source, kind

    def keys(self) -> Iterable[int]:
        return range(len(self.source))

    def __getitem__(self, index: int) -> tuple[str, Facts]:
        name, record = self.source.named(index)
        return name, facts_of(record, self.kind, self.source)


class _Stream(torch.utils.data.Dataset):
    """Facts about a stream's examples, which the main process reads and workers decode, as in training."""

    def __init__(self, stream: ImageStream, kind: str):
        self.stream, self.kind = stream, kind

    def keys(self) -> Iterable[tuple[str, Any, str | None]]:
        """Name, record and fault; an unreadable shard counts as a file with a fault."""
        for shard in range(self.stream.num_shards):
            place = self.stream.shard_name(shard)
            try:
                for offset, record in enumerate(self.stream.examples(shard)):
                    yield name_of(record, f"example {offset} of {place}"), record, None
            except UnreadableShard as error:
                yield place, None, str(error)

    def __getitem__(self, key: tuple[str, Any, str | None]) -> tuple[str, Facts]:
        name, record, fault = key
        return name, Facts(broken=fault) if fault else facts_of(record, self.kind, self.stream)


def medium_of(data: DataConfig) -> str:
    """ "image", "video" or "audio": the first of these that a place contains.

    Raises:
        RecipeError: the place does not exist, or contains none of them.
    """
    faults = []
    for kind in MEDIA:
        try:
            features = next(iter(available_splits(data, kind).values()))
            find_columns(features, wanted_columns(data, kind), data.path)
            return kind
        except RecipeError as error:
            faults.append(error)
    raise faults[0]


def survey(data: DataConfig, kind: str | None = None) -> dict[str, Any]:
    """Inspect all examples of every split, or the first `data.max_examples` of each.

    Args:
        data: the `data` section of a recipe.
        kind: "image", "video" or "audio"; default: see `medium_of`.

    Returns:
        Plain data: `splits` (split -> `examples`, `read`, `classes`), the entries of `Findings.told`, `ignored`
        (unused files) and `refused` (why training would not start).

    Raises:
        RecipeError: see `medium_of`; or PyAV, which clips need, is not installed.
    """
    kind = kind or medium_of(data)
    require_reader(kind)
    found, splits = Findings(), {}
    refused: list[str] = []
    used: set[str] = set()
    for split in available_splits(data, kind):
        check_source(data, split, kind)
        told: dict[str, Any] = {"examples": None, "read": 0, "classes": {}}
        try:
            examples = _open(replace(data, split=split), kind, told, refused, used)
        except RecipeError as error:  # an empty split, or a stream that needs data.value_range
            refused.append(str(error))
        else:
            told["read"] = _read(examples, data, split, told["examples"], found)
        splits[split] = told
    about = {"path": str(data.path), "kind": kind, "splits": splits, **found.told()}
    return {**about, "ignored": _ignored(data, kind, used), "refused": list(dict.fromkeys(refused))}


def _open(data: DataConfig, kind: str, told: dict[str, Any], refused: list[str], used: set[str]) -> _Rows | _Stream:
    """Open the examples of a split; adds what is known without reading to the other arguments."""
    if data.streaming:
        stream = open_stream(data, kind=kind)
        told["examples"] = stream.num_examples
        return _Stream(stream, kind)
    source = load_source(replace(data, max_examples=None), data.split, kind, settle=False)
    told["examples"] = len(source)
    try:
        told["classes"] = {str(name): count for name, count in _classes(source).most_common()}
        if MEDIA[kind].pixels:
            source.settle(str(data.path))
    except RecipeError as error:
        refused.append(str(error))
    for column in source.columns.values():
        if source.dataset.features[column] in (MEDIA[kind].feature(decode=False), STORAGE):
            used.update(filter(None, (row["path"] for row in source.dataset[:][column] if row)))
    return _Rows(source.select(range(min(len(source), data.max_examples or len(source)))), kind)


def _classes(source: Source) -> Counter:
    return Counter(name for name in source.classes() if name is not None)


def _read(examples: _Rows | _Stream, data: DataConfig, split: str, count: int | None, found: Findings) -> int:
    """Read a split, with a progress bar if it takes long; return the number of examples."""
    most = data.max_examples if count is None else min(count, data.max_examples or count)
    workers = min(data.num_workers, os.cpu_count() or 1)
    how: dict[str, Any] = {"num_workers": workers, "collate_fn": list, "worker_init_fn": start_worker}
    loader = torch.utils.data.DataLoader(examples, _BATCH, sampler=islice(examples.keys(), most), **how)
    read = 0
    bar = tqdm(total=most, desc=f"Reading {split}", unit="file", leave=False, dynamic_ncols=True, delay=1)
    with bar, closing(batches(loader)) as made:  # type: ignore[type-var]  # a generator
        for name, facts in chain.from_iterable(made):
            found.add(split, name, facts)
            bar.update()
            read += 1
    return read


def _ignored(data: DataConfig, kind: str, used: set[str]) -> list[str]:
    """Files below the folders of `data.path` without examples; metadata tables of images count as used."""
    ignored = []
    for place in map(Path, map(os.path.expanduser, data.paths)):
        if not place.is_dir() or is_saved(place):
            continue
        contents = walk(place, kind)
        read = used_files(place, contents, data, kind)
        from_media = read == contents.media
        if from_media and not data.streaming:
            read = [file for file in contents.media if file in used]
        every = [*contents.media, *contents.shards, *contents.others, *contents.odd, *contents.special]
        every += [] if from_media or read == contents.tables else contents.tables
        known = set(read) | used
        ignored += [os.fsencode(file).decode(errors="replace") for file in every if file not in known]
    return sorted(ignored)
