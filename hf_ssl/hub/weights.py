# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The weights of a method wherever a run has left them: in a checkpoint, or in a repo folder."""

import json
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..disk import damage
from ..recipe import RecipeError
from .shards import read_shards


logger = logging.getLogger(__name__)


def find_weights(place: str | Path) -> Path:
    """The folder with the weights of a run (its newest checkpoint before its exported model), of one of its
    checkpoints, or of a repo folder.

    Raises:
        RecipeError: there are none.
    """
    folder = Path(place).expanduser()
    run = folder.parent if folder.name == "model" else folder
    checkpoints = sorted((run / "checkpoints").glob("step_" + "[0-9]" * 8), reverse=True)
    exported = [folder / "model" / "pretraining", folder / "pretraining", folder]
    if (folder / "state.json").exists():
        if fault := damage(folder):
            raise RecipeError(f"The checkpoint {folder} is damaged: {fault}; give another one, or the run's folder.")
        return folder
    for found in checkpoints:
        if not (fault := damage(found)):
            return found
        logger.warning(f"The checkpoint {found} is damaged: {fault}. The one before it is taken.")
    if checkpoints:
        raise RecipeError(f"All checkpoints of {run} are damaged; give an exported model.")
    for found in exported:
        if (found / "config.json").exists():
            return found
    raise RecipeError(f"{place} has no weights; give a run's folder, one of its checkpoints, or an exported model.")


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the method in a folder that `find_weights` found, whole, on the CPU.

    Raises:
        RecipeError: a file is missing, cut or of another kind.
    """
    index = folder / "model.safetensors.index.json"
    try:
        if (folder / "state.json").exists() and (folder / "shards").exists():  # a repo folder never has any
            return read_shards(folder / "shards")
        if index.exists():
            parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return {name: t for part in parts for name, t in load_file(folder / part).items()}
        return load_file(folder / "model.safetensors")
    except Exception as error:  # whatever a cut or foreign file makes safetensors and torch raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"The weights in {folder} cannot be read ({said}).") from error
