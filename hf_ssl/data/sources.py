# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Map-style access to any dataset of images, or of videos with sound.

Files stay encoded until a loader worker opens them, so that a bad file costs one example and does not fail the load.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from datasets import Dataset, Features
from PIL import Image

from ..recipe import DataConfig, RecipeError, nearest
from .columns import encoded, find_columns, name_of, record_of, wanted_columns
from .labels import find_label_column, label_classes, number_classes
from .media import MEDIA, require_reader
from .pixels import DEFAULT, Decoding, open_image, sample_indices, settled
from .places import open_place


logger = logging.getLogger(__name__)


class Source:
    """Encoded files, and labels if there are any, of a map-style `datasets.Dataset`.

    Args:
        wanted: names of the columns, see `find_columns`.
        label_column: by default found by type (ClassLabel), or by name (label, labels, cls) if it holds numbers or
            strings; optional.
        max_megapixels: larger images are not read.
        decoding: how images become 8-bit pixels.

    Attributes:
        part: display name of the examples.
        rows: row of each example in the original dataset, before `select`.
        trained_on: whether some of them are known to be pretraining examples with the same row numbers.
        boxes: crop box (left, top, right, bottom) of each image; None for whole images.

    Raises:
        RecipeError: a column is missing or ambiguous, or the dataset is not map-style.
    """

    def __init__(
        self,
        dataset: Dataset,
        wanted: dict[str, str | None],
        label_column: str | None = None,
        max_megapixels: float = 50.0,
        decoding: Decoding = DEFAULT,
    ):
        if not isinstance(dataset, Dataset):
            raise RecipeError(f"Expected a datasets.Dataset (one split, not streamed), not {type(dataset).__name__}.")
        transformed = dataset if dataset.format["type"] == "custom" else None
        dataset = dataset.with_format(None)
        self._records, self.columns = encoded(dataset, wanted)
        if transformed is not None and _gives_images(transformed, self.columns):
            self._records = transformed
        self.label_column = find_label_column(dataset.features, label_column)
        self.split = str(dataset.split or "the dataset")
        self.part, self.rows, self.trained_on = self.split, np.arange(len(dataset)), False
        self.max_megapixels, self.decoding = max_megapixels, decoding
        self.boxes: list[tuple[int, int, int, int]] | None = None
        self._labels = dataset.select_columns([self.label_column]) if self.label_column else None
        self._numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._records)

    @property
    def dataset(self) -> Dataset:
        """The encoded files as a dataset with `columns`."""
        return self._records

    def record(self, index: int) -> dict[str, Any] | None:
        """The encoded file, see `record_of`; with `boxes`, the cropped image."""
        record = record_of(self._records[index], self.columns)
        if record is None or self.boxes is None:
            return record
        return {**record, "bytes": None, "image": open_image(record, self.max_megapixels).crop(self.boxes[index])}

    def image(self, index: int) -> Image.Image:
        """The image, opened but not yet decoded; see `open_image`."""
        return open_image(self.record(index), self.max_megapixels)

    def label(self, index: int) -> Any:
        """The raw label, as stored in the dataset."""
        return None if self._labels is None else self._labels[index][self.label_column]

    def classes(self) -> list:
        """The class of every example, None if unlabeled; see `label_classes`."""
        if self._labels is None or self.label_column is None:
            return [None] * len(self)
        feature = self._labels.features[self.label_column]
        return label_classes(feature, self._labels[:][self.label_column], self.label_column)

    @property
    def numbers(self) -> np.ndarray:
        """Class numbers 0..K-1, int64 (N,), -1 if unlabeled; from this source alone unless set by `numbered`."""
        if self._numbers is None:
            (self._numbers,) = number_classes(self.classes())
        return self._numbers

    def numbered(self, numbers: np.ndarray) -> Self:
        """A copy with the given class numbers, shared with another source."""
        copied = copy.copy(self)
        copied._numbers = numbers
        return copied

    def unlabeled(self) -> Self:
        """A copy without labels."""
        copied = copy.copy(self)
        copied.label_column = copied._labels = copied._numbers = None
        return copied

    def name(self, index: int) -> str:
        """The name of an example in messages: its file, or its row."""
        return self.named(index)[0]

    def named(self, index: int) -> tuple[str, dict[str, Any] | None]:
        """Name and encoded file of an example; the file is None if the table is damaged there."""
        place = f"row {index} of {self.split}"
        try:
            record = self.record(index)
        except Exception:  # Arrow raises many types
            return place, None
        return name_of(record, place), record

    def settle(self, where: str) -> None:
        """Inspect the pixel types of some images before a run starts.

        Raises:
            RecipeError: see `pixels.settled`.
        """
        looked_at = map(self.named, sample_indices(len(self)))
        self.decoding = settled(self.decoding, looked_at, self.max_megapixels, where)

    def select(self, indices: Sequence[int], part_name: str | None = None) -> Self:
        """A subset of the source, with an optional display name."""
        part = copy.copy(self)
        part.part, part.rows = part_name or self.part, self.rows[list(indices)]
        part._records = self._records.select(indices)
        part._labels = None if self._labels is None else self._labels.select(indices)
        part._numbers = None if self._numbers is None else self._numbers[list(indices)]
        part.boxes = None if self.boxes is None else [self.boxes[index] for index in indices]
        return part


