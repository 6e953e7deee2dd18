# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Start from the weights and buffers of an earlier run of the same method (`train.init_from`)."""

from torch import nn

from ..hub.weights import find_weights, read_weights
from ..recipe import RecipeError


def warm_start(model: nn.Module, place: str) -> list[str]:
    """Load weights from a run, a checkpoint or an exported model into a new model of the same method.

    A run's newest checkpoint is preferred, because it has the method's own buffers (AVID's memories, SwAV's queue).

    Returns:
        Names of the method's buffers that were missing or had another size and so keep their initial values.

    Raises:
        RecipeError: there are no weights, or they belong to a different model.
    """
    tensors = read_weights(find_weights(place))
    own = model.state_dict()
    fits = {name: t for name, t in tensors.items() if name in own and own[name].shape == t.shape}
    remembered = {name for name, _ in model.named_buffers() if "." not in name}
    wrong = sorted(own.keys() - fits.keys() - remembered) + sorted(
        name for name in tensors.keys() - fits.keys() if "." in name
    )
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise RecipeError(
            f"train.init_from={place} is a different model than the recipe's; these tensors do not fit: {shown}."
        )
    model.load_state_dict(fits, strict=False)
    return sorted(remembered - fits.keys())
