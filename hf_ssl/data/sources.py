# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Any dataset of images, or of videos with sound -> examples: a Hub id, a folder, Parquet or tar shards, or a
`datasets.Dataset`.

Files stay encoded until a loader's worker opens them, so that a bad file is one skipped example and not a failed
load. Plain folders of them are listed here, in one walk: the folder builder of `datasets` walks a folder some sixty
times, which takes a quarter of an hour for ImageNet's.
"""

import copy
import io
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features, Value, load_dataset, load_from_disk
from PIL import Image

from ..recipe import DataConfig, RecipeError, nearest
from .labels import check_column, find_label_column, label_classes, number_classes


_EXTENSIONS = {
    "image": ".avif .bmp .gif .jp2 .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split(),
    "video": ".avi .m4v .mkv .mov .mp4 .webm".split(),
    "audio": ".flac .m4a .mp3 .ogg .opus .wav".split(),
}
_FEATURES = {"image": datasets.Image, "video": datasets.Video, "audio": datasets.Audio}
_SHARDS = {".parquet": "parquet", ".tar": "webdataset"}
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)


class Source:
    """Encoded files, and labels where there are any, of a map-style `datasets.Dataset`.

    Args:
        wanted: names of the columns, see `find_columns`.
        label_column: found by its type (ClassLabel), or by its name (label, labels) when it holds numbers or texts;
            may be missing.
        max_megapixels: larger images are not read.

    Raises:
        RecipeError: a column that is not there, or several that it could be, or no map-style dataset.
    """

    def __init__(
        self,
        dataset: Dataset,
        wanted: dict[str, str | None],
        label_column: str | None = None,
        max_megapixels: float = 50.0,
    ):
        if not isinstance(dataset, Dataset):
            raise RecipeError(f"A datasets.Dataset (one split, not streamed) is needed, not {type(dataset).__name__}.")
        dataset = dataset.with_format(None)
        self._cells, self.columns = encoded(dataset, wanted)
        self.label_column = find_label_column(dataset.features, label_column)
        self.split = str(dataset.split or "the dataset")
        self.part = self.split
        self.max_megapixels = max_megapixels
        self._labels = dataset.select_columns([self.label_column]) if self.label_column else None
        self._numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def dataset(self) -> Dataset:
        """The files, still encoded, in `columns`."""
        return self._cells

    def cell(self, index: int) -> dict[str, Any] | None:
        """The encoded file, see `cell_of`."""
        return cell_of(self._cells[index], self.columns)

    def image(self, index: int) -> Image.Image:
        """The image, opened but not yet decoded; see `open_image`."""
        return open_image(self.cell(index), self.max_megapixels)

    def label(self, index: int) -> Any:
        """As the dataset has it."""
        return None if self._labels is None else self._labels[index][self.label_column]

    def classes(self) -> list:
        """The class of every example, None for none; see `label_classes`."""
        if self._labels is None:
            return [None] * len(self)
        feature = self._labels.features[self.label_column]
        return label_classes(feature, self._labels[:][self.label_column], self.label_column)

    @property
    def numbers(self) -> np.ndarray:
        """Numbers 0..K-1 of the examples' classes, int64 (N,), -1 for none: its own, or those of `numbered`."""
        if self._numbers is None:
            (self._numbers,) = number_classes(self.classes())
        return self._numbers

    def numbered(self, numbers: np.ndarray) -> Self:
        """The source with class numbers that it has in common with another one."""
        copied = copy.copy(self)
        copied._numbers = numbers
        return copied

    def name(self, index: int) -> str:
        """What a message calls an example: its file, or its row."""
        return name_of(self.cell(index), f"row {index} of {self.split}")

    def select(self, indices: Sequence[int], part_name: str | None = None) -> Self:
        """A part of the source, and what a person calls it."""
        part = copy.copy(self)
        part.part = part_name or self.part
        part._cells = self._cells.select(indices)
        part._labels = None if self._labels is None else self._labels.select(indices)
        part._numbers = None if self._numbers is None else self._numbers[list(indices)]
        return part


class ImageSource(Source):
    """Images of a map-style dataset, see `Source`; the column is found by its type when there is one only."""

    def __init__(
        self,
        dataset: Dataset,
        image_column: str | None = None,
        label_column: str | None = None,
        max_megapixels: float = 50.0,
    ):
        super().__init__(dataset, {"image": image_column}, label_column, max_megapixels)
        self.image_column = self.columns["image"]


def encoded(dataset, wanted: dict[str, str | None], where: str | None = "the dataset") -> tuple[Any, dict[str, str]]:
    """A dataset reduced to its images, or videos and sounds, which stay encoded; and their columns."""
    columns = find_columns(dataset.features, wanted, where)
    dataset = dataset.select_columns(list(columns.values()))
    for kind, column in columns.items():
        dataset = dataset.cast_column(column, _FEATURES[kind](decode=False))
    return dataset, columns


