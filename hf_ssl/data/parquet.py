# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Load Parquet files as one dataset, even if their columns differ or some files are unreadable."""

import os
from collections.abc import Iterable
from contextlib import nullcontext, suppress

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from datasets import Features, load_dataset

from ..logs import without_bars
from ..recipe import DataConfig, RecipeError
from .columns import find_columns, wanted_columns


# For streaming over a network: a few large requests, with one prefetched.
REMOTE_PARQUET = pads.ParquetFragmentScanOptions(
    cache_options=pa.CacheOptions(prefetch_limit=1, range_size_limit=128 << 20)
)

_SMALL = 2 << 30  # bytes


def load_parquet(
    what: str, files: list[str], data: DataConfig, streaming: bool, kind: str, only_media: bool, **options
) -> dict:
    """`load_dataset` for Parquet files with different columns: it takes the columns from the first file only.

    Here the columns are the union over all files, and missing ones are null. Media streams can have very many files,
    so only their media columns are read and corrupt files are skipped.
    """
    with without_bars() if _small(files) else nullcontext():
        return _load(what, files, data, streaming, kind, only_media, options)


def _small(files: list[str]) -> bool:
    """Whether conversion to Arrow takes seconds, so that its progress bar is noise."""
    with suppress(OSError):  # a remote or unreadable file
        return sum(map(os.path.getsize, files)) < _SMALL
    return False


def _load(
    what: str, files: list[str], data: DataConfig, streaming: bool, kind: str, only_media: bool, options: dict
) -> dict:
    narrow = only_media and streaming
    if streaming and "://" in files[0]:
        options["fragment_scan_options"] = REMOTE_PARQUET
    if not narrow and "://" not in files[0]:
        schemas = list(filter(None, map(features_of_file, files)))
        if any(schema != schemas[0] for schema in schemas):
            options["features"] = _all_columns(schemas)
    try:
        parts = load_dataset(what, streaming=streaming, **options)
        if narrow:
            features = next(iter(parts.values())).features
            columns = list(find_columns(features, wanted_columns(data, kind), data.path).values())
            parts = load_dataset(what, streaming=True, columns=columns, **options)
        return parts
    except Exception:
        with suppress(Exception):  # if the retry fails too, report the first error
            features = _all_columns(filter(None, map(features_of_file, files)))
            if narrow:
                columns = list(find_columns(features, wanted_columns(data, kind), data.path).values())
                options["columns"], features = columns, Features({name: features[name] for name in columns})
            return load_dataset(what, streaming=streaming, **options | {"features": features})
        damaged = [file for file in files if features_of_file(file) is None]
        if damaged and len(damaged) < len(files):
            said = f"{len(damaged)} of {len(files)} Parquet files cannot be read, the first is {damaged[0]}"
            raise RecipeError(
                f"{said}; remove the damaged files, or set data.streaming=true, which skips them."
            ) from None
        raise


def _all_columns(schemas: Iterable[Features]) -> Features:
    features = Features()
    for schema in schemas:
        features |= {name: feature for name, feature in schema.items() if name not in features}
    return Features(features)


def features_of_file(file: str) -> Features | None:
    with suppress(Exception), fsspec.open(file, "rb") as opened:  # None if corrupt
        return Features.from_arrow_schema(pq.read_schema(opened))
    return None
