# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""List plain folders of images or videos, and infer splits and classes from their layout.

One walk lists everything. The folder builder of `datasets` walks a folder about sixty times, which takes a quarter of
an hour for ImageNet.
"""

import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from glob import escape
from pathlib import Path

import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, concatenate_datasets, load_dataset

from ..disk import first_line
from ..recipe import RecipeError
from .media import MEDIA, STORAGE


logger = logging.getLogger(__name__)

_TABLES = {"metadata.csv": "csv", "metadata.jsonl": "json", "metadata.parquet": "parquet"}
SPLITS = {  # the same words as in `datasets`
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_BESIDE = r"(?:images?|imgs?|data(?:set)?|set|split|\d+)"  # train2017, images_val, test-set ..
_SPLIT = re.compile(rf"(?:{_BESIDE}[-_. ]*)*({'|'.join(SPLITS)})(?:[-_. ]*{_BESIDE})*", re.IGNORECASE)


@cache
def say(message: str) -> None:
    """Warn once: a path is opened several times before a run starts."""
    logger.warning(message)


def media_kind(name: str) -> str | None:
    """Kind of a file by its extension: "image", "video" or "audio"."""
    extension = os.path.splitext(name)[1].lower()
    return next((kind for kind, medium in MEDIA.items() if extension in medium.extensions), None)


def shard_kind(name: str) -> str | None:
    """Kind of a shard by its file name or URL: "parquet" or "tar"."""
    name = name.partition("?")[0] if "://" in name else name
    found = re.search(r"\.(parquet|tar|tar\.gz|tgz)$", name.lower())
    return None if found is None else "parquet" if found[1] == "parquet" else "tar"


def split_of(name: str) -> str | None:
    """The split that a folder name stands for: train, val2017, test_images .."""
    found = _SPLIT.fullmatch(name)
    return found and SPLITS[found[1].lower()]


@dataclass
class Contents:
    """Everything below a folder, as absolute paths."""

    media: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)  # names that are not UTF-8
    closed: list[str] = field(default_factory=list)  # unreadable folders
    special: list[str] = field(default_factory=list)  # pipes, sockets, devices
    links: int = 0  # symbolic links to files
    again: int = 0  # symbolic links to folders that were listed already


_ignored: dict[str, int] = {}  # files by the folder that was listed


def ignored_below(root: str) -> int:
    """Number of files below a folder that are not read: other types, unusable names, pipes. 0 if it was not listed."""
    return _ignored.get(str(Path(root).absolute()), 0)


def walk(root: Path, kind: str) -> Contents:
    """List everything below `root`. Each folder is visited once even if symlinked; hidden entries are skipped."""
    found, known = Contents(), set()
    pending = [(str(root.absolute()), os.path.realpath(root))]
    linked: list[tuple[str, str]] = []
    while pending or linked:
        place, real = pending.pop() if pending else linked.pop(0)
        if real in known:
            found.again += 1
            continue
        known.add(real)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            found.closed.append(place)
            continue
        for entry in (entry for entry in entries if not entry.name.startswith(".")):
            if _is_special(entry):
                found.special.append(entry.path)
            elif not _is_folder(entry):
                _sort_in(found, entry, kind)
            elif entry.is_symlink():  # visit later, so that the real path of a folder wins over links to it
                linked.append((entry.path, os.path.realpath(entry.path)))
            else:
                pending.append((entry.path, os.path.join(real, entry.name)))
    found.media.sort()
    found.shards.sort()
    found.tables.sort()
    found.odd.sort()
    _ignored[str(root.absolute())] = len(found.others) + len(found.odd) + len(found.special)
    _say_what_is_left_out(found, root)
    return found


def _is_folder(entry: os.DirEntry) -> bool:
    with suppress(OSError):  # circular links
        return entry.is_dir()
    return False


def _is_special(entry: os.DirEntry) -> bool:
    """Whether it is a pipe, socket or device, which could block forever when opened. Dead links are not special."""
    with suppress(OSError):
        return not entry.is_file() and not entry.is_dir() and os.path.exists(entry.path)
    return False


def _sort_in(found: Contents, entry: os.DirEntry, kind: str) -> None:
    wanted, shard = media_kind(entry.name) == kind, shard_kind(entry.name)
    if (wanted or shard) and not _is_utf8(entry.path):
        found.odd.append(entry.path)
    elif wanted:
        found.media.append(entry.path)
        found.links += entry.is_symlink()
    elif entry.name.lower() in _TABLES:
        found.tables.append(entry.path)
    elif shard:
        found.shards.append(entry.path)
    else:
        found.others.append(entry.path)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # Python keeps such bytes as surrogates, which Arrow cannot store
        return False
    return True


def _say_what_is_left_out(found: Contents, root: Path) -> None:
    if found.again:
        say(f"{found.again} symbolic link(s) in {root} point to folders that are read anyway; each is read once.")
    if found.closed:
        say(f"{len(found.closed)} folder(s) in {root} cannot be read, the first is {found.closed[0]}.")
    if found.special:
        say(f"{len(found.special)} pipe(s) or device(s) in {root} are skipped, the first is {found.special[0]}.")
    if found.odd:
        first = os.fsencode(found.odd[0]).decode(errors="replace")
        said = f"have names that are not UTF-8 and are skipped, the first is {first}; rename them."
        say(f"{len(found.odd)} file(s) in {root} {said}")


def list_media(root: Path, found: Contents, kind: str) -> dict[str, Dataset]:
    """Split -> dataset of files, labels, and the columns of metadata.csv, .jsonl or .parquet.

    Folders named train, val2017, test_images .. are splits, at any depth: see `_split_level`. The innermost folders of
    a split are classes if there are several and all are equally deep.
    """
    top = str(root.absolute())
    folders = {folder: _below(top, folder) for folder in {os.path.dirname(file) for file in found.media}}
    depth, names = _split_level(set(folders.values()))
    parts = _divide(root, found, folders, depth, names)
    if names:  # the remaining folder levels are classes
        folders = {folder: _without_split(place, depth, names) for folder, place in folders.items()}
    classes = {split: _classes(files, folders) for split, files in parts.items()}
    labels = sorted({name for known in classes.values() for name in known or ()})
    listed = {}
    for split, files in parts.items():
        columns: dict[str, list] = {kind: [{"bytes": None, "path": file} for file in files]}
        features = Features({kind: MEDIA[kind].written})
        if len(labels) > 1:
            number = {name: i for i, name in enumerate(labels)}
            own = classes[split]
            columns["label"] = list(map(number.get, own)) if own else [None] * len(files)
            features["label"] = ClassLabel(names=labels)
            if not own:
                say(
                    f"{len(files)} {kind}(s) of the split {split!r} of {root} are not in class folders and have "
                    "no labels."
                )
        made = Dataset.from_dict(columns, features=features, split=split)
        listed[split] = made.cast_column(kind, MEDIA[kind].feature())
    return _with_tables(root, found.tables, listed, kind)


def _without_split(place: tuple[str, ...], depth: int, names: dict[str, str]) -> tuple[str, ...]:
    is_class = len(place) > depth and split_of(place[depth]) is None and names[place[depth]] == "train"
    return place if is_class else place[:depth] + place[depth + 1 :]


def _divide(root: Path, found: Contents, folders: dict, depth: int, names: dict[str, str]) -> dict[str, list[str]]:
    """Split -> files. Symbolic links to the same file count once per split."""
    parts: dict[str, list[str]] = {}
    loose = []
    for file in found.media:
        place = folders[os.path.dirname(file)]
        if names and len(place) > depth:
            parts.setdefault(names[place[depth]], []).append(file)
        else:
            loose.append(file)
    if loose and "train" not in parts:
        parts["train"] = loose
    elif loose:
        say(f"{len(loose)} file(s) in {root} are outside its splits and are not used; the first is {loose[0]}.")
    return {split: _once(files, root) for split, files in parts.items()} if found.links else parts


def _classes(files: list[str], folders: dict[str, tuple[str, ...]]) -> list[str] | None:
    """The class of each file of a split; None if some are in no class folder, or if the depths differ."""
    places = [folders[os.path.dirname(file)] for file in files]
    depths = set(map(len, places))
    return [place[-1] for place in places] if len(depths) == 1 and 0 not in depths else None


def _below(top: str, folder: str) -> tuple[str, ...]:
    return () if folder == top else tuple(os.path.relpath(folder, top).split(os.sep))


def _once(files: list[str], root: Path) -> list[str]:
    """Deduplicate by real path: keep the file itself, or else the first link to it."""
    real = {file: os.path.realpath(file) for file in files}
    kept: dict[str, str] = {}
    for file in sorted(files, key=lambda file: (os.path.islink(file), file)):
        kept.setdefault(real[file], file)
    if len(kept) < len(files):
        say(f"{len(files) - len(kept)} symbolic link(s) in {root} point to files that are read anyway.")
    return sorted(kept.values())


def _split_level(folders: set[tuple[str, ...]]) -> tuple[int, dict[str, str]]:
    """Depth at which folder names are splits, and name -> split; (0, {}) if there are no splits.

    Either all folders of a depth are splits (train/, val/; images/train, images/val; cat/train, cat/val), or some of
    several siblings are. If train/ is among those and has subfolders, the other siblings are splits with their own
    names. If there is no train/, they are classes of the training split. A flat train/ among flat siblings is a class.
    """
    depth = 0
    while here := {place[depth] for place in folders if len(place) > depth}:
        splits = {name: split for name in here if (split := split_of(name))}
        shallower = any(len(place) <= depth for place in folders)
        if splits.keys() == here and (depth == 0 or not shallower or len(set(splits.values())) > 1):
            return depth, splits
        if splits and len({place[:depth] for place in folders if len(place) > depth}) == 1:
            if "train" not in splits.values():
                return depth, splits | dict.fromkeys(here - splits.keys(), "train")
            if any(place[depth] in splits for place in folders if len(place) > depth + 1):
                return depth, {name: name for name in here} | splits
        depth += 1
    return 0, {}


def _with_tables(root: Path, tables: list[str], listed: dict[str, Dataset], kind: str) -> dict[str, Dataset]:
    """Join the metadata tables to the files by `file_name`; files that are not in a table get nulls."""
    rows, files = [], []
    for table in tables:
        content = _read_table(table)
        if "file_name" not in content.column_names:
            say(f"{table} has no column file_name and is not used.")
            continue
        if column := next((name for name in content.column_names if name.lower() in ("split", "subset")), None):
            say(
                f"The column {column!r} of {table} does not define splits; put the {kind}s into folders train/ "
                "and test/."
            )
        files += [os.path.join(os.path.dirname(table), str(name)) for name in content["file_name"]]
        rows.append(content.remove_columns("file_name"))
    if not files:
        return listed
    row_of = {os.path.normpath(file): i for i, file in enumerate(files)}
    if len(row_of) < len(files):
        say(
            f"The metadata of {root} have {len(files) - len(row_of)} more rows than files; the last row of each "
            "file is used."
        )
    everywhere = {file["path"] for part in listed.values() for file in _records(part, kind)}
    unnamed, missing = len(everywhere - row_of.keys()), len(row_of.keys() - everywhere)
    if unnamed:
        say(f"{unnamed} of {len(everywhere)} {kind}s in {root} are not in its metadata; they are used without labels.")
    if missing:
        say(f"The metadata of {root} name {missing} {kind}(s) that do not exist.")
    try:
        content = concatenate_datasets(rows)
    except ValueError as error:  # a column has different types in different tables
        raise RecipeError(
            f"The metadata tables of {root} do not match ({error}); use the same column types in all."
        ) from None
    return {split: _joined(part, content, row_of, kind) for split, part in listed.items()}


def _records(part: Dataset, kind: str) -> list[dict]:
    """The encoded records (bytes and path) of the files."""
    return part.cast_column(kind, MEDIA[kind].feature(decode=False))[kind]


def _read_table(table: str) -> Dataset:
    try:
        return load_dataset(_TABLES[os.path.basename(table).lower()], data_files=escape(table), split="train")
    except Exception as error:  # pandas and Arrow raise many types
        said = first_line(error.__cause__ or error)
        raise RecipeError(f"{table} cannot be read ({said}); fix it, save it as UTF-8, or remove it.") from error


def _joined(part: Dataset, content: Dataset, row_of: dict[str, int], kind: str) -> Dataset:
    files = [record["path"] for record in _records(part, kind)]
    rows = pa.array([row_of.get(file) for file in files], pa.int64())
    table = content.data.table.combine_chunks().take(rows)
    columns = {kind: part.data.table[kind]} | {name: table[name] for name in content.column_names if name != kind}
    features = Features({kind: part.features[kind]} | {n: content.features[n] for n in columns if n != kind})
    return Dataset(pa.table(columns, schema=features.arrow_schema), DatasetInfo(features=features), split=part.split)


def sounds_of_tables(tables: list[str]) -> dict[str, Dataset]:
    """Split -> rows of each metadata.csv. Not read by `datasets`, which would need torchcodec to decode the sounds."""
    found = {}
    for table in (table for table in tables if table.endswith(".csv")):
        rows = _read_table(table)
        folder = os.path.dirname(table)
        files = [{"bytes": None, "path": os.path.join(folder, name)} for name in rows["file_name"]]
        split = split_of(os.path.basename(folder)) or "train"
        found[split] = rows.remove_columns("file_name").add_column("audio", files, feature=STORAGE)
    return found
