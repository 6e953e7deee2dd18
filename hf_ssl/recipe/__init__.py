# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Recipes: all settings of a run, read from YAML and `a.b=c` overrides, validated and frozen."""

from ..coerce import nearest
from ..errors import RecipeError
from .checks import METHODS, recipe_from_dict, with_values
from .continuation import MEANT_BEFORE, changed_keys, continued
from .files import copy_shipped, find_recipe, load_recipe, recipe_header, recipes_folder, shipped_data, shipped_recipes
from .sections import (
    AUTO,
    ClipsConfig,
    DataConfig,
    MonitorConfig,
    OptimConfig,
    Place,
    Places,
    Recipe,
    TrainConfig,
    ViewOverride,
    ViewsConfig,
    flatten,
    method_name,
)


__all__ = [
    "AUTO",
    "MEANT_BEFORE",
    "METHODS",
    "ClipsConfig",
    "DataConfig",
    "MonitorConfig",
    "OptimConfig",
    "Place",
    "Places",
    "Recipe",
    "RecipeError",
    "TrainConfig",
    "ViewOverride",
    "ViewsConfig",
    "changed_keys",
    "continued",
    "copy_shipped",
    "find_recipe",
    "flatten",
    "load_recipe",
    "method_name",
    "nearest",
    "recipe_from_dict",
    "recipe_header",
    "recipes_folder",
    "shipped_data",
    "shipped_recipes",
    "with_values",
]
