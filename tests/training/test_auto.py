# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`auto` in a recipe is resolved once, from the machine and the images, and kept."""

import pytest
import yaml

from hf_ssl import machine
from hf_ssl.preview import preview
from hf_ssl.recipe import RecipeError, load_recipe
from hf_ssl.training import choices, setup
from hf_ssl.training.choices import stand_in
from hf_ssl.training.pretrain import pretrain
from tests import runs
from tests.training.test_resume import assert_same_weights


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """Two cores, no GPU, a small network, and a short speed measurement."""
    monkeypatch.setattr(choices, "has_gpu", lambda: False)
    monkeypatch.setattr(choices, "usable_cores", lambda: 2.0)
    monkeypatch.setattr(setup, "MEASURED_SECONDS", 0.2)
    small = choices._SMALL | {"model.backbone": "test_resnet", "model.backbone_args": {}, "views.all.size": 32}
    monkeypatch.setattr(choices, "_SMALL", small)


def my_images(digits, folder, *more: str):
    return load_recipe("my_images", [f"data.path={digits}", f"train.output_dir={folder}", *more])


def kept(folder) -> dict:
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def test_a_folder_of_images_is_all_that_must_be_said(digits, tmp_path, monkeypatch, caplog):
    def rate(make_run, accelerator, recipe):
        assert setup_rate(make_run, accelerator, recipe) > 0
        return 2.0

    setup_rate = setup._images_per_second
    monkeypatch.setattr(setup, "_images_per_second", rate)
    few = ("train.minutes=4", "model.projector_dims=[32]", "data.max_examples=128")
    with caplog.at_level("INFO", "hf_ssl"):
        auto = pretrain(my_images(digits, tmp_path / "auto", *few))
    chosen = kept(tmp_path / "auto")
    assert chosen["train"]["batch_size"] == 16, "an eighth of 128 images"
    assert chosen["train"]["epochs"] == 3, "4 minutes at 2 images/s"
    assert chosen["data"]["num_workers"] == 1 and chosen["views"]["all"]["size"] == 32
    assert "auto" not in [chosen["monitor"]["every"], chosen["optim"]["warmup_epochs"], chosen["model"]["backbone"]]
    said = caplog.text
    assert said.count("Automatic choices") == 1 and "train.epochs=auto: 3.0 (4 minutes at 2 images/s" in said
    # The same recipe with explicit numbers: measuring the speed does not affect the run.
    numbers = tmp_path / "numbers.yaml"
    numbers.write_text(yaml.safe_dump(chosen))
    said = pretrain(load_recipe(numbers, [f"train.output_dir={tmp_path / 'said'}"]))
    assert_same_weights(auto.model_dir / "model.safetensors", said.model_dir / "model.safetensors")
    # Resume on another machine.
    for step in sorted((tmp_path / "auto/checkpoints").glob("step_*"))[1:]:
        step.rename(tmp_path / step.name)
    monkeypatch.setattr(choices, "has_gpu", lambda: True)
    again = pretrain(my_images(digits, tmp_path / "auto", *few))
    assert_same_weights(again.model_dir / "model.safetensors", said.model_dir / "model.safetensors")
    assert kept(tmp_path / "auto") == chosen


@pytest.mark.parametrize("method", ["barlow_twins", "byol", "simsiam", "swav"])
def test_my_images_works_with_every_method(digits, tmp_path, method, caplog):
    with caplog.at_level("INFO", "hf_ssl"):
        recipe = my_images(
            digits, tmp_path / "run", f"method={method}", "train.steps=2", "data.max_examples=64", "data.num_workers=0"
        )
    assert len(caplog.records) == (method != "barlow_twins")
    assert "projector" in caplog.text or method == "barlow_twins"
    assert pretrain(recipe).model_dir.exists()


def test_what_was_typed_of_another_method_is_refused_and_what_the_file_says_is_left_out(tmp_path, caplog):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: barlow_twins\nmodel: {backbone: resnet18, lambd: 0.01}\ntrain: {epochs: 1}\n")
    with caplog.at_level("INFO", "hf_ssl"):
        assert load_recipe(recipe, ["method=simsiam"]).model == {"backbone": "resnet18"}
    assert caplog.messages == ["method=simsiam: ignoring model.lambd (for barlow_twins)."]
    from hf_ssl.resolve import resolve

    with pytest.raises(RecipeError, match="model.lambd"):
        resolve(load_recipe(recipe, ["method=simsiam", "model.lambd=0.1"]))


@pytest.mark.parametrize("count", [40, 1000, 10**6, None])
def test_a_batch_is_a_power_of_two_that_the_images_and_the_memory_allow(count, monkeypatch):
    from accelerate import Accelerator

    from hf_ssl.resolve import resolve

    recipe = load_recipe("my_images", ["train.epochs=1", "data.num_workers=0"])
    open_epochs = load_recipe("my_images", ["data.num_workers=0"])
    monkeypatch.setattr(choices, "free_memory", lambda device: 10 * 2**30)
    resolved, accelerator = resolve(stand_in(recipe)), Accelerator(cpu=True)
    chosen, _ = choices.choose_for(recipe, resolved, count, accelerator, lambda recipe: 1.0)
    assert chosen.train.batch_size == {40: 4, 1000: 64, 10**6: 256, None: 256}[count]
    monkeypatch.setattr(choices, "free_memory", lambda device: 2**27)
    chosen, reasons = choices.choose_for(recipe, resolved, count, accelerator, lambda recipe: 1.0)
    assert 2 <= chosen.train.batch_size <= 64 and "GiB" in reasons["train.batch_size"] or count == 40
    if count is None:
        with pytest.raises(RecipeError, match="data.num_examples"):
            choices.choose_for(open_epochs, resolved, count, accelerator, lambda recipe: 1.0)


def test_a_preview_needs_no_choice_of_a_run(digits, tmp_path):
    assert preview(my_images(digits, tmp_path / "run"), num_images=1, output=tmp_path / "p.png").exists()


def test_cores_are_those_of_the_scheduler_and_of_the_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert machine.usable_cores() == 8
    (tmp_path / "own").write_text("0::/pod/box\n")
    (tmp_path / "pod" / "box").mkdir(parents=True)
    (tmp_path / "pod" / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "pod" / "box" / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cores() == 2.5
    (tmp_path / "own").write_text("4:cpu,cpuacct:/\n1:name=systemd:/\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert machine.usable_cores() == 1.5


def _train(recipe_path: str, overrides: list[str]) -> None:
    pretrain(load_recipe(recipe_path, overrides))


def test_two_processes_choose_the_same(digits, tmp_path):
    few = ["data.max_examples=64", "model.projector_dims=[32]", "model.backbone=test_resnet", "views.all.size=32"]
    more = ["train.minutes=0.001", f"data.path={digits}", f"train.output_dir={tmp_path / 'run'}"]
    run = runs.start(_train, "my_images", [*few, *more], processes=2, log=tmp_path / "log")
    assert run.wait(240) == 0, (tmp_path / "log").read_text()
    chosen = kept(tmp_path / "run")["train"]
    assert (chosen["batch_size"], chosen["epochs"]) == (8, 1)
