# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Open `data.path`: a folder, local or remote Parquet or tar shards, a Hub id, or a list of these."""

import logging
import os
import re
import tarfile
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from glob import escape, glob, has_magic
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
from datasets import (
    Dataset,
    IterableDataset,
    NamedSplit,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.parquet.parquet import ParquetConfig

from ..absent import absent, is_absent
from ..coerce import listed
from ..recipe import DataConfig, Place, RecipeError
from .columns import find_columns, wanted_columns
from .folders import (
    SPLITS,
    Contents,
    list_media,
    media_kind,
    say,
    shard_kind,
    sounds_of_tables,
    split_of,
    walk,
)
from .labels import find_label_column
from .media import MEDIA, instead
from .parquet import REMOTE_PARQUET, features_of_file, load_parquet
from .tars import read_tars, tar_layout


logger = logging.getLogger(__name__)

_FORMS = (
    "a folder, Parquet or tar files (paths and URLs such as https://, hf:// and s3://, also with * or {a,b}), a Hub "
    "dataset, or a list of these"
)
_MOST_FILES = 1_000_000
_TEXTS = (".txt", ".md", ".rst", ".log", ".pdf", ".html", ".doc", ".docx", ".py", ".ipynb")  # never hold examples
FOLDER_SHARDS = 256  # number of shards that a plain folder is split into for streaming


def open_place(data: DataConfig, streaming: bool, kind: str = "image", only_media: bool = False) -> dict:
    """Split -> dataset, for every kind of path.

    Args:
        only_media: read only the media columns of streamed Parquet files; the others may differ between files.

    Raises:
        RecipeError: the path does not exist or cannot be loaded.
    """
    if not isinstance(data.path, str):
        return _open_places(data, streaming, kind, only_media)
    try:
        return _open_one(data.path, data, streaming, kind, only_media)
    except RecipeError:
        raise
    except Exception as error:  # datasets, fsspec and huggingface_hub raise dozens of exception types
        said, cause = _said(error), error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if "://" not in data.path and not os.path.exists(data.path):
            if is_absent(error):
                raise RecipeError(f"data.path={data.path}: {absent(data.path, error, 'dataset')}") from error
            raise RecipeError(f"data.path={data.path} could not be loaded from the Hub: {said}") from error
        if isinstance(cause, (tarfile.ReadError, pa.ArrowInvalid)) and not streaming:
            said += " Remove the damaged file, or set data.streaming=true, which skips it."
        raise RecipeError(f"data.path={data.path} could not be loaded: {said}") from error


def _said(error: Exception) -> str:
    """Message of an exception, or of its cause if generating a dataset failed."""
    if isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return (" ".join(str(error).split())[:300] or type(error).__name__).rstrip(".") + "."


def _open_one(address: str, data: DataConfig, streaming: bool, kind: str, only_media: bool) -> dict:
    place = address.removeprefix("file://")
    path = Path(place).expanduser()
    if "://" in place or (shard_kind(place) and not path.is_dir()):
        files = _files_at(place, address)
        return _open_shards({"train": files}, data, streaming, kind, only_media)
    if path.is_dir():
        return _open_folder(path, data, streaming, kind, only_media)
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", place):
        if path.exists() and (kind_of_file := media_kind(place)):
            raise RecipeError(f"data.path={address} is a single {kind_of_file}; pass its folder.")
        fault = "is not a folder, Parquet or tar file" if path.exists() else "does not exist"
        raise RecipeError(f"data.path={address} {fault}; use {_FORMS}.")
    if not streaming:
        return load_dataset(place, data.name, revision=data.revision)
    builder = load_dataset_builder(place, data.name, revision=data.revision)
    if isinstance(builder.config, ParquetConfig):
        builder.config.fragment_scan_options = REMOTE_PARQUET
    return builder.as_streaming_dataset()


def _files_at(place: str, path: str) -> list[str]:
    """The shards of a path or URL, with braces and globs expanded.

    Raises:
        RecipeError: nothing matches, or it does not name Parquet or tar files.
    """
    if shard_kind(place) is None:
        raise RecipeError(f"data.path={path} is not a Parquet or tar file; use {_FORMS}.")
    if os.path.isfile(os.path.expanduser(place)):
        return [os.path.expanduser(place)]
    files = []
    for one in expand_braces(place):
        if "://" not in one:
            one = os.path.expanduser(one)
            files += [one] if os.path.isfile(one) else sorted(glob(one, recursive=True))
        elif has_magic(one.partition("?")[0]):
            system, _, found = fsspec.get_fs_token_paths(one)
            files += sorted(map(system.unstrip_protocol, found))
        else:
            files.append(one)
    if not files:
        raise RecipeError(f"No file matches data.path={path}.")
    return files


def expand_braces(text: str) -> list[str]:
    """Expand `{a,b}` and `{000..099}` like a shell."""
    found = re.search(r"\{([^{}]*)\}", text)
    if found is None:
        return [text]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if ends:
        low, high = int(ends[1]), int(ends[2])
        if high - low >= _MOST_FILES:
            raise RecipeError(
                f"data.path={text} names {high - low + 1:,} files; at most {_MOST_FILES:,} are supported."
            )
        choices = [f"{i:0{len(ends[1])}}" for i in range(low, high + 1)]
    else:
        choices = found[1].split(",")
    return [one for choice in choices for one in expand_braces(text[: found.start()] + choice + text[found.end() :])]


def _open_folder(path: Path, data: DataConfig, streaming: bool, kind: str, only_media: bool) -> dict:
    """Open a folder saved by `datasets`, a folder of shards, or a folder of media files."""
    if is_saved(path):
        saved = load_from_disk(str(path))
        # "train[:100]" is "train" too
        return saved if isinstance(saved, dict) else {re.split(r"\W", str(saved.split or "train"))[0]: saved}
    found = walk(path, kind)
    used = used_files(path, found, data, kind)
    if used and used == found.media:
        return list_media(path, found, kind)
    if used and used == found.tables:
        return sounds_of_tables(found.tables)
    if used and not found.media and not has_magic(str(path)) and shard_kind(used[0]) == "parquet":
        return load_parquet(str(path), used, data, streaming, kind, only_media, name=data.name)
    if used:
        parts: dict[str, list[str]] = {}
        for file in used:
            parts.setdefault(_split_of_file(os.path.relpath(file, path)), []).append(file)
        return _open_shards(parts, data, streaming, kind, only_media)
    return _load_otherwise(path, found, data, streaming, kind)


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def used_files(path: Path, found: Contents, data: DataConfig, kind: str) -> list[str]:
    """The files of a folder that hold the examples: shards, tables that list sounds, or the media files."""
    shards = _useful_shards(path, found, data, kind)
    return shards or (found.tables if MEDIA[kind].tabled and found.tables else found.media)


def _useful_shards(path: Path, found: Contents, data: DataConfig, kind: str) -> list[str]:
    """The Parquet or tar files of a folder, unless they hold no media and lie among the actual images."""
    kinds = {name: [file for file in found.shards if shard_kind(file) == name] for name in ("parquet", "tar")}
    if not found.media and len(list(filter(None, kinds.values()))) < 2:
        return found.shards
    for files in kinds.values():
        if files and _hold(files, data, kind):
            rest = len(found.media) + len(found.shards) - len(files)
            if rest:
                say(f"{path}: its {len(files)} shard(s) with {kind}s are used, {rest} other file(s) are not.")
            return files
    if found.shards:
        say(f"{len(found.shards)} Parquet or tar file(s) in {path} contain no {kind}s and are not used.")
    return []


def _hold(files: list[str], data: DataConfig, kind: str) -> bool:
    with suppress(Exception):  # no such column, or a damaged file
        wanted = wanted_columns(data, kind)
        parquet = shard_kind(files[0]) == "parquet"
        features = features_of_file(files[0]) if parquet else tar_layout(files, data).features
        return bool(find_columns(features, wanted))
    return False


def _split_of_file(name: str) -> str:
    """The split of a shard, by its folder or file name as in `datasets`; "train" by default."""
    *folders, file = name.split(os.sep)
    numbered = re.match(r"(\w+)-\d{5}-of-\d{5}", file)
    if numbered:
        return SPLITS.get(numbered[1].lower(), numbered[1])
    words = [split_of(folder) for folder in folders]
    words += [SPLITS.get(word) for word in re.split(r"[^a-z]+", file.lower())]
    return next(filter(None, words), "train")


def _load_otherwise(path: Path, found: Contents, data: DataConfig, streaming: bool, kind: str) -> dict:
    """Let `datasets` try other formats (Arrow, Lance, zip, a dataset card that points to files elsewhere).

    Raises:
        RecipeError: it finds nothing, or only files of another kind.
    """
    counts = Counter(os.path.splitext(file)[1].lower() or os.path.basename(file) for file in found.others)
    there = listed(f"{count} {extension}" for extension, count in counts.most_common())
    others = Counter(filter(None, map(media_kind, found.others)))
    readable = [file for file in found.others if not media_kind(file) and not file.lower().endswith(_TEXTS)]
    if found.others and not readable and not any(wanted_columns(data, kind).values()):
        if others:
            other, count = others.most_common(1)[0]
            said = f"{count:,} {other}s; {instead(kind, other)}"
            raise RecipeError(f"data.path={data.path} has no {kind} column or file, but {said}.")
        raise RecipeError(f"data.path={data.path} contains no {kind}s ({there}); use {_FORMS} with {kind}s.")
    try:
        return load_dataset(str(path), name=data.name, streaming=streaming)
    except Exception as error:
        raise RecipeError(
            f"data.path={data.path} could not be loaded: it has no readable {kind}s"
            f"{f' ({there})' if there else ''}, and `datasets` reports: {_said(error)}"
        ) from error


def _open_shards(parts: dict[str, list[str]], data: DataConfig, streaming: bool, kind: str, only_media: bool) -> dict:
    """Split -> Parquet or tar files."""
    files = [file for part in parts.values() for file in part]
    if shard_kind(files[0]) == "parquet":
        paths = {split: [one if "://" in one else escape(one) for one in part] for split, part in parts.items()}
        return load_parquet("parquet", files, data, streaming, kind, only_media, data_files=paths)
    layout = tar_layout(files, data)
    made = {}
    for split, part in parts.items():
        given = {"features": layout.features, "split": NamedSplit(split)}
        if streaming:
            kwargs = {"files": part, "layout": layout}
            made[split] = IterableDataset.from_generator(read_tars, gen_kwargs=kwargs, **given)
        else:  # copied to the cache of `datasets`, whose key must change when a shard does
            versions = tuple(str(_version(file)) for file in part)
            kwargs = {"files": part, "layout": replace(layout, versions=versions)}
            made[split] = Dataset.from_generator(read_tars, gen_kwargs=kwargs, **given)
    return made


def _version(file: str) -> str:
    system, path = fsspec.url_to_fs(file)
    return system.ukey(path)


def _open_places(data: DataConfig, streaming: bool, kind: str, only_media: bool) -> dict:
    """The splits that all paths of a list share, concatenated; see `DataConfig.path` for the weights.

    Raises:
        RecipeError: see `open_place`; also for weights that are impossible for the data.
    """
    opened = [open_place(replace(data, path=place.path), streaming, kind, only_media) for place in data.places]
    shared = [split for split in opened[0] if all(split in parts for parts in opened)]
    return {split: _joined([parts[split] for parts in opened], data, split, kind, only_media) for split in shared}


def _joined(parts: list, data: DataConfig, split: str, kind: str, only_media: bool):
    """Concatenate datasets, with columns renamed to their kind; labels are kept if all have the same label type."""
    parts = [part if part.features is not None else part._resolve_features() for part in parts]
    labels = [None if only_media else find_label_column(part.features, data.label_column) for part in parts]
    types = [part.features[label] if label else None for part, label in zip(parts, labels, strict=True)]
    labeled = types[0] is not None and all(one == types[0] for one in types)
    listed_alike = all(isinstance(part, Dataset) for part in parts)
    uniform = []
    for part, label, place in zip(parts, labels, data.places, strict=True):
        columns = find_columns(part.features, wanted_columns(data, kind), place.path)
        names = {column: name for name, column in columns.items()} | ({label: "label"} if labeled else {})
        part = part.select_columns(list(names))
        for name, column in columns.items():
            part = part.cast_column(column, MEDIA[name].feature(decode=False))
        renamed = {old: new for old, new in names.items() if old != new}
        part = part.rename_columns(renamed) if renamed else part
        if isinstance(part, Dataset) and not listed_alike:
            part = part.to_iterable_dataset(num_shards=min(len(part), FOLDER_SHARDS))
        uniform += _repeated(part, place, kind)
    return concatenate_datasets(uniform, split=NamedSplit(split))


def _repeated(dataset, place: Place, kind: str) -> list:
    """Repeat the examples of a path by its weight: the whole dataset repeatedly, and a seeded sample for the rest."""
    times, part = divmod(place.weight, 1)
    if MEDIA[kind].once and times + (part > 0) > 1:
        raise RecipeError(
            f"data.path: {place.path} has weight {place.weight:g}, but a clip can be used only once; set 1 or less."
        )
    if isinstance(dataset, IterableDataset):
        if part:
            raise RecipeError(f"data.path: {place.path} has weight {place.weight:g}; streams need whole numbers.")
        return [dataset] * int(times)
    chosen = np.random.default_rng(0).permutation(len(dataset))[: round(part * len(dataset))]
    return [dataset] * int(times) + ([dataset.select(np.sort(chosen))] if len(chosen) else [])
