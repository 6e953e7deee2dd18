# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What a recipe leaves to the machine (`auto`), chosen once: it is said, and kept in `recipe.yaml` and checkpoints."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint_folder import CheckpointFolder
from ..devices import best_precision, process_state
from ..logs import get_logger
from ..recipe import Recipe


logger = get_logger(__name__)


def choose(recipe: Recipe) -> Recipe:
    """The recipe without `auto`; a run that is continued keeps its first choice."""
    train = recipe.train
    if train.precision != "auto":
        return recipe
    kept = _kept_choices(train.folder / "checkpoints")
    precision = kept["precision"] if kept else best_precision()
    if not kept:
        process_state()  # the logger asks it which process this is
        logger.info(f"train.precision=auto: {precision or 'as the launcher says'}.")
    return replace(recipe, train=replace(train, precision=precision))


def _kept_choices(checkpoints: Path) -> dict[str, Any] | None:
    """The `train` section of the newest checkpoint that can be read."""
    for path in reversed(CheckpointFolder.complete(checkpoints)):
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            train = CheckpointFolder(path).read_state().recipe.get("train")
            if isinstance(train, dict):
                return {"precision": None, **train}
    return None
