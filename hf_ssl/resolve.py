# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Derive a recipe's views, model config and modality once, and check that they fit together."""

from dataclasses import dataclass, fields

from transformers import PreTrainedConfig

from .data.modality import Modality, modality_of
from .data.views import View, resolve_views
from .errors import RecipeError
from .methods import default_views, method_classes
from .models import SSLConfig, check_backbone
from .recipe import Recipe, method_name, nearest


@dataclass(frozen=True)
class Resolved:
    """A recipe that is consistent: its method accepts its views and batch size."""

    recipe: Recipe
    views: list[View]
    config: PreTrainedConfig
    modality: Modality

    def per_process_batch(self, world_size: int) -> int:
        """Images per forward pass and process.

        Raises:
            RecipeError: the global batch is not divisible, or leaves too few images for BatchNorm.
        """
        train, size = self.recipe.train, self.recipe.per_process_batch(world_size)
        if size < self.modality.smallest_batch and not train.sync_batchnorm:
            raise RecipeError(
                f"train.batch_size={train.batch_size} leaves one image per process and forward pass, too few for "
                "BatchNorm statistics; raise it, or set train.sync_batchnorm=true."
            )
        return size


def resolve(recipe: Recipe) -> Resolved:
    """Derive views, config and modality; RecipeError if they do not fit together."""
    views = resolve_views(recipe.views, default_views(recipe.method))
    config = model_config(recipe, image_size=views[0].size)
    modality = modality_of(config)
    modality.check_views(views)
    modality.fit(views, config, "init_from" in recipe.model)
    _check_backbone_keys(recipe, config)
    train, num_global = recipe.train, sum(not view.local for view in views)
    least = modality.smallest_batch * train.accumulation
    if train.batch_size < least:
        raise RecipeError(
            f"train.batch_size={train.batch_size} with train.accumulation={train.accumulation} leaves one image per "
            f"forward pass, too few for BatchNorm statistics; set train.batch_size to {least} or more."
        )
    try:  # otherwise wrong views would fail at the first step, or be ignored
        config.check_views(num_global, len(views) - num_global, train.batch_size // train.accumulation)
    except ValueError as error:
        raise RecipeError(f"{method_name(recipe.method)}: {error}") from None
    return Resolved(recipe, views, config, modality)


def _check_backbone_keys(recipe: Recipe, config: PreTrainedConfig) -> None:
    """Raise RecipeError if a method with two towers has keys for a single image backbone."""
    for key, asked in (
        ("optim.layer_decay", recipe.optim.layer_decay is not None),
        ("train.freeze_backbone_epochs", recipe.train.freeze_backbone_epochs > 0),
    ):
        if asked and not isinstance(config, SSLConfig):
            raise RecipeError(
                f"{key} is for methods with a single image backbone, not for {recipe.method}; remove it."
            )


def model_config(recipe: Recipe, image_size: int):
    """The method's `SSLConfig` for a recipe; `image_size` (pixels) is the default if the recipe sets none.

    Raises:
        RecipeError: unknown or ill-typed field under `model`, or unknown backbone.
    """
    config_class = method_classes(recipe.method)[0]
    names = [f.name for f in fields(config_class) if not f.name.startswith("_")]
    settings = {key: value for key, value in recipe.model.items() if key != "init_from"}
    for key in settings:
        if key not in names:
            raise RecipeError(f"There is no key model.{key} for {recipe.method}{nearest(key, names, 'model.')}")
    try:
        config = config_class(**{"image_size": image_size, **settings})
        for backbone in config.timm_backbones:
            check_backbone(backbone)
    except Exception as error:  # huggingface_hub's validators raise their own classes with multi-line messages
        raise RecipeError(f"model: {' '.join(str(error).split())}") from None
    return config
