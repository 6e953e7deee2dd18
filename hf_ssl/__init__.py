# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Self-supervised pretraining native to the Hugging Face ecosystem.

Importing the package registers its models with transformers' Auto classes.
"""

import importlib


__version__ = "0.1.0"

_WHERE = {
    "ImageSource": ".data.sources",
    "ImageStream": ".data.streams",
    "Recipe": ".recipe",
    "RecipeError": ".recipe",
    "TrainLoader": ".data.loader",
    "ViewCollator": ".data.images",
    "export": ".hub.export",
    "export_checkpoint": ".hub.export",
    "export_for_serving": ".hub.serve",
    "knn_accuracy": ".evaluation.knn",
    "load_recipe": ".recipe",
    "pretrain": ".training.pretrain",
    "preview": ".preview",
    "push": ".hub.push",
    "resolve_views": ".data.views",
}
_MODELS = [
    name + suffix
    for name in ("BarlowTwins", "Byol", "SimSiam", "Swav")
    for suffix in ("Config", "Model", "ForPreTraining", "ForImageClassification")
]
_MODELS += [f"Avid{suffix}" for suffix in ("Config", "Model", "ForPreTraining")]
_MODELS += ["AvidForVideoClassification", "AvidForAudioClassification"]
_WHERE |= dict.fromkeys(_MODELS, ".models")

__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
