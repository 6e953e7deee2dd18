# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Find the columns of images, videos and sounds in a dataset, and read records from its rows."""

from typing import Any

import datasets
from datasets import Features, IterableDataset, Value
from PIL import Image

from ..coerce import listed
from ..recipe import DataConfig, RecipeError
from .labels import check_column
from .media import MEDIA, STORAGE, instead


def wanted_columns(data: DataConfig, kind: str) -> dict[str, str | None]:
    """The column names set in a recipe, for `find_columns`; None if not set."""
    return {name: getattr(data, f"{name}_column") for name in (kind, MEDIA[kind].beside) if name}


def find_columns(features: Features, wanted: dict[str, str | None], where: object = "the dataset") -> dict[str, str]:
    """Map each kind in `wanted` to its column: the named one, or the only one of the right type.

    Parquet files not written by `datasets` lack the types Image, Video and Audio. They only have the storage type: a
    struct of bytes and path. Videos are also found in columns of plain bytes if no column has their type. Other
    columns of plain bytes, or of image paths, must be named. A sound column is optional beside videos.

    Raises:
        RecipeError: there is no such column, or several.
    """
    found = {}
    beside = {MEDIA[kind].beside for kind in wanted}
    for kind, name in wanted.items():
        medium = MEDIA[kind]
        typed = [column for column, feature in features.items() if isinstance(feature, medium.feature)]
        structs = [c for c, f in features.items() if isinstance(f, dict) and f.keys() == STORAGE.keys()]
        binary = [c for c, f in features.items() if f in (Value("binary"), Value("large_binary"))]
        texts = [c for c, f in features.items() if f in (Value("string"), Value("large_string"))]
        choice = medium.choice(typed, structs, binary)
        if name is None and kind in beside and not typed and kind not in structs:
            continue
        possible = [*typed, *structs, *binary, *(texts if medium.paths else ())]
        if name is not None:
            check_column(name, features, possible, f"{kind}s", where)
        elif len(choice) != 1:
            raise RecipeError(_not_one_column(kind, choice, possible, features, where))
        found[kind] = name or choice[0]
    return found


def _not_one_column(kind: str, choice: list[str], possible: list[str], features: Features, where: object) -> str:
    said = f"several {kind} columns ({listed(choice)})" if choice else f"no {kind} column"
    if choice:
        return f"{where} has {said}; set data.{kind}_column to one of {listed(choice)}."
    for other, medium in MEDIA.items():
        if other != kind and any(isinstance(feature, medium.feature) for feature in features.values()):
            return f"{where} has {said}, but one of {other}s; {instead(kind, other)}."
    if not possible:
        needs = f"a row needs one {kind}: content or path of its file, or datasets.{kind.title()}"
        return f"{where} has {said} (columns: {listed(features)}); {needs}."
    return f"{where} has {said}; set data.{kind}_column to one of {listed(possible)}, if it holds or names them."


def encoded(dataset, wanted: dict[str, str | None], where: object = "the dataset") -> tuple[Any, dict[str, str]]:
    """The dataset with only its media columns, still encoded, and the columns by kind.

    Raises:
        RecipeError: see `find_columns`.
    """
    features = dataset.features
    if features is None:  # a stream from a Python generator
        features = _features_of_first(dataset, where)
    columns = find_columns(features, wanted, where)
    untyped = dataset.features is None
    dataset = dataset.select_columns(list(columns.values()))
    for kind, column in columns.items() if not untyped else ():
        dataset = dataset.cast_column(column, MEDIA[kind].feature(decode=False))
    return dataset, columns


def _features_of_first(dataset: IterableDataset, where: object) -> Features:
    """Infer the types of an untyped stream from its first example; anything but image, text or bytes becomes null.

    Raises:
        RecipeError: there is no example, or the generator fails.
    """
    try:
        example = next(iter(dataset), None)
    except Exception as error:  # user code can raise anything
        first_line = (str(error).splitlines() or [""])[0]
        said = f"{type(error).__name__}: {first_line}"
        raise RecipeError(f"The first example of {where} cannot be loaded: {said}") from error
    if example is None:
        raise RecipeError(f"{where} has no examples.")
    types = {name: _type_of(value) for name, value in example.items()}
    return Features(types)


def _type_of(value: Any):
    if isinstance(value, Image.Image):
        return datasets.Image(decode=False)
    if isinstance(value, dict) and value.keys() == STORAGE.keys():
        return STORAGE
    return Value("binary" if isinstance(value, bytes) else "string" if isinstance(value, str) else "null")


def record_of(example: dict[str, Any], columns: dict[str, str]) -> dict[str, Any] | None:
    """The encoded file of an example as {"bytes", "path"}, or None.

    "image" holds an image that was created in Python. "audio" holds another record if sound has its own column.
    """
    first, *beside = columns.items()
    record = _encoded_file(example[first[1]])
    return record and {**record, **{medium: _encoded_file(example[column]) for medium, column in beside}}


def _encoded_file(value: Any) -> dict[str, Any] | None:
    if isinstance(value, Image.Image):
        return {"bytes": None, "path": None, "image": value}
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    return {"bytes": None, "path": value} if isinstance(value, str) else value


def name_of(record: dict[str, Any] | None, place: str) -> str:
    """The name of an example in messages: its file, or its place in the dataset."""
    if not record or not record["path"]:
        return place
    return record["path"] if record["bytes"] is None else f"{record['path']} ({place})"
