# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Start from the weights of an earlier run of the same method (`train.init_from`), and from what it remembers."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ..recipe import RecipeError


def warm_start(model: nn.Module, place: str) -> list[str]:
    """Load the weights of a run, of one of its checkpoints, or of an exported model, into a new model of its method.

    A run's newest checkpoint comes first, since it has what the method remembers (AVID's memories, SwAV's queue).

    Returns:
        Names of what a method remembers that was not there, or was of another size, and keeps its initial values.

    Raises:
        RecipeError: there are no weights, or they are of another model.
    """
    tensors = _read(Path(place).expanduser(), place)
    own = model.state_dict()
    fits = {name: t for name, t in tensors.items() if name in own and own[name].shape == t.shape}
    remembered = {name for name, _ in model.named_buffers() if "." not in name}
    wrong = sorted(own.keys() - fits.keys() - remembered) + sorted(
        name for name in tensors.keys() - fits.keys() if "." in name
    )
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise RecipeError(f"train.init_from={place} holds another model than the recipe's: {shown} do(es) not fit.")
    model.load_state_dict(fits, strict=False)
    return sorted(remembered - fits.keys())


def _read(folder: Path, place: str) -> dict[str, torch.Tensor]:
    run = folder.parent if folder.name == "model" else folder
    newest = sorted((run / "checkpoints").glob("step_" + "[0-9]" * 8 + "/model.safetensors"))[-1:]
    exported = [folder / "model" / "pretraining", folder / "pretraining", folder]
    for file in [folder / "state.json", *newest, *(where / "config.json" for where in exported)]:
        if not file.exists():
            continue
        weights, index = file.parent / "model.safetensors", file.parent / "model.safetensors.index.json"
        try:
            if index.exists():
                parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                return {name: t for part in parts for name, t in load_file(file.parent / part).items()}
            return load_file(weights)
        except Exception as error:  # whatever a cut or foreign file makes safetensors raise
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise RecipeError(f"train.init_from={place}: {weights} cannot be read ({said}).") from error
    raise RecipeError(
        f"train.init_from={place} has no weights; give a run's folder, one of its checkpoints, or an exported model."
    )