def cell_of(example: dict[str, Any], columns: dict[str, str]) -> dict[str, Any] | None:
    """{"bytes", "path"} of an example's file or None; with "audio", another such, where it has a column of its own."""
    cell = example[next(iter(columns.values()))]
    return {**cell, "audio": example[columns["audio"]]} if cell and "audio" in columns else cell


def name_of(cell: dict[str, Any] | None, place: str) -> str:
    """What a message calls an example: its file, or its place in the dataset."""
    if not cell or not cell["path"]:
        return place
    return cell["path"] if cell["bytes"] is None else f"{cell['path']} ({place})"


def open_image(cell: dict | None, max_megapixels: float) -> Image.Image:
    """An encoded image ({"bytes", "path"}), opened but not yet decoded.

    Raises:
        OSError, ValueError: it is missing, cannot be read, or has more than `max_megapixels`. Pillow refuses more than
            179 million pixels, which it takes for an attack (twice `PIL.Image.MAX_IMAGE_PIXELS`), whatever is allowed.
    """
    if cell is None:
        raise ValueError("the row has no image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])
        except Image.UnidentifiedImageError:
            raise OSError("not an image, or of a kind that Pillow cannot read") from None
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from None
    pixels = image.size[0] * image.size[1] / 1e6
    if pixels > max_megapixels:
        raise ValueError(f"{pixels:.1f} megapixels, more than data.max_megapixels={max_megapixels:g}")
    return image


def load_source(data: DataConfig, split: str | None = None, kind: str = "image") -> Source:
    """The images, or with `kind` "video" or "audio" the clips, of a recipe's `data` section.

    Raises:
        RecipeError: see `check_source`; or the split is empty.
    """
    check_source(data, split, kind)
    split = split or data.split
    dataset = open_place(data, False, kind)[split]
    if data.max_examples is not None:
        dataset = dataset.select(range(min(data.max_examples, len(dataset))))
    if len(dataset) == 0:
        raise RecipeError(f"The split {split!r} of {data.path} is empty.")
    return source_of(dataset, data, kind)


def source_of(dataset: Dataset, data: DataConfig, kind: str = "image") -> Source:
    """A dataset of one's own with the columns and limits of a recipe's `data` section."""
    return Source(dataset, wanted_columns(data, kind), data.label_column, data.max_megapixels)


def check_source(data: DataConfig, split: str | None = None, kind: str = "image") -> Features:
    """Look at a source's splits and columns without converting anything.

    Returns:
        The features of the split.

    Raises:
        RecipeError: no such place, split or column, with the nearest valid name.
    """
    found = available_splits(data, kind)
    split = split or data.split
    if split not in found:
        raise RecipeError(f"{data.path} has no split {split!r}{nearest(split, found)}")
    features = found[split]
    find_columns(features, wanted_columns(data, kind), data.path)
    find_label_column(features, data.label_column, data.path)
    return features


def available_splits(data: DataConfig, kind: str = "image") -> dict[str, Features]:
    """Split -> features of a source, from its metadata.

    Raises:
        RecipeError: there is nothing to load.
    """
    if data.path is None:
        raise RecipeError(
            f"The recipe has no data; set data.path to a folder of {kind}s, Parquet files or a Hub dataset."
        )
    splits = open_place(data, True, kind)
    return {name: part.features or part._resolve_features().features for name, part in splits.items()}


def wanted_columns(data: DataConfig, kind: str) -> dict[str, str | None]:
    """What a recipe says about the columns, for `find_columns`."""
    return {k: getattr(data, f"{k}_column") for k in (("video", "audio") if kind == "video" else (kind,))}


def find_columns(
    features: Features, wanted: dict[str, str | None], where: str | None = "the dataset"
) -> dict[str, str]:
    """Columns of images, or of videos and of sounds: those named in `wanted`, or the only ones of their type.

    Parquet files that `datasets` did not write have no type Image, Video or Audio, only its storage: a struct of bytes
    and path. Where nothing has the type, a video is looked for among plain bytes. Sound may have no column.

    Raises:
        RecipeError: not there, or several.
    """
    found = {}
    for kind, name in wanted.items():
        typed = [column for column, feature in features.items() if isinstance(feature, _FEATURES[kind])]
        structs = [c for c, f in features.items() if isinstance(f, dict) and f.keys() == {"bytes", "path"}]
        binary = [c for c, f in features.items() if f in (Value("binary"), Value("large_binary"))]
        choice = {"image": typed + structs, "video": typed or structs or binary, "audio": typed or structs}[kind]
        if name is None and kind == "audio" and "video" in wanted and not typed:
            continue
        if name is not None:
            check_column(name, features, [*typed, *structs, *binary], f"{kind}s", where)
        elif len(choice) != 1:
            said = f"several {kind} columns ({', '.join(choice)})" if choice else f"no {kind} column"
            raise RecipeError(f"{where} has {said}; set data.{kind}_column to one of {', '.join(choice or features)}.")
        found[kind] = name or choice[0]
    return found


def open_place(data: DataConfig, streaming: bool, kind: str = "image") -> dict:
    """Split -> dataset, for every kind of place."""
    path = Path(data.path).expanduser()
    try:
        if path.is_dir():
            return _open_folder(path, data.name, streaming, kind)
        if path.suffix in _SHARDS:  # a file or a glob
            files = sorted(glob(str(path), recursive=True))
            if not files and not path.is_file():
                raise RecipeError(f"No file matches data.path={data.path}.")
            return _load_shards(_SHARDS[path.suffix], files, data_files={"train": str(path)}, streaming=streaming)
        if path.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", data.path):
            fault = "is not a folder, Parquet or tar file" if path.exists() else "does not exist"
            raise RecipeError(
                f"data.path={data.path} {fault}; give a folder of {kind}s, Parquet or tar files or a Hub dataset."
            )
        return load_dataset(data.path, data.name, revision=data.revision, streaming=streaming)
    except RecipeError:
        raise
    except Exception as error:  # datasets and huggingface_hub raise dozens of classes here
        said = " ".join(str(error).split())[:300] or type(error).__name__
        where = "" if path.exists() else " is no folder here, and as a Hub dataset it"
        raise RecipeError(f"data.path={data.path}{where} could not be loaded: {said}") from error


def _open_folder(path: Path, name: str | None, streaming: bool, kind: str) -> dict:
    """A folder that `datasets` saved, one that holds files it reads (Parquet, metadata.csv ...), or one of images or
    videos.
    """
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        saved = load_from_disk(str(path))
        # "train[:100]" is "train" too
        return saved if isinstance(saved, dict) else {re.split(r"\W", str(saved.split or "train"))[0]: saved}
    shards = sorted(str(p) for p in path.rglob("*") if p.suffix in _SHARDS)
    tables = shards or [*path.glob("metadata.*"), *path.glob("*/metadata.csv")]
    if kind == "audio" and not shards and tables:
        return dict(map(_sounds_of_table, (table for table in tables if table.suffix == ".csv")))
    listed = {} if tables else _list_files(path, kind)
    return listed or _load_shards(str(path), shards, name=name, streaming=streaming)


def _sounds_of_table(table: Path) -> tuple[str, Dataset]:
    """Split and rows of a metadata.csv; `datasets` would want to decode its sounds, and torchcodec for that."""
    rows = load_dataset("csv", data_files=str(table), split="train")
    files = [{"bytes": None, "path": str(table.parent.absolute() / name)} for name in rows["file_name"]]
    feature = {"bytes": Value("binary"), "path": Value("string")}
    split = _SPLIT_NAMES.get(table.parent.name.lower(), "train")
    return split, rows.remove_columns("file_name").add_column("audio", files, feature=feature)


def _load_shards(what: str, files: list[str], **options) -> dict:
    """`load_dataset`, which learns the columns from the first file; when that is corrupt, from the first that is not,
    so that a stream can pass over it.
    """
    try:
        return load_dataset(what, **options)
    except Exception:
        for file in files[1:] if options["streaming"] else []:
            with suppress(Exception):  # corrupt, too
                kind = _SHARDS[Path(file).suffix]
                features = load_dataset(kind, data_files=file, split="train", streaming=True).features
                return load_dataset(what, features=features, **options)
        raise


def _list_files(root: Path, kind: str) -> dict[str, Dataset]:
    """Split -> files and labels of a folder of images or videos; empty when there is none.

    Subfolders called train, test or validation are splits, as long as they do not stand among class folders. Class
    folders are the innermost ones, when there are several and all are equally deep.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    named = [p for p in folders if p.name.lower() in _SPLIT_NAMES]
    if named and (named == folders or any(entry.is_dir() for p in named for entry in os.scandir(p))):
        tops = {_SPLIT_NAMES.get(p.name.lower(), p.name): p for p in folders}
    else:
        tops = {"train": root}
    parts = {split: files for split, top in tops.items() if (files := _files(top, kind))}
    parents = [{os.path.dirname(file) for file in files} for files in parts.values()]
    classes = sorted({os.path.basename(folder) for folders in parents for folder in folders})
    depths = {folder.count(os.sep) for folders in parents for folder in folders}
    loose = {str(top.absolute()) for top in tops.values()} & set().union(*parents)  # no class is called "test"
    labelled = len(classes) > 1 and len(depths) == 1 and not loose
    number = {name: i for i, name in enumerate(classes)}
    features = Features({kind: _FEATURES[kind]()} | ({"label": ClassLabel(names=classes)} if labelled else {}))
    found = {}
    for split, files in parts.items():
        columns: dict[str, list] = {kind: [{"bytes": None, "path": file} for file in files]}
        if labelled:
            columns["label"] = [number[os.path.basename(os.path.dirname(file))] for file in files]
        found[split] = Dataset.from_dict(columns, features=features, split=split)
    return found


def _files(folder: Path, kind: str) -> list[str]:
    """Absolute paths of all images, or videos, below a folder, sorted; hidden files and folders are left out."""
    files = []
    for place, folders, names in os.walk(folder.absolute(), followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [
            os.path.join(place, name)
            for name in names
            if name[0] != "." and os.path.splitext(name)[1].lower() in _EXTENSIONS[kind]
        ]
    return sorted(files)
