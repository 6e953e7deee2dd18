# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A mistake in a command is one sentence with the nearest valid name and exit code 2, before anything is loaded."""

import json
import subprocess
import sys

import pytest

from hf_ssl.cli import main


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "hf_ssl", *args], capture_output=True, text=True, timeout=120)


def mistake(capsys, *args: str) -> str:
    """The one line that the command writes before it exits with 2."""
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    assert stopped.value.code == 2
    text = capsys.readouterr().err.strip()
    assert len(text.splitlines()) == 1
    return text


@pytest.fixture
def recipe(tmp_path, digits):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"method: byol\ndata: {{path: {digits}}}\nmodel: {{backbone: test_resnet}}\n"
        f"train: {{epochs: 1, batch_size: 16, output_dir: {tmp_path / 'run'}}}\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epoch=3", "train.epochs"),
        ("trian.epochs=3", "train"),
        ("train.batch_size=many", "train.batch_size"),
        ("train.epochs=0", "train.epochs"),
        ("method=simsam", "simsiam"),
        ("model.backbone=resnet5O", "resnet50"),
        ("model.projector_dims=[1]", "projector_dim"),
        ("model.tau_base=high", "tau_base"),
        ("views.all.jiter=[0,0,0,0]", "jitter"),
        ("views.preset=bylo", "byol"),
        ("optim.name=larz", "lars"),
        ("data.image_column=img", "image"),
        ("data.split=trian", "train"),
        ("data.path=/no/such/folder", "/no/such/folder"),
        ("train.accumulation=3", "train.batch_size"),
        ("train.batch_size=4096", "128"),
        ("train.track=[wandbb]", "wandb"),
        ("monitor.label_column=lable", "label"),
        ("no_equals_sign", "key=value"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_naming_the_key(capsys, recipe, tmp_path, override, expected):
    assert expected in mistake(capsys, "pretrain", recipe, override)
    assert not (tmp_path / "run").exists()


def test_an_unknown_recipe_gets_the_nearest_name(capsys):
    assert "quickstart" in mistake(capsys, "pretrain", "quikstart")


def test_a_model_that_is_not_there_is_said(capsys, digits, tmp_path):
    assert str(tmp_path) in mistake(capsys, "evaluate", "knn", str(tmp_path), "--data", str(digits))


@pytest.mark.parametrize(
    "command",
    [
        ["pretrain", "RECIPE", "data.path=NAME"],
        ["pretrain", "RECIPE", "train.output_dir=NAME"],
        ["pretrain", "RECIPE", "train.init_from=NAME"],
        ["evaluate", "knn", "NAME", "--data", "."],
        ["export", "NAME"],
        ["card", "NAME"],
        ["convert", "NAME", "--method", "swav", "--output", "out"],
    ],
)
def test_a_path_that_no_file_can_have_is_one_sentence(capsys, recipe, command):
    name = "very_long_" * 500
    text = mistake(capsys, *[{"RECIPE": recipe}.get(word, word).replace("NAME", name) for word in command])
    assert "very_long_" in text


def test_help_teaches_without_importing_torch():
    result = run("pretrain", "--help")
    assert result.returncode == 0
    assert "data.path=" in result.stdout and "checkpoints/" in result.stdout
    probe = "import sys, hf_ssl.cli; hf_ssl.cli.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


def test_recipes_lists_method_backbone_dataset_and_published_result(capsys):
    main(["recipes", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert "quickstart" in rows
    row = rows["barlow_twins/imagenet1k_resnet50"]
    assert row["method"] == "barlow_twins" and row["backbone"] == "resnet50"
    assert "ImageNet" in row["dataset"] and "73" in row["published"]
    main(["recipes", "cifar10"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 8 and all("cifar10" in line.lower() for line in lines[1:])
