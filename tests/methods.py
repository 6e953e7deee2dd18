# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The smallest settings with which every method still does all that it does: of its model, and of a whole run."""

from pathlib import Path

import torch

from hf_ssl import SimSiamConfig, SimSiamModel
from hf_ssl.recipe import Recipe, load_recipe


PREFIXES = {"avid": "Avid", "barlow_twins": "BarlowTwins", "byol": "Byol", "simsiam": "SimSiam", "swav": "Swav"}
IMAGE_METHODS = [name for name in PREFIXES if name != "avid"]

# Fields of a configuration beside backbone and size of images. Images have embeddings of WIDTH numbers.
WIDTH = 16
TINY = {
    "avid": {
        **{"projector_dims": [16, 8], "num_instances": 40, "num_negatives": 16},
        **{"num_frames": 2, "num_bands": 33, "n_fft": 64},
    },
    "barlow_twins": {"projector_dims": [24, WIDTH]},
    "byol": {"projector_hidden": 24, "projector_dim": WIDTH, "predictor_hidden": 24},
    "simsiam": {"projector_dim": WIDTH, "projector_hidden": 24, "predictor_hidden": 8},
    "swav": {"projector_dims": [24, WIDTH], "num_prototypes": 6, "freeze_prototypes_steps": 0},
}

# Of a run: `key=value`. What a method keeps from step to step is made, changed and used within 24 steps.
METHOD_OVERRIDES = {
    "avid": [
        *("model.video_backbone=test_resnet", "model.audio_backbone=test_resnet", "model.projector_dims=[32,16]"),
        *("model.num_frames=2", "model.frame_rate=4", "model.sampling_rate=8000", "model.audio_seconds=0.5"),
        *("model.n_fft=256", "model.hop_length=200", "model.num_bands=17", "model.num_negatives=16"),
        *("model.head_batch_norm=true", "model.cma=true", "model.num_positives=4", "model.partition=per_term"),
        *("model.num_negatives_within=8", "model.positives_every_epochs=5", "optim.name=adam"),
        *("train.batch_size=8", "train.checkpoint_every=1", "monitor.every=5"),
    ],
    "barlow_twins": ["model.projector_dims=[64,64]", "optim.name=lars", "optim.lr=0.5"],
    "byol": ["model.projector_hidden=64", "model.projector_dim=32", "model.predictor_hidden=64", "optim.name=adamw"],
    "simsiam": ["model.projector_dim=64", "model.predictor_hidden=16", "optim.fixed_predictor_lr=true"],
    "swav": [
        *("model.projector_dims=[64,32]", "model.num_prototypes=20"),
        *("model.queue_length=32", "model.queue_start_epoch=1", "model.freeze_prototypes_steps=5"),
        *("views.local.size=16", "views.local.count=2", "optim.name=larc"),
    ],
}
FEW_STEPS = ["model.backbone=test_resnet", "views.all.size=32", "train.batch_size=16", "data.num_workers=0"]


def fields(method: str, backbone: str = "test_resnet", **changes) -> dict:
    """Of a whole configuration."""
    towers = ("video_backbone", "audio_backbone") if method == "avid" else ("backbone",)
    return {**dict.fromkeys(towers, backbone), "image_size": 32, **TINY[method], **changes}


def model_overrides(method: str) -> list[str]:
    """Of METHOD_OVERRIDES, what says how model and views are."""
    return [text for text in METHOD_OVERRIDES[method] if text.startswith(("model.", "views."))]


def recipe_file(method: str, folder: Path) -> Path:
    """A recipe that leaves everything but the method open."""
    path = folder / f"{method}.yaml"
    path.write_text(f"method: {method}\n")
    return path


def few_steps(method: str, output: Path, *overrides: str) -> Recipe:
    """A recipe of two steps, each of 16 small images."""
    file = recipe_file(method, output.parent)
    return load_recipe(file, [*FEW_STEPS, "train.steps=2", f"train.output_dir={output}", *overrides])


def save_encoder(folder: Path) -> str:
    """A SimSiam encoder of random weights for images of 32 pixels, as `AutoModel` loads it."""
    torch.manual_seed(0)
    SimSiamModel(SimSiamConfig(backbone="test_resnet", image_size=32)).save_pretrained(folder)
    return str(folder)