def _gives_images(dataset: Dataset, columns: dict[str, str]) -> bool:
    """Whether to apply the dataset's own transform: only if it returns images.

    Raises:
        RecipeError: it returns something else, such as tensors.
    """
    column = columns.get("image")
    example = dataset[0] if len(dataset) else {}
    if column not in example:
        logger.warning("The dataset's transform (with_transform) returns no images, so it is not applied.")
        return False
    if not isinstance(example[column], Image.Image | dict | bytes | str | None):
        raise RecipeError(
            f"The dataset's transform (with_transform) returns {type(example[column]).__name__} for {column!r}; "
            "return PIL images, or remove it with with_format(None)."
        )
    return True


def load_source(data: DataConfig, split: str | None = None, kind: str = "image", settle: bool = True) -> Source:
    """The map-style source of a recipe's `data` section, for `kind` "image", "video" or "audio".

    Args:
        settle: see `source_of`.

    Raises:
        RecipeError: see `check_source`; also if the split is empty.
    """
    check_source(data, split, kind)
    split = split or data.split
    dataset = open_place(data, False, kind)[split]
    if not isinstance(data.path, str):  # concatenated datasets have standard column names
        data = replace(data, image_column=None, video_column=None, audio_column=None, label_column=None)
    if data.max_examples is not None:
        dataset = dataset.select(range(min(data.max_examples, len(dataset))))
    if len(dataset) == 0:
        raise RecipeError(f"The split {split!r} of {data.path} is empty.")
    return source_of(dataset, data, kind, settle)


def source_of(dataset: Dataset, data: DataConfig, kind: str = "image", settle: bool = True) -> Source:
    """A source from a dataset object, with the columns and limits of a recipe's `data` section.

    Args:
        settle: whether to inspect the pixel types, see `Source.settle`.

    Raises:
        RecipeError: see `Source` and `pixels.settled`.
    """
    wanted, decoding = wanted_columns(data, kind), decoding_of(data)
    source = Source(dataset, wanted, data.label_column, data.max_megapixels, decoding)
    if settle and MEDIA[kind].pixels:
        source.settle(str(data.path or "the dataset"))
    return source


def decoding_of(data: DataConfig) -> Decoding:
    """The decoding options of a recipe."""
    return Decoding(data.value_range, data.exif == "apply")


def check_source(data: DataConfig, split: str | None = None, kind: str = "image") -> Features:
    """Check a source's splits and columns without converting anything.

    Returns:
        The features of the split.

    Raises:
        RecipeError: no such path, split or column, with the nearest valid name; or a reader package is missing.
    """
    require_reader(kind)  # fail before listing thousands of files
    if data.places:
        for place in data.places:
            check_source(replace(data, path=place.path), split, kind)
        return available_splits(data, kind)[split or data.split]
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
            f"The recipe names no data; set data.path to a folder of {kind}s, Parquet files or a Hub dataset."
        )
    splits = open_place(data, True, kind)
    return {name: part.features or part._resolve_features().features for name, part in splits.items()}
