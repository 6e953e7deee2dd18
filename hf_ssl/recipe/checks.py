# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Build a `Recipe` from nested plain dicts and validate it before any data or model is loaded.

A misspelled key, a wrong type or an impossible value raises a `RecipeError` of one sentence that names the key and
suggests a valid one.
"""

import re
from pathlib import Path
from typing import Any

from ..coerce import build, nearest
from ..errors import RecipeError
from .sections import AUTO, Recipe, flatten


_CONFIGURATIONS = (Path(__file__).parents[1] / "models").glob("configuration_*.py")  # importing them takes seconds
METHODS = tuple(sorted({file.stem.removeprefix("configuration_") for file in _CONFIGURATIONS} - {"ssl"}))

# Old key -> new key.
RENAMED = {"train.keep_checkpoints": "train.keep"}

# Interval -> keys whose values must be in it; `views.*` means all, first, second and local.
_RANGES = {
    "[0, 1]": (
        *("data.max_failed_share", "optim.warmup_lr_fraction", "optim.final_lr_fraction", "clips.volume"),
        *(f"views.*.{key}" for key in ("flip", "jitter_prob", "grayscale", "blur", "solarize", "solarize_threshold")),
    ),
    "[0, 1)": ("optim.momentum", "optim.betas"),
    "(0, 1]": ("views.*.scale", "optim.layer_decay"),
    "[0, 64]": ("views.*.count",),
    "[0, 100]": ("views.*.jitter",),
    "(0, 100]": ("views.*.blur_sigma", "views.*.ratio"),
    "[0, 1024]": ("data.num_workers",),
    "[0, 3600]": ("clips.offset",),
    "[1, 8192]": ("views.*.size",),
    "[1, 65536]": ("data.partitions", "train.accumulation"),
    "(0, 100000]": ("data.max_megapixels", "monitor.temperature"),
    "[1, 1000000]": ("monitor.k", "monitor.batch_size", "data.shuffle_block"),
    "[0, 1000000]": (
        *("optim.weight_decay", "optim.warmup_epochs", "optim.cooldown_epochs", "train.freeze_backbone_epochs"),
    ),
    "(0, 1000000]": ("train.epochs", "train.minutes", "optim.trust_coefficient"),
    "[0, 4294967295]": ("train.seed",),  # numpy's limit
    "[1, 1000000000]": ("train.batch_size", "optim.lr_per", "monitor.num_samples"),
    "[1, 1000000000000]": (
        *("train.steps", "train.log_every", "train.keep", "train.push_every", "data.max_examples"),
        *("data.num_examples", "monitor.max_bank", "monitor.max_queries"),
    ),
    "[0, 1000000000000]": ("optim.warmup_steps", "monitor.every"),
    "(0, 1000000000000]": ("train.checkpoint_every", "train.checkpoint_minutes", "train.keep_every"),
    "[0, inf)": ("optim.lr", "optim.lr_bias_and_norm"),
    "(0, inf)": ("optim.clip_grad_norm",),
}
RANGE_OF = {key: interval for interval, keys in _RANGES.items() for key in keys}


def recipe_from_dict(content: dict[str, Any]) -> Recipe:
    """Build and validate a recipe from nested plain dicts."""
    if not isinstance(content, dict) or "method" not in content:
        raise RecipeError(f"The recipe names no method; set method to one of {', '.join(METHODS)}.")
    recipe = build(Recipe, with_new_names(content))
    _check_values(recipe)
    return recipe


def with_values(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with other values of dotted keys."""
    content = recipe.to_dict()
    for key, value in values.items():
        *sections, last = key.split(".")
        part = content
        for section in sections:
            part = part[section]
        part[last] = value
    return recipe_from_dict(content) if values else recipe


def with_new_names(content: dict[str, Any]) -> dict[str, Any]:
    """Rename old keys in a recipe of an earlier version."""
    for old, new in RENAMED.items():
        section, key = old.split(".")
        part = content.get(section)
        if isinstance(part, dict) and key in part:
            part = {**part}
            part.setdefault(new.split(".")[1], part.pop(key))
            content = {**content, section: part}
    return content


def _check_values(recipe: Recipe) -> None:
    train, optim, data = recipe.train, recipe.optim, recipe.data
    if recipe.method not in METHODS and not re.fullmatch(r"[^:]+:[A-Za-z_]\w*", recipe.method):
        raise RecipeError(
            f"method must be one of {', '.join(METHODS)}, or path/to/file.py:Class; not {recipe.method!r}"
            f"{nearest(recipe.method, METHODS)}"
        )
    if (train.epochs in (None, AUTO)) == (train.steps is None) and train.epochs != AUTO:
        raise RecipeError("Set exactly one of train.epochs and train.steps.")
    for key, value in flatten(recipe.to_dict()).items():
        interval = RANGE_OF.get(re.sub(r"^views\.[a-z]+\.", "views.*.", key))
        for number in value if isinstance(value, list) else [value]:
            if interval and number not in (None, AUTO) and not _lies_in(number, interval):
                raise RecipeError(f"{key} must be in {interval}, not {number}.")
    if not isinstance(recipe.model.get("init_from", ""), str | None):
        raise RecipeError("model.init_from must be timm/NAME, a Hub id or a folder.")
    if optim.warmup_steps is not None and optim.warmup_epochs not in (0, AUTO):
        raise RecipeError("Set only one of optim.warmup_epochs and optim.warmup_steps.")
    if optim.cooldown_epochs and optim.schedule != "constant":
        raise RecipeError(
            "optim.cooldown_epochs is only for optim.schedule=constant, since cosine decays anyway; remove it."
        )
    if data.streaming and data.max_examples is not None:
        raise RecipeError("data.max_examples needs data.streaming=false, since streams are read completely.")


def _lies_in(number: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)
