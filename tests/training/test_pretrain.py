# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The training loop, called from Python."""

import errno
import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from hf_ssl.errors import UserError
from hf_ssl.recipe import Recipe, RecipeError, recipe_from_dict
from hf_ssl.training import checkpoint
from hf_ssl.training.metrics import read_metrics
from hf_ssl.training.pretrain import NonFiniteLoss, pretrain
from tests.conftest import digit_dataset, digit_images


def small_recipe(output: Path, method: str = "simsiam", **sections) -> Recipe:
    content = {
        "method": method,
        "model": {"backbone": "test_resnet", "projector_dim": 64, "predictor_hidden": 16},
        "views": {"all": {"size": 32}},
        "optim": {"lr": 0.05},
        "train": {"steps": 6, "batch_size": 16, "log_every": 2, "output_dir": str(output)},
        "data": {"num_workers": 0},
    }
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values}
    return recipe_from_dict(content)


def final_weights(output: Path) -> dict[str, torch.Tensor]:
    newest = sorted((output / "checkpoints").glob("step_*"))[-1]
    return load_file(newest / "model.safetensors")


def test_any_dataset_object_trains_and_the_metrics_are_written(tmp_path, digits):
    recipe = small_recipe(tmp_path / "run")
    result = pretrain(recipe, dataset=digit_dataset(0, 64), bank=digit_dataset(0, 64), queries=digit_dataset(64, 96))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [2, 4, 6]
    assert all({"lr", "images_per_second", "data_wait", "skipped"} <= line.keys() for line in logged)
    assert {"knn_raw_pixels", "knn"} <= result.baseline.keys()
    assert {"knn", "embedding_std", "effective_rank", "alignment", "uniformity"} <= result.final.keys()
    assert (result.model_dir / "README.md").exists()


def test_a_dataset_with_classes_from_python_is_measured_as_a_folder_is(tmp_path):
    labeled = digit_dataset(0, 120)
    recipe = small_recipe(tmp_path / "run", train={"steps": 1})
    for i, (image, label) in enumerate(zip(labeled["image"], labeled["label"], strict=True)):
        (tmp_path / "folder" / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "folder" / str(label) / f"{i:03}.png")
    folder = small_recipe(tmp_path / "other", train={"steps": 1}, data={"path": str(tmp_path / "folder")})
    for result in (pretrain(recipe, dataset=labeled), pretrain(folder)):
        assert {"knn_raw_pixels", "knn"} <= result.baseline.keys() and "knn" in result.final
        assert result.measured["queries"].endswith(", also seen in pretraining, without labels")
        assert result.measured["queries"].startswith("20 % of") and result.measured["num_classes"] == 10
        assert result.measured["num_queries"] + result.measured["num_bank"] == 120
        card = ModelCard.load(result.model_dir / "README.md")
        assert card.data.eval_results[0].dataset_split == result.measured["queries"] in card.text
        assert "the split `test`" not in card.text
    with pytest.raises(RecipeError, match="both bank and queries"):
        pretrain(small_recipe(tmp_path / "third"), dataset=labeled, bank=labeled)


def test_labels_of_no_use_are_said_and_the_run_goes_on_without(tmp_path, caplog):
    dataset = digit_dataset(0, 32).remove_columns("label").add_column("label", [-1] * 32)
    with caplog.at_level(logging.WARNING):
        result = pretrain(small_recipe(tmp_path / "run", train={"steps": 1}), dataset=dataset)
    assert "knn" not in result.final and "only -1 or null" in caplog.text
    assert "No accuracy was measured" in (result.model_dir / "README.md").read_text()


def test_the_learning_rate_of_every_step_is_the_schedules(tmp_path):
    recipe = small_recipe(tmp_path / "run", train={"log_every": 1, "steps": 8}, optim={"lr": 0.8, "warmup_epochs": 1})
    pretrain(recipe, dataset=digit_dataset(0, 64))
    rates = [line["lr"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "lr" in line]
    peak = 0.8 * 16 / 256
    expected = [peak * s / 4 for s in range(4)] + [peak * (1 + math.cos(math.pi * s / 4)) / 2 for s in range(4)]
    assert rates == pytest.approx(expected)


def test_workers_do_not_change_the_weights(tmp_path):
    dataset = digit_dataset(0, 64)
    for workers in (0, 2):
        pretrain(small_recipe(tmp_path / str(workers), data={"num_workers": workers}), dataset=dataset)
    a, b = (final_weights(tmp_path / str(workers)) for workers in (0, 2))
    assert all(a[name].equal(b[name]) for name in a)


def test_the_seed_changes_the_weights_and_the_same_seed_repeats_them(tmp_path):
    dataset = digit_dataset(0, 64)
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        pretrain(small_recipe(tmp_path / name, train={"seed": seed, "steps": 2}), dataset=dataset)
    first, again, other = (final_weights(tmp_path / name) for name in ("first", "again", "other"))
    assert all(first[name].equal(again[name]) for name in first)
    assert any(not first[name].equal(other[name]) for name in first)


def test_corrupt_images_are_skipped_counted_and_named(tmp_path, caplog):
    images, _ = digit_images(64)
    records = []
    for number, image in enumerate(images):
        path = tmp_path / f"{number}.png"
        image.save(path)
        records.append({"bytes": path.read_bytes(), "path": path.name})
    records[5] = {"bytes": records[5]["bytes"][:60], "path": "broken.png"}
    dataset = Dataset.from_dict({"image": records}, features=Features({"image": Image()}))
    with caplog.at_level(logging.WARNING):
        pretrain(small_recipe(tmp_path / "run", train={"steps": 8}), dataset=dataset)
    last = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "skipped" in line][-1]
    assert last["skipped"] == 2  # once in each of the two epochs
    assert caplog.text.count("broken.png") == 2


