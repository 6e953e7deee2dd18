# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Any dataset of images -> examples: a Hub id, a folder, Parquet files, or a `datasets.Dataset`.

Images stay encoded until a loader's worker opens them, so that a bad file is one skipped example and not a failed
load.
"""

import io
import re
import warnings
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, Features, Value, load_dataset, load_from_disk
from PIL import Image

from ..recipe import DataConfig, MonitorConfig, RecipeError, nearest


class ImageSource:
    """Images, and labels where there are any, of a map-style `datasets.Dataset`.

    Args:
        image_column: found by its type when there is one only.
        label_column: found by its type (ClassLabel), or by its name when it holds whole numbers; may be missing.

    Raises:
        RecipeError: a column that is not there, or several that it could be.
    """

    def __init__(self, dataset: Dataset, image_column: str | None = None, label_column: str | None = None):
        self.image_column = find_image_column(dataset.features, image_column)
        self.label_column = find_label_column(dataset.features, label_column)
        self.split = str(dataset.split or "the dataset")
        encoded = dataset.cast_column(self.image_column, datasets.Image(decode=False))
        self._images = encoded.select_columns([self.image_column])
        self._labels = dataset.select_columns([self.label_column]) if self.label_column else None

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Image.Image:
        """The image, opened but not yet decoded.

        Raises:
            OSError, ValueError: it cannot be read, or has more pixels than Pillow thinks safe (about 90 million).
        """
        cell = self._images[index][self.image_column]
        if cell is None:
            raise ValueError("the row has no image")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])
            except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
                raise ValueError(str(error)) from None

    def label(self, index: int) -> int | None:
        return None if self._labels is None else self._labels[index][self.label_column]

    def name(self, index: int) -> str:
        """What a message calls an example: its file, or its row."""
        cell = self._images[index][self.image_column]
        row = f"row {index} of {self.split}"
        return f"{cell['path']} ({row})" if cell and cell["path"] else row

    def select(self, indices: range) -> "ImageSource":
        """A part of the source."""
        part = object.__new__(ImageSource)
        part.__dict__.update(self.__dict__)
        part._images = self._images.select(indices)
        part._labels = None if self._labels is None else self._labels.select(indices)
        return part


def load_source(data: DataConfig, split: str | None = None) -> ImageSource:
    """The images of a recipe's `data` section.

    Raises:
        RecipeError: see `check_source`.
    """
    check_source(data, split)
    dataset = _open(data, streaming=False)[split or data.split]
    if data.max_examples is not None:
        dataset = dataset.select(range(min(data.max_examples, len(dataset))))
    return ImageSource(dataset, data.image_column, data.label_column)


def check_source(data: DataConfig, split: str | None = None) -> Features:
    """Look at a source's splits and columns without converting anything.

    Returns:
        The features of the split.

    Raises:
        RecipeError: no such place, split or column, with the nearest valid name.
    """
    found = describe_source(data)
    split = split or data.split
    if split not in found:
        raise RecipeError(f"{data.path} has no split {split!r}{nearest(split, found)}")
    features = found[split]
    find_image_column(features, data.image_column, data.path)
    find_label_column(features, data.label_column, data.path)
    return features


def describe_source(data: DataConfig) -> dict[str, Features]:
    """Split -> features of a source, from its metadata.

    Raises:
        RecipeError: there is nothing to load.
    """
    if data.path is None:
        raise RecipeError(
            "The recipe has no data; set data.path to a folder of images, Parquet files or a Hub dataset."
        )
    return {name: part.features or part._resolve_features().features for name, part in _open(data, True).items()}


def labelled_sources(data: DataConfig, monitor: MonitorConfig) -> tuple[ImageSource, ImageSource] | tuple[None, None]:
    """Bank and queries for kNN: the splits of `monitor.path`, or of `data.path` when it has labels.

    "test" falls back to "validation"; without a query split every fifth image of the bank becomes a query.

    Raises:
        RecipeError: `monitor.path` or `monitor.label_column` is set but cannot be used.
    """
    asked = monitor.path is not None or monitor.label_column is not None
    where = DataConfig(
        path=monitor.path or data.path,
        name=monitor.name if monitor.path else data.name,
        revision=None if monitor.path else data.revision,
        image_column=monitor.image_column or (None if monitor.path else data.image_column),
        label_column=monitor.label_column or (None if monitor.path else data.label_column),
    )
    splits = describe_source(where)
    if monitor.bank_split not in splits:
        if not asked:
            return None, None
        raise RecipeError(f"{where.path} has no split {monitor.bank_split!r}{nearest(monitor.bank_split, splits)}")
    if find_label_column(splits[monitor.bank_split], where.label_column, where.path) is None:
        if not asked:
            return None, None
        raise RecipeError(
            f"{where.path} has no labels for kNN; set monitor.label_column to a column of class numbers."
        )
    bank = load_source(where, monitor.bank_split)
    query_split = monitor.query_split
    if query_split == "test" and "test" not in splits:
        query_split = next((name for name in ("validation", "val") if name in splits), None)
    if query_split is None:
        held_out = range(0, len(bank), 5)
        return bank.select([i for i in range(len(bank)) if i % 5]), bank.select(held_out)
    return bank, load_source(where, query_split)


def find_image_column(features: Features, name: str | None, where: str | None = "the dataset") -> str:
    """The image column: `name`, or the only one of type Image.

    Raises:
        RecipeError: not there, or several.
    """
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if name is not None:
        if name not in features:
            raise RecipeError(f"{where} has no column {name!r}{nearest(name, features)}")
        if name not in images:
            raise RecipeError(f"The column {name!r} of {where} does not hold images{nearest(name, images)}")
        return name
    if len(images) != 1:
        said = f"several image columns ({', '.join(images)})" if images else "no image column"
        raise RecipeError(f"{where} has {said}; set data.image_column to one of {', '.join(images or features)}.")
    return images[0]


def find_label_column(features: Features, name: str | None, where: str | None = "the dataset") -> str | None:
    """The column of class numbers: `name`, or the one that looks like it, or None.

    Raises:
        RecipeError: `name` is not there or holds something else.
    """
    numbers = [
        column
        for column, feature in features.items()
        if isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "int" in feature.dtype)
    ]
    if name is not None:
        if name not in features:
            raise RecipeError(f"{where} has no column {name!r}{nearest(name, features)}")
        if name not in numbers:
            raise RecipeError(f"The column {name!r} of {where} does not hold class numbers{nearest(name, numbers)}")
        return name
    classes = [column for column in numbers if isinstance(features[column], ClassLabel)]
    named = [column for column in numbers if column in ("label", "labels")]
    return next(iter([*named, *classes]), None)


def _open(data: DataConfig, streaming: bool):
    """Split -> dataset, for every kind of place."""
    path = Path(data.path)
    try:
        if path.is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            saved = load_from_disk(str(path))
            return saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        if path.is_dir():
            parquet = any(path.rglob("*.parquet"))
            place = (str(path),) if parquet else ("imagefolder",)
            more = {} if parquet else {"data_dir": str(path)}
            return load_dataset(*place, streaming=streaming, **more)
        if path.suffix == ".parquet":  # a file or a glob
            return load_dataset("parquet", data_files={"train": str(path)}, streaming=streaming)
        if path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data.path):
            kind = "is not a folder or a Parquet file" if path.exists() else "does not exist"
            raise RecipeError(
                f"data.path={data.path} {kind}; give a folder of images, Parquet files or a Hub dataset."
            )
        return load_dataset(data.path, data.name, revision=data.revision, streaming=streaming)
    except RecipeError:
        raise
    except Exception as error:  # datasets and huggingface_hub raise dozens of classes here
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(f"data.path={data.path} could not be loaded: {first_line}") from error
