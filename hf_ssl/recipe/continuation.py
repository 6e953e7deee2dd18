# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What may change when a run is resumed, and what recipes meant in earlier versions."""

import math
from dataclasses import fields
from typing import Any

from .checks import METHODS, recipe_from_dict, with_new_names
from .files import load_recipe, shipped_recipes
from .sections import Recipe, flatten, method_name


# Keys that may change on resume: they affect speed or output, never the weights.
FREE_ON_RESUME = (
    "data.num_workers",
    "data.path",
    "monitor",
    "name",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.keep",
    "train.keep_every",
    "train.log_every",
    "train.minutes",
    "train.output_dir",
    "train.push_every",
    "train.push_private",
    "train.push_to_hub",
    "train.resume",
    "train.track",
)

# Format N -> behavior of runs that began in an earlier format, which they keep.
MEANT_BEFORE: dict[int, dict[str, Any]] = {
    2: {
        "data.exif": "ignore",
        "data.value_range": "full",
        "views.colors": "torchvision",
        "optim.cosine_over": "after_warmup",
        "model.first_shortcut": "identity",
    },
    3: {
        "views.arithmetic": "torch",
        "train.precision": None,
        "model.explicit_matrix": True,
    },
}

# Fields of a config that decide the network; weights fit no other values.
NETWORK_FIELDS = (
    "backbone",
    "backbone_args",
    "stem",
    "padding",
    "first_shortcut",
    "num_channels",
    "image_mean",
    "image_std",
)


def continued(recipe: Recipe, kept: dict[str, Any], format: int, began: int | None = None) -> Recipe:
    """The recipe with which to resume a run from a checkpoint that has the recipe `kept`.

    If `recipe` has a key's default, or the current value of the shipped recipe of its name, the run keeps its original
    behavior. Keys that came from the weights of `model.init_from`, which are not read again, and values chosen by
    `auto` are kept, too.

    Args:
        format: format of the checkpoint.
        began: format of the run's first checkpoint.
    """
    began = format if began is None else began
    old, new = flatten(with_new_names(kept)), recipe.to_dict()
    if "init_from" in recipe.model:
        decided = {k: v for k, v in kept.get("model", {}).items() if k.removeprefix("video_") in NETWORK_FIELDS}
        new["model"] = decided | new["model"]
    flat, defaults = flatten(new), flatten(Recipe(recipe.method).to_dict())
    shipped = flatten(load_recipe(recipe.name).to_dict()) if recipe.name in shipped_recipes() else {}
    for key, value in _meant_before(began).items():
        asked = flat.get(key)
        known = key in flat or _is_field(recipe, key)
        if known and old.get(key, value) == value and asked in (None, defaults.get(key), shipped.get(key)):
            _set(new, key, value)
    for key in (key for key, value in flat.items() if value == "auto" and key in old):
        _set(new, key, old[key])
    return recipe_from_dict(new)


def changed_keys(old: dict[str, Any], new: dict[str, Any], format: float = math.inf) -> list[str]:
    """Dotted keys that affect the weights (see FREE_ON_RESUME) and differ between two recipes.

    A key unknown to an older version counts as its default, or as MEANT_BEFORE's value for the checkpoint's format.
    """
    defaults = flatten(Recipe(METHODS[0]).to_dict())
    old, new = ({**one, "method": method_name(one.get("method", ""))} for one in (old, new))
    b = defaults | flatten(new)
    a = defaults | {k: v for k, v in _meant_before(format).items() if k in b} | flatten(with_new_names(old))
    keys = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    return [k for k in keys if not any(k == free or k.startswith(f"{free}.") for free in FREE_ON_RESUME)]


def _meant_before(format: float) -> dict[str, Any]:
    return {key: value for number, keys in MEANT_BEFORE.items() if format < number for key, value in keys.items()}


def _is_field(recipe: Recipe, key: str) -> bool:
    """Whether `key` is a field of the method's config, set or not."""
    from ..methods import method_classes  # slow import, only needed to resume an old run

    section, _, name = key.partition(".")
    return section == "model" and name in {field.name for field in fields(method_classes(recipe.method)[0])}


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        content = content[section]
    content[last] = value
