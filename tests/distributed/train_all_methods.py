# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Trains all methods, or the given ones, for a few steps; on one process, or on several with `accelerate launch`.

Usage: train_all_methods.py OUTPUT [METHOD ...] [key=value ...]
"""

import os
import sys
from pathlib import Path

import torch.distributed as dist
from torch import nn

from hf_ssl.models.modeling_ssl import SSLModel
from hf_ssl.recipe import load_recipe
from hf_ssl.training import setup
from hf_ssl.training.accelerator import fit_model
from hf_ssl.training.pretrain import pretrain
from tests.conftest import digit_dataset
from tests.methods import FEW_STEPS, IMAGE_METHODS, model_overrides


METHODS = {method: model_overrides(method) for method in IMAGE_METHODS}
METHODS["barlow_twins"] += ["optim.lr=0.02"]
METHODS["swav"] += ["model.queue_start_epoch=0", "model.freeze_prototypes_steps=1"]


def common_overrides(output) -> list[str]:
    return [*FEW_STEPS, f"train.output_dir={output}", "train.steps=4", "train.log_every=1"]


def fit_in_float64(model: nn.Module, *args) -> nn.Module:
    """`fit_model` in float64: BatchNorm over 16 small images amplifies rounding errors a thousandfold per step."""

    def images_too(module, args, kwargs):
        return tuple(x.double() for x in args), {name: x.double() for name, x in kwargs.items()}

    for module in model.double().modules():
        if isinstance(module, SSLModel):
            module.register_forward_pre_hook(images_too, with_kwargs=True)
    return fit_model(model, *args)


def main(output: str, *arguments: str) -> None:
    chosen = [argument for argument in arguments if argument in METHODS] or list(METHODS)
    overrides = [argument for argument in arguments if argument not in METHODS]
    dataset = digit_dataset(0, 64)
    if "train.precision=bf16" not in overrides:
        setup.fit_model = fit_in_float64
    for method in chosen:
        source = Path(output, f"{method}.{os.getpid()}.yaml")  # each process has its own file
        source.write_text(f"method: {method}\n")
        common = common_overrides(f"{output}/{method}")
        recipe = load_recipe(source, [*common, *METHODS[method], *overrides])
        pretrain(recipe, dataset=dataset, bank=dataset, queries=dataset)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
