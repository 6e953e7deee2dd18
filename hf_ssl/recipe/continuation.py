# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What may differ between a run and its continuation, and what a run of an older version meant."""

import math
from typing import Any

from .checks import METHODS, recipe_from_dict, with_new_names
from .files import load_recipe, shipped_recipes
from .sections import Recipe, flatten, method_name


# Keys that may differ between a run and its continuation: they change what is written or how fast, never the weights.
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
    "train.output_dir",
    "train.push_every",
    "train.push_private",
    "train.push_to_hub",
    "train.resume",
    "train.track",
)

# What a run did whose checkpoint is of a format below the number and does not know the key; it goes on doing so.
MEANT_BEFORE: dict[int, dict[str, Any]] = {
    2: {
        "data.exif": "ignore",
        "data.value_range": "full",
        "views.colors": "torchvision",
        "optim.cosine_over": "after_warmup",
        "model.first_shortcut": "identity",
    },
}

_DECIDED = (
    "backbone",
    "backbone_args",
    "stem",
    "padding",
    "first_shortcut",
    "num_channels",
    "image_mean",
    "image_std",
)


def continued(recipe: Recipe, kept: dict[str, Any], format: int) -> Recipe:
    """The recipe with which a run goes on whose checkpoint has the recipe `kept`: where that does not know a key, and
    `recipe` has its default or what the shipped recipe of its name says today, the run keeps what it did before. And
    what the weights of `model.init_from` decided, which are not read again, stays decided.
    """
    old, new = flatten(kept), recipe.to_dict()
    if "init_from" in recipe.model:
        decided = {k: v for k, v in kept.get("model", {}).items() if k.removeprefix("video_") in _DECIDED}
        new["model"] = decided | new["model"]
    flat, defaults = flatten(new), flatten(Recipe(recipe.method).to_dict())
    shipped = flatten(load_recipe(recipe.name).to_dict()) if recipe.name in shipped_recipes() else {}
    for key, value in _meant_before(format).items():
        if key in flat and key not in old and flat[key] in (defaults.get(key), shipped.get(key)):
            *sections, last = key.split(".")
            place = new
            for section in sections:
                place = place[section]
            place[last] = value
    return recipe_from_dict(new)


def changed_keys(old: dict[str, Any], new: dict[str, Any], format: float = math.inf) -> list[str]:
    """Dotted keys whose values differ between two recipes and that decide the weights (see FREE_ON_RESUME).

    A key that an older version did not know has had its default, or what MEANT_BEFORE says of the checkpoint's format.
    """
    defaults = flatten(Recipe(METHODS[0]).to_dict())
    old, new = ({**one, "method": method_name(one.get("method", ""))} for one in (old, new))
    b = defaults | flatten(new)
    a = defaults | {k: v for k, v in _meant_before(format).items() if k in b} | flatten(with_new_names(old))
    keys = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    return [k for k in keys if not any(k == free or k.startswith(f"{free}.") for free in FREE_ON_RESUME)]


def _meant_before(format: float) -> dict[str, Any]:
    return {key: value for number, keys in MEANT_BEFORE.items() if format < number for key, value in keys.items()}
