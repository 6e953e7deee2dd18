# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Which column of a dataset holds its labels."""

from datasets import ClassLabel, Features, Value

from ..recipe import RecipeError, nearest


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
        check_column(name, features, numbers, "class numbers", where)
        return name
    named = [column for column in numbers if column in ("label", "labels")]
    classes = [column for column in numbers if isinstance(features[column], ClassLabel)]
    return next(iter(named + classes), None)


def check_column(name: str, features: Features, possible: list[str], what: str, where: str | None) -> None:
    """Raises RecipeError when a column that somebody named is not there, or holds something else than `what`."""
    if name not in features:
        raise RecipeError(f"{where} has no column {name!r}{nearest(name, features)}")
    if name not in possible:
        raise RecipeError(f"The column {name!r} of {where} does not hold {what}{nearest(name, possible)}")