def test_a_non_finite_loss_stops_the_run_names_the_step_and_keeps_the_checkpoint(tmp_path):
    recipe = small_recipe(
        tmp_path / "run",
        train={"steps": 40, "checkpoint_every": 0.25, "log_every": 1},
        optim={"lr": 1e30, "warmup_epochs": 1},  # the first step has rate 0, the second breaks the weights
    )
    with pytest.raises(NonFiniteLoss, match=r"step \d+; lower optim.lr"):
        pretrain(recipe, dataset=digit_dataset(0, 64))
    weights = final_weights(tmp_path / "run")
    assert "step_00000001" in str(sorted((tmp_path / "run" / "checkpoints").iterdir())[0])
    assert weights


def test_a_disk_that_is_full_for_a_while_costs_nothing_but_that_checkpoint(tmp_path, monkeypatch, caplog):
    recipe = small_recipe(tmp_path / "run", train={"checkpoint_every": 0.25, "keep": 9})
    real, calls = checkpoint.save_file, []

    def full_once(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(checkpoint, "save_file", full_once)
    pretrain(recipe, dataset=digit_dataset(0, 64))
    kept = [int(p.name[5:]) for p in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert kept == [1, 2, 4, 5, 6]
    assert "step_00000002" in caplog.text and "No space left" in caplog.text


def test_a_disk_that_is_full_at_the_end_keeps_the_checkpoint_and_the_same_command_finishes(tmp_path, monkeypatch):
    from hf_ssl.hub import export as module

    recipe, dataset = small_recipe(tmp_path / "run"), digit_dataset(0, 64)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_torch_state_dict", full)
        with pytest.raises(UserError, match="No space left.*existing checkpoints are kept"):
            pretrain(recipe, dataset=dataset)
    assert not (tmp_path / "run" / "model").exists()
    result = pretrain(recipe, dataset=dataset)
    assert (result.model_dir / "model.safetensors").exists()


def test_accumulation_splits_the_same_global_batch(tmp_path):
    """Two micro-batches see the images of one batch, take one optimizer step, and give nearly the same gradient."""
    dataset = digit_dataset(0, 64)
    for parts in (1, 2):
        pretrain(small_recipe(tmp_path / str(parts), train={"accumulation": parts, "steps": 1}), dataset=dataset)
    a, b = (final_weights(tmp_path / str(parts)) for parts in (1, 2))
    tracked = [name for name in a if name.endswith("num_batches_tracked")]
    assert all(b[name] == 2 * a[name] for name in tracked)
    name = "predictor.layers.3.weight" if "predictor.layers.3.weight" in a else next(n for n in a if "predictor" in n)
    assert torch.nn.functional.cosine_similarity(a[name].flatten().float(), b[name].flatten().float(), dim=0) > 0.99


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"gradient_checkpointing": True}, {"channels_last": False}]
)
def test_options_of_speed_and_memory_train(tmp_path, options):
    pretrain(small_recipe(tmp_path / "run", train={"steps": 2, **options}), dataset=digit_dataset(0, 64))
    assert all(t.isfinite().all() for t in final_weights(tmp_path / "run").values() if t.is_floating_point())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_and_eager_runs_end_alike_and_the_weights_keep_their_names(tmp_path):
    one_block = {"backbone": "test_vit", "backbone_args": {"depth": 1}, "image_size": 32}  # few kernels to compile
    for name, on in (("compiled", True), ("eager", False)):
        recipe = small_recipe(tmp_path / name, model=one_block, train={"compile": on, "steps": 2})
        pretrain(recipe, dataset=digit_dataset(0, 64))
    a, b = final_weights(tmp_path / "compiled"), final_weights(tmp_path / "eager")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name].float(), b[name].float(), atol=1e-4) for name in a)


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path):
    for name, on in (("on", True), ("off", False)):
        pretrain(small_recipe(tmp_path / name, train={"gradient_checkpointing": on}), dataset=digit_dataset(0, 64))
    a, b = final_weights(tmp_path / "on"), final_weights(tmp_path / "off")
    assert all(torch.allclose(a[name].float(), b[name].float(), atol=1e-5) for name in a)


def test_trackers_receive_the_metrics(tmp_path):
    pretrain(small_recipe(tmp_path / "run", train={"track": ["tensorboard"]}), dataset=digit_dataset(0, 64))
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_the_recipe_in_the_run_is_the_one_that_ran(tmp_path):
    recipe = small_recipe(tmp_path / "run", train={"steps": 2, "precision": "no"})
    pretrain(recipe, dataset=digit_dataset(0, 64))
    state = json.loads((tmp_path / "run/checkpoints/step_00000002/state.json").read_text())
    assert state["recipe"] == recipe.to_dict()
    shared = (tmp_path / "run/model/recipe.yaml").read_text()
    assert str(tmp_path) not in shared and "test_resnet" in shared
