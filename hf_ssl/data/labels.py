# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Labels of a dataset: find the label column and the unlabeled rows, and number the classes from 0.

A class is a ClassLabel name, a string, an integer or a Boolean. Integer labels can be dates, hashes or ten-digit ids,
and two splits can order their class names differently. So classes are compared by value, then numbered 0..K-1.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value

from ..recipe import RecipeError, nearest


Class = Any  # hashable and sortable; one type within a dataset

_NAMES = ("label", "labels", "cls")  # WebDataset tars use "cls"
_IGNORED = "ignored"  # column of classes that do not count for a row, such as VOC's "difficult" ones
_CLASSES = re.compile(r"u?int\d+|bool|float\d+|string|large_string|string_view")
_SPLIT_NAME = re.compile(
    r"[\W\d_]*(?:(?:train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?|dev|eval|hold|out|(?:un)?labell?ed|labels?|images?|imgs?"
    r"|photos?|pictures?|data|set|split|fold|part)[\W\d_]*)+"
)


class NoLabels(RecipeError):
    """A dataset has no labels to measure accuracy with; the message says why."""


def find_label_column(features: Features, name: str | None, where: object = "the dataset") -> str | None:
    """The class column: `name`, or the most likely one by name and type, or None.

    Raises:
        RecipeError: there is no column `name`, or it does not hold classes.
    """
    possible = [column for column, feature in features.items() if _holds_classes(feature)]
    if name is not None:
        check_column(name, features, possible, "class numbers or names", where)
        return name
    named = [column for column in possible if column in _NAMES]
    typed = [column for column in possible if isinstance(features[column], ClassLabel)]
    return next(iter(named + typed), None)


def several_classes(dataset: Dataset, name: str | None, where: object) -> tuple[list[list[Class] | None], list]:
    """Multi-label classes: for each row, the list of its classes (None if unlabeled) and the list of ignored classes.

    Labels are lists of class numbers or names, in the column `name` or in the only such column. Ignored classes are
    in the column "ignored", if there is one.

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
    """Multi-label targets, int64 (N, K): 1 if the row has the class, 0 if not, -1 if it is ignored or unlabeled."""
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
    """Raise RecipeError if the column `name` is missing or does not hold `what`."""
    if name not in features:
        raise RecipeError(f"{where} has no column {name!r}{nearest(name, features)}")
    if name not in possible:
        raise RecipeError(f"The column {name!r} of {where} does not hold {what}{nearest(name, possible)}")


def why_no_label_column(features: Features, where: object) -> str:
    """A sentence that explains why `find_label_column` found nothing."""
    other = next((column for column in _NAMES if column in features and features[column] != Value("null")), None)
    said = "has no labels for kNN"
    if other is not None:
        lists = "List" in str(features[other])
        what = "several labels per example" if lists else "neither strings nor numbers"
        said = f"has {what} in the column {other!r}"
    if len(features) == 1:  # a folder without class folders, or a table with only a file column
        remedy = "use one folder per class, or a metadata.csv (file_name,label)"
        return f"{where} {said}; {remedy}, or choose data with a label column."
    return f"{where} {said}; set monitor.label_column to a column with one class per example."


def label_classes(feature: Any, values: Sequence[Any], column: str = "label") -> list[Class]:
    """The class of every row; null, -1, NaN and the empty string become None.

    Raises:
        NoLabels: a number is not an integer.
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
    """Number the classes of one or more datasets consistently as 0..K-1; int64 (N,) each, -1 for unlabeled.

    Raises:
        RecipeError: one dataset has names as labels, another has numbers.
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
    """Raise NoLabels if accuracy on these labels would be meaningless: no row has one, or they are split names."""
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
    """Whether a label is the name of a split ("train", "val2017", "test_images") rather than a class."""
    return bool(_SPLIT_NAME.fullmatch(name.lower()))
