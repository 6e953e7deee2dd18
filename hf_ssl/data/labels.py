# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Labels of a dataset: which column holds them, which rows have none, and their classes numbered from 0.

A class is a ClassLabel's name, a text, a whole number or a truth value. The numbers that a dataset gives its classes
may be dates, hashes or ids of ten digits, and another split may order its names in another way; so classes are
compared by what they are, and counted as 0..K-1.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value

from ..recipe import RecipeError, nearest


Class = Any  # of a dataset's classes, all are of one type, which can be hashed and sorted

_NAMES = ("label", "labels", "cls")  # the last is what a tar of WebDataset calls it
_IGNORED = "ignored"  # lists of classes that may be there or not, such as VOC's difficult ones
_CLASSES = re.compile(r"u?int\d+|bool|float\d+|string|large_string|string_view")
_SPLIT_NAME = re.compile(
    r"[\W\d_]*(?:(?:train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?|dev|eval|hold|out|(?:un)?labell?ed|labels?|images?|imgs?"
    r"|photos?|pictures?|data|set|split|fold|part)[\W\d_]*)+"
)


class NoLabels(RecipeError):
    """A dataset has no labels that accuracy could be measured with; its text says why."""


def find_label_column(features: Features, name: str | None, where: object = "the dataset") -> str | None:
    """The column of classes: `name`, or the one that looks like it, or None.

    Raises:
        RecipeError: `name` is not there or holds something else.
    """
    possible = [column for column, feature in features.items() if _holds_classes(feature)]
    if name is not None:
        check_column(name, features, possible, "class numbers or names", where)
        return name
    named = [column for column in possible if column in _NAMES]
    typed = [column for column in possible if isinstance(features[column], ClassLabel)]
    return next(iter(named + typed), None)


def several_classes(dataset: Dataset, name: str | None, where: object) -> tuple[list[list[Class] | None], list]:
    """Classes of data with several labels an example: those that each row has, and those that it may not be judged by.

    They are lists of class numbers or names, in the column `name`, or in the only one of such; the second are those of
    the column "ignored", where there is one. A row that is null is not labeled (None).

    Raises:
        RecipeError: there is no such column, or there are several.
    """
    features = dataset.features
    possible = [column for column, feature in features.items() if _holds_several(feature)]
    if name is not None:
        check_column(name, features, possible, "lists of class numbers or names", where)
    others = [column for column in possible if column != _IGNORED]
    named = [column for column in others if column in _NAMES] or others
    if name is None and len(named) != 1:
        found = f"has several columns of lists of labels ({', '.join(named)})" if named else "has no lists of labels"
        raise RecipeError(f"{where} {found}; set --label-column to a column of lists of class numbers or names.")
    sides = []
    for column in (name or named[0], _IGNORED if _IGNORED in possible else None):
        rows = dataset.select_columns([column])[:][column] if column else [[]] * len(dataset)
        kind = features[column].feature if column else None
        sides.append([None if row is None else [c for c in label_classes(kind, row) if c is not None] for row in rows])
    return sides[0], [row or [] for row in sides[1]]


def targets_of(rows: list[list[Class] | None], ignored: list[list[Class]], names: list[Class]) -> np.ndarray:
    """Several labels as (N, K) of 1 for a class that a row has, 0 for others, and -1 for what does not count."""
    number = {name: i for i, name in enumerate(names)}
    targets = np.zeros((len(rows), len(names)), dtype=np.int64)
    for target, row, left_out in zip(targets, rows, ignored, strict=True):
        target[[number[one] for one in left_out if one in number]] = -1
        target[[number[one] for one in row or ()]] = 1
        if row is None:
            target[:] = -1
    return targets


def _holds_several(feature: Any) -> bool:
    return isinstance(feature, List | LargeList) and _holds_classes(feature.feature)


def _holds_classes(feature: Any) -> bool:
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and bool(_CLASSES.fullmatch(feature.dtype)))


def check_column(name: str, features: Features, possible: list[str], what: str, where: object) -> None:
    """Raises RecipeError when a column that somebody named is not there, or holds something else than `what`."""
    if name not in features:
        raise RecipeError(f"{where} has no column {name!r}{nearest(name, features)}")
    if name not in possible:
        raise RecipeError(f"The column {name!r} of {where} does not hold {what}{nearest(name, possible)}")


def why_no_label_column(features: Features, where: object) -> str:
    """One sentence about a dataset in which `find_label_column` finds nothing."""
    other = next((column for column in _NAMES if column in features and features[column] != Value("null")), None)
    said = "has no labels for kNN"
    if other is not None:
        lists = "List" in str(features[other])
        what = "several labels per example" if lists else "neither strings nor numbers"
        said = f"has {what} in the column {other!r}"
    if len(features) == 1:  # a folder without classes, or a table of files alone
        remedy = "use one folder per class, or a metadata.csv (file_name,label)"
        return f"{where} {said}; {remedy}, or choose data with a label column."
    return f"{where} {said}; set monitor.label_column to a column with one class per example."


def label_classes(feature: Any, values: Sequence[Any], column: str = "label") -> list[Class]:
    """The class of every row; None where a row has none: null, -1, not a number, an empty text.

    Raises:
        NoLabels: numbers that are not whole.
    """
    if isinstance(feature, ClassLabel):
        names = dict(enumerate(feature.names))
        return [None if value is None or value < 0 else names.get(value, f"class {value}") for value in values]
    classes = [None if value is None or value == -1 or value == "" or value != value else value for value in values]
    fraction = next((value for value in classes if isinstance(value, float) and not value.is_integer()), None)
    if fraction is not None:
        raise NoLabels(f"The column {column!r} holds numbers such as {fraction:g}, which are not classes.")
    return [int(value) if isinstance(value, float) else value for value in classes]


def number_classes(*sides: list[Class]) -> list[np.ndarray]:
    """The classes of one or several datasets as common numbers 0..K-1, int64 (N,) each; -1 for none.

    Raises:
        RecipeError: names on one side and numbers on the other.
    """
    known: set[Class] = set().union(*sides) - {None}
    if len({isinstance(one, str) for one in known}) > 1:
        raise RecipeError(
            "Bank and queries have different types of labels, names (such as folders or ClassLabel) and numbers; use "
            "the same type for both."
        )
    numbers = {None: -1} | {one: number for number, one in enumerate(sorted(known))}
    return [np.array([numbers[one] for one in side], dtype=np.int64) for side in sides]


def check_classes(classes: list[Class], column: str | None, where: object) -> None:
    """Whether accuracy on these labels would mean anything.

    Raises:
        NoLabels: no row has one, or they are names of splits.
    """
    known = [one for one in classes if one is not None]
    names = sorted(set(known))
    if not known:
        raise NoLabels(f"The column {column!r} of {where} has no labels, only -1 or null.")
    if all(isinstance(name, str) and is_split_name(name) for name in names):
        raise NoLabels(
            f"The labels of {where} are split names ({', '.join(names[:5])}), not classes; set monitor.path to "
            "labeled data."
        )


def is_split_name(name: str) -> bool:
    """Whether a label says which part of a dataset a file is in ("train", "val2017", "test_images")."""
    return bool(_SPLIT_NAME.fullmatch(name.lower()))
