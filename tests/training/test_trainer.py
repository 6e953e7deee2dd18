# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The same method with transformers' Trainer: our collator, and a callback for the hooks."""

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_ssl import ViewCollator, load_recipe, resolve_views
from hf_ssl.resolve import model_config
from tests.conftest import digit_dataset
from tests.distributed.train_all_methods import METHODS, common_overrides


class Hooks(TrainerCallback):
    """Calls the hooks like the training loop, with 4 steps per epoch."""

    def on_step_begin(self, args, state, control, model, **_):
        model.before_step(state.global_step, state.max_steps, 4)

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        model.before_optimizer_step(state.global_step, state.max_steps, 4)

    def on_step_end(self, args, state, control, model, **_):
        model.after_step(state.global_step - 1, state.max_steps, 4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_under_transformers_trainer(method, tmp_path):
    from hf_ssl import models

    (tmp_path / "recipe.yaml").write_text(f"method: {method}\n")
    recipe = load_recipe(tmp_path / "recipe.yaml", [*common_overrides(tmp_path), *METHODS[method]])
    views = resolve_views(recipe.views, method)
    config = model_config(recipe, image_size=32)
    model = models.METHODS[method][1](config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = TrainingArguments(
        output_dir=tmp_path / "run",
        max_steps=4,
        per_device_train_batch_size=16,
        learning_rate=0.01,
        optim="sgd",
        logging_steps=1,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
    )
    collator = ViewCollator(views, config.image_mean, config.image_std)
    trainer = Trainer(model, arguments, collator, digit_dataset(0, 64), callbacks=[Hooks()])
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 4 and all(torch.tensor(losses).isfinite())
    changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert any(name.startswith("encoder.backbone.") for name in changed)
    if method == "byol":
        assert "target_projector.0.weight" in changed and model.metrics()["tau"] > 0.99
    if method == "swav":
        norms = model.prototypes.weight.norm(dim=1)
        assert "prototypes.weight" in changed and norms.sub(1).abs().max() < 0.1
        assert model.queue.any(), "the queue has been filled"
    saved = type(model).from_pretrained(tmp_path / "run" / "checkpoint-4")
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in saved.state_dict().items())
