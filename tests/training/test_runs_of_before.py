# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Runs and models of an earlier version (tests/fixtures/make_runs.py) resume and load with this one."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining

from hf_ssl.cli import main
from hf_ssl.hub.export import export_checkpoint
from hf_ssl.hub.weights import find_weights, read_weights
from hf_ssl.recipe import MEANT_BEFORE, changed_keys, continued, load_recipe
from tests.fixtures.make_runs import arguments, write_data
from tests.runs import start


FIXTURE = Path(__file__).parents[1] / "fixtures" / "runs_1c0e32c.tar.xz"


@pytest.fixture
def before(tmp_path, monkeypatch) -> Path:
    """A working folder with the runs and their data."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    write_data()
    return tmp_path


@pytest.mark.parametrize("name", ["mapped", "streamed"])
def test_a_run_of_before_continues_and_ends_where_it_ended_then(before, name):
    ended = load_file(before / name / "checkpoints/step_00000008/model.safetensors")
    shutil.rmtree(before / name / "checkpoints/step_00000008")
    shutil.rmtree(before / name / "model")
    assert not json.loads((before / name / "checkpoints/step_00000004/state.json").read_text()).get("format")
    main(arguments(name))
    now = load_file(before / name / "checkpoints/step_00000008/model.safetensors")
    # Other processors round differently, but eight steps do not amplify that much.
    assert all(torch.allclose(now[key].float(), ended[key].float(), rtol=1e-2, atol=1e-3) for key in ended)
    assert json.loads((before / name / "checkpoints/step_00000008/state.json").read_text())["format"] > 1
    lines = [json.loads(line) for line in (before / name / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8]
    # The earlier version may have used other evaluation examples and did not record which.
    said = "The figures before training may be for other examples"
    assert (name == "mapped") == (said in (before / name / "model/README.md").read_text())


def test_a_sharded_run_of_before_is_exported_and_continues_on_two_processes(before):
    checkpoint = before / "sharded/checkpoints/step_00000004"
    assert find_weights(before / "sharded") == checkpoint
    assert all(tensor.isfinite().all() for tensor in read_weights(checkpoint).values())
    assert (export_checkpoint(checkpoint, before / "exported") / "model.safetensors").exists()
    log = before / "log"
    run = start(main, arguments("sharded"), processes=2, config="fsdp2", cpu=False, log=log)
    assert run.wait(timeout=300) == 0, log.read_text()[-2000:]
    assert (before / "sharded/model/model.safetensors").exists()


def test_a_run_of_before_on_fewer_images_is_refused(before, capsys):
    from tests.conftest import digit_dataset

    shutil.rmtree(before / "mapped/checkpoints/step_00000008")
    digit_dataset(0, 96).to_parquet("digits/train.parquet")
    with pytest.raises(SystemExit):
        main(arguments("mapped"))
    said = capsys.readouterr().err
    assert "128 then, 96 now" in said and "train.init_from" in said


@pytest.mark.parametrize("name", ["mapped", "streamed"])
def test_a_model_of_before_loads_everywhere(before, name):
    folder = before / name / "model"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
        assert torch.allclose(AutoModel.from_pretrained(folder).eval()(images).pooler_output.flatten(1), features)
    whole = AutoModelForPreTraining.from_pretrained(folder / "pretraining")
    assert whole.config.model_type == {"mapped": "barlow_twins", "streamed": "swav"}[name]


def test_a_key_that_a_checkpoint_does_not_know_keeps_its_meaning(monkeypatch):
    monkeypatch.setitem(MEANT_BEFORE, 3, {"optim.final_lr_fraction": 0.5})
    recipe = load_recipe("quickstart")
    kept = recipe.to_dict()
    del kept["optim"]["final_lr_fraction"]
    assert continued(recipe, kept, 2).optim.final_lr_fraction == 0.5
    assert changed_keys(kept, continued(recipe, kept, 2).to_dict(), 2) == []
    assert continued(recipe, kept, 3).optim.final_lr_fraction == 0.0
    own = load_recipe("quickstart", ["optim.final_lr_fraction=0.1"])
    assert changed_keys(kept, continued(own, kept, 2).to_dict(), 2) == ["optim.final_lr_fraction"]


@pytest.mark.parametrize(
    "name, section, key, before",
    [
        ("seer/regnety_080", "optim", "cosine_over", "after_warmup"),
        ("byol/imagenette_resnet18_deepmind", "model", "first_shortcut", "identity"),
    ],
)
def test_a_run_of_a_shipped_recipe_that_has_a_new_key_since_goes_on_without_it(name, section, key, before):
    recipe = load_recipe(name)
    kept = recipe.to_dict()
    del kept[section][key]
    going_on = continued(recipe, kept, 1).to_dict()
    assert going_on[section][key] == before and changed_keys(kept, going_on, 1) == []
    assert continued(recipe, kept, 2).to_dict()[section][key] == recipe.to_dict()[section][key]


def test_a_new_key_that_the_person_sets_is_refused_and_not_overridden():
    kept = load_recipe("quickstart").to_dict()
    del kept["optim"]["cosine_over"]
    asked = load_recipe("quickstart", ["optim.cosine_over=run"])
    assert changed_keys(kept, continued(asked, kept, 1).to_dict(), 1) == ["optim.cosine_over"]
    asked = load_recipe("quickstart", ["model.first_shortcut=projection"])
    assert changed_keys(kept, continued(asked, kept, 1).to_dict(), 1) == ["model.first_shortcut"]


def test_a_run_of_before_goes_on_as_it_began_however_often_it_is_continued():
    recipe = load_recipe("quickstart")
    kept = recipe.to_dict()
    del kept["views"]["arithmetic"], kept["data"]["exif"]
    kept["train"]["precision"] = None
    once = continued(recipe, kept, 1)
    assert (once.views.arithmetic, once.data.exif, once.train.precision) == ("torch", "ignore", None)
    assert once.model["explicit_matrix"] is True and changed_keys(kept, once.to_dict(), 1) == []
    again = continued(recipe, once.to_dict(), 3, began=1)
    assert again == once and changed_keys(once.to_dict(), again.to_dict(), 3) == []
    assert continued(recipe, recipe.to_dict(), 3).views.arithmetic == "auto"


def test_the_name_that_a_key_had_before_is_still_understood():
    assert load_recipe("quickstart", ["train.keep_checkpoints=5"]).train.keep == 5
