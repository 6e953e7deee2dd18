# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Continued pretraining of an encoder: layer-wise learning rates, and a backbone frozen at first."""

import re

import pytest
import torch
from safetensors.torch import load_file

from hf_ssl.optim import param_groups
from hf_ssl.recipe import OptimConfig, RecipeError, load_recipe, recipe_from_dict
from hf_ssl.resolve import resolve
from hf_ssl.training.memory import enough_memory
from hf_ssl.training.pretrain import pretrain
from hf_ssl.training.setup import new_model
from tests import runs
from tests.methods import recipe_file
from tests.training.test_resume import assert_same_weights


OVERRIDES = [
    *("model.backbone=test_vit", "views.all.size=32", "model.projector_hidden=24", "model.projector_dim=16"),
    *("model.predictor_hidden=24", "train.batch_size=16", "data.num_workers=0", "data.max_examples=64"),
    *("optim.name=adamw", "optim.layer_decay=0.5", "train.freeze_backbone_epochs=1", "train.steps=8"),
    *("train.checkpoint_every=0.5", "train.keep=9", "monitor.every=0", "train.precision=no"),
]


def overrides(digits, folder, *more: str) -> list[str]:
    return [*OVERRIDES, f"data.path={digits}", f"train.output_dir={folder}", *more]


def test_each_layer_of_the_backbone_learns_slower_than_the_next():
    recipe = recipe_from_dict({"method": "simsiam", "model": {"backbone": "test_vit"}, "train": {"epochs": 1}})
    model = new_model(recipe, resolve(recipe_from_dict(recipe.to_dict() | {"views": {"all": {"size": 160}}})).config)
    groups = param_groups(model, OptimConfig(lr=1.0, lr_per=None, layer_decay=0.5), 1)
    rates = {id(p): group["peak_lr"] for group in groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in model.named_parameters() if id(p) in rates}
    blocks = [named[f"encoder.backbone.blocks.{i}.attn.qkv.weight"] for i in range(len(model.encoder.backbone.blocks))]
    assert all(early == 0.5 * late for early, late in zip(blocks, blocks[1:], strict=False))
    assert named["encoder.backbone.patch_embed.proj.weight"] == 0.5 * blocks[0]
    assert all(rate == 1.0 for name, rate in named.items() if not name.startswith("encoder."))


def test_the_backbone_waits_and_a_run_continued_while_it_waits_ends_the_same(digits, tmp_path):
    path = recipe_file("byol", tmp_path)
    whole = pretrain(load_recipe(path, overrides(digits, tmp_path / "whole")))
    steps = sorted((tmp_path / "whole" / "checkpoints").glob("step_*"))
    weights = [load_file(next(step.glob("*.safetensors"))) for step in steps]
    name = "encoder.backbone.blocks.0.attn.qkv.weight"
    numbers = [int(re.search(r"\d+$", step.name)[0]) for step in steps]
    held = [w[name] for w, n in zip(weights, numbers, strict=True) if n <= 4]
    assert len(held) == 2 and torch.equal(*held) and not torch.equal(weights[-1][name], held[0])
    for step in steps[1:]:  # at the first one, the backbone is still frozen
        step.rename(tmp_path / step.name)
    again = pretrain(load_recipe(path, overrides(digits, tmp_path / "whole")))
    assert_same_weights(again.model_dir / "model.safetensors", load(whole.model_dir, tmp_path, digits, path))


def load(_, tmp_path, digits, path):
    """The weights of an uninterrupted run."""
    other = pretrain(load_recipe(path, overrides(digits, tmp_path / "other")))
    return other.model_dir / "model.safetensors"


def _train(path: str, given: list[str]) -> None:
    pretrain(load_recipe(path, given))


def test_two_processes_wait_as_one_does(digits, tmp_path):
    path = recipe_file("byol", tmp_path)
    sgd = "optim.name=sgd"  # Adam would amplify rounding where gradients are 0
    one = pretrain(load_recipe(path, overrides(digits, tmp_path / "one", sgd)))
    run = runs.start(_train, str(path), overrides(digits, tmp_path / "two", sgd), processes=2, log=tmp_path / "log")
    assert run.wait(240) == 0, (tmp_path / "log").read_text()
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (one.model_dir.parent, tmp_path / "two"))
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_avid_has_no_one_backbone_to_hold(tmp_path):
    for key in ("optim.layer_decay=0.5", "train.freeze_backbone_epochs=1"):
        with pytest.raises(RecipeError, match=key.partition("=")[0]):
            resolve(load_recipe("avid/my_clips", [key, "data.num_workers=0"]))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_step_without_memory_is_one_sentence_with_a_batch_that_fits(error):
    from accelerate import Accelerator

    from hf_ssl.errors import RunError

    recipe = load_recipe("quickstart")
    with pytest.raises(RunError, match=r"train.batch_size=64, or train.accumulation=2") as caught:
        with enough_memory(recipe, Accelerator(cpu=True)):
            raise error
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="another"):
        with enough_memory(recipe, Accelerator(cpu=True)):
            raise RuntimeError("another")
