# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Fingerprint of the training data, so that resuming on different data is noticed: counts, names and sizes.

File contents are never read. For datasets created in Python, only length and columns count; for remote files, only
their names.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset

from .sources import Source
from .streams import ImageStream


_MOST_SIZES = 10_000  # at most this many file sizes are looked up, evenly spaced

_WORDS = {
    "examples": "the number of examples",
    "shards": "the number of shards",
    "columns": "the columns",
    "names": "the names of the files",
    "sizes": "the sizes of the files",
}


def fingerprint(source: Source | ImageStream, made_in_python: bool) -> dict[str, Any]:
    """Plain data that identifies the examples and their order, independent of their location."""
    if isinstance(source, ImageStream):
        if source.origin is not None:  # a folder of files or a saved dataset, streamed
            return _of_dataset(source.origin, list(source.columns.values()), made_in_python)
        files = [source.file_of(shard) or "" for shard in range(source.num_shards)]
        columns = {"shards": source.num_shards, "columns": _digest([repr(source.features)])}
        return columns if made_in_python or not all(files) else columns | _of_files(list(dict.fromkeys(files)))
    return _of_dataset(source.dataset, list(source.columns.values()), made_in_python)


def difference(before: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """What has changed, in words; None if nothing has, or if there is no earlier fingerprint."""
    if not before:
        return None
    changed = [key for key in _WORDS if key in before and before[key] != now.get(key)]
    said = [
        f"{_WORDS[key]} ({before[key]:,} then, {now.get(key, 0):,} now)" for key in changed if _is_number(before, key)
    ]
    return ", ".join(said or [_WORDS[key] for key in changed]) or None


def _is_number(values: dict[str, Any], key: str) -> bool:
    return isinstance(values[key], int)


def _of_dataset(dataset: Dataset, columns: list[str], made_in_python: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"examples": len(dataset)}
    found["columns"] = _digest([repr(dataset.features[column]) for column in columns])
    if made_in_python:
        return found
    names, sizes = xxhash.xxh3_64(), xxhash.xxh3_64()
    files: list[str] = []
    for column in columns:
        for chunk in dataset.data.column(column).chunks:
            if not pa.types.is_struct(chunk.type):
                return found
            content, paths = chunk.field("bytes"), chunk.field("path").to_pylist()
            alone = content.is_null().to_pylist()
            named = ["" if own else path or "" for own, path in zip(alone, paths, strict=True)]
            names.update(_bytes(named))
            sizes.update(np.asarray(pc.fill_null(pc.binary_length(content), -1)).astype(np.int64).tobytes())
            files += [path for own, path in zip(alone, paths, strict=True) if own and path]
    found |= {"names": names.hexdigest(), "sizes": sizes.hexdigest()}
    if files:
        more = _of_files(files)
        found = {**found, **{key: found[key] + more[key] for key in more}}
    return found


def _of_files(files: list[str]) -> dict[str, str]:
    """Digests of the names, relative to the common folder so that data can be moved, and of the local files' sizes."""
    base = (
        os.path.commonpath([os.path.dirname(file) for file in files])
        if len(set(map(os.path.isabs, files))) == 1
        else ""
    )
    step = -(-len(files) // _MOST_SIZES)
    return {
        "names": _digest([os.path.relpath(file, base) if base else file for file in files]),
        "sizes": _digest([str(_size(file)) for file in files[::step]]),
    }


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except (OSError, ValueError):  # remote, or deleted
        return -1


def _digest(texts: list[str]) -> str:
    return xxhash.xxh3_64_hexdigest(_bytes(texts))


def _bytes(texts: list[str]) -> bytes:
    return "\0".join(texts).encode("utf-8", "surrogateescape")
