# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Lists of training images, one file name per line, such as MSN's (imagenet_subsets1/5imgs_class.txt)."""

import os
from pathlib import Path

import torch

from ..coerce import listed
from ..data.sources import Source
from ..recipe import RecipeError


_FEW = 5  # names in a message


def rows_named(source: Source, file: str) -> torch.Tensor:
    """Indices of the listed examples, matched by file name or by the end of the path.

    Raises:
        RecipeError: the list does not exist, or a name matches no example, several, or one without a label.
    """
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The list {file} cannot be read ({error}).") from None
    names = list(dict.fromkeys(line for line in lines if line))
    if not names:
        raise RecipeError(f"The list {file} is empty.")
    rows: dict[str, list[int]] = {}
    wanted = {os.path.basename(name) for name in names}
    paths = [(source.record(index) or {}).get("path") or "" for index in range(len(source))]
    for index, path in enumerate(paths):
        if (base := os.path.basename(path)) in wanted:
            rows.setdefault(base, []).append(index)
    found = {name: [i for i in rows.get(os.path.basename(name), ()) if _ends(paths[i], name)] for name in names}
    if missing := [name for name, here in found.items() if not here]:
        raise RecipeError(
            f"{len(missing)} of the {len(names)} images in {file} are not in {source.part}, such as "
            f"{listed(missing[:_FEW])}."
        )
    if several := [name for name, here in found.items() if len(here) > 1]:
        raise RecipeError(
            f"{len(several)} names in {file} match several images of {source.part}, such as "
            f"{listed(several[:_FEW])}; add their folders."
        )
    chosen = [index for (index,) in found.values()]
    if unlabeled := [name for name, index in zip(names, chosen, strict=True) if source.numbers[index] < 0]:
        raise RecipeError(f"{len(unlabeled)} images in {file} have no label, such as {listed(unlabeled[:_FEW])}.")
    return torch.tensor(chosen)


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith("/" + name.removeprefix("./"))
