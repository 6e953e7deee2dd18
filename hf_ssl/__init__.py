# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Self-supervised pretraining native to the Hugging Face ecosystem.

`import hf_ssl.models` registers the models with transformers' Auto classes.
"""

import importlib


__version__ = "0.1.0"

_WHERE = {
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
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    """Import the functions above and the models of all methods on first access."""
    if not name.startswith("_"):
        module = importlib.import_module(_WHERE.get(name, ".models"), __name__)
        if name in _WHERE or name in module.__all__:
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *importlib.import_module(".models", __name__).__all__})
