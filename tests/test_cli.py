# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A mistake in a command is one sentence with the nearest valid name and exit code 2, before anything is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import PartialState
from PIL import Image as PILImage

from hf_ssl import __version__
from hf_ssl.cli import build_parser, main
from hf_ssl.recipe import load_recipe
from hf_ssl.resolve import resolve
from hf_ssl.training.choices import stand_in


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


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a model that has not been trained."""
    from hf_ssl.hub.card import Results
    from hf_ssl.hub.export import export
    from hf_ssl.recipe import recipe_from_dict
    from hf_ssl.resolve import resolve
    from hf_ssl.training.setup import new_model

    content = {"method": "simsiam", "model": {"backbone": "test_resnet"}, "train": {"steps": 1}}
    recipe = recipe_from_dict(content | {"views": {"all": {"size": 32}}})
    folder = tmp_path_factory.mktemp("exported") / "model"
    model = new_model(recipe, resolve(recipe).config)
    export(model, recipe, folder, tensors=model.state_dict(), results=Results({}, {}, None, 1, 0.0, "here", {}))
    return folder


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


def test_an_unknown_recipe_gets_the_three_nearest_names(capsys):
    assert "quickstart" in mistake(capsys, "pretrain", "quikstart")
    text = mistake(capsys, "pretrain", "byol_imagenet")
    assert "byol/imagenet" in text and text.split("`")[0].count(",") == 2


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


def photos(folder: Path, *names: str) -> str:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (40, 40), (20 * i, 90, 90)).save(folder / name)
    return str(folder)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrain", "my_images", "data.path=TEXTS"], "contains no images (1 .txt)"),
        (["pretrain", "avid/my_clips", "data.path=PHOTOS"], "has no video column or file, but 2 images; use videos"),
        (["pretrain", "my_images", "data.path=phtos"], "did you mean photos?"),
        (["pretrain", "my_images", "data.path=someone/photos"], "HF_HUB_OFFLINE=1"),
        (["pretrain", "my_images", "data.path=PHOTOS/0.png"], "pass its folder"),
        (["pretrain", "my_images", "data.path=PHOTOS", "model.init_from=someone/model"], "HF_HUB_OFFLINE=1"),
        (["pretrain", "my_images", "data.path=PHOTOS", "model.init_from=timm/resnet18.a1_in1k"], "HF_HUB_OFFLINE=1"),
        (["evaluate", "knn", "someone/model", "--data", "PHOTOS"], "HF_HUB_OFFLINE=1"),
        (["evaluate", "knn", "timm:resnet1x", "--data", "PHOTOS"], "resnet18"),
        (["push", "nowhere", "user/name"], "There is no folder nowhere"),
        (["preview", "my_images", "data.path=PHOTOS", "--output", "PHOTOS/0.png"], "--overwrite"),
        (["pretrain", "my_images", "photos"], "for example data.path=photos."),
        (["embed", "someone/model", "--data", "PHOTOS", "--output", "PHOTOS/0.png"], "--overwrite"),
    ],
)
def test_what_a_beginner_may_get_wrong_is_one_sentence_with_the_remedy(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", "0.png", "1.png")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words")
    PartialState()  # what is chosen for a run may be told before
    with pytest.raises(SystemExit) as stopped:
        main([word.replace("PHOTOS", "photos").replace("TEXTS", "texts") for word in words])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and last.startswith("hf-ssl: ") and expected in last


def test_evaluate_names_its_own_options(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "flat", "train/0.png", "test/1.png")
    said = mistake(capsys, "evaluate", "knn", str(exported), "--data", "flat")
    assert "one folder per class" in said and "monitor." not in said
    assert "--data nowhere:" in mistake(capsys, "evaluate", "knn", str(exported), "--data", "nowhere")
    assert "--data nowhere:" in mistake(capsys, "embed", str(exported), "--data", "nowhere")


def test_a_run_without_a_model_and_a_folder_that_is_not_there_are_said(capsys, digits, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    said = mistake(capsys, "evaluate", "knn", str(tmp_path / "run"), "--data", str(digits))
    assert f"has not ended; `hf-ssl export {tmp_path / 'run'}`" in said
    said = mistake(capsys, "evaluate", "knn", "a/b/c/", "--data", str(digits))
    assert "no such folder" in said


def test_options_where_keys_are_meant_name_the_way(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "my_images", "--data", "photos"])
    assert "keys of a recipe are written like data.path=photos" in capsys.readouterr().err


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


def test_every_recipe_is_listed_with_the_backbone_that_it_trains(capsys):
    main(["recipes", "--json"])
    for row in json.loads(capsys.readouterr().out):
        recipe = load_recipe(row["name"])
        assert row["backbone"] in ("auto", *resolve(stand_in(recipe)).config.backbones), row["name"]


def test_what_ships_is_copied_and_never_over_a_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"my_images": "my_images.yaml", "byol/cifar10_resnet18": "cifar10_resnet18.yaml"}
    names |= {name: f"recipes/{name}.yaml" for name in ("accelerate/ddp", "accelerate/fsdp2")}
    for name, file in (names | {"cluster/seer": "recipes/cluster/seer.sbatch"}).items():
        main(["recipes", name, "--copy"])
        assert capsys.readouterr().out.strip() == file and (tmp_path / file).exists()
    (tmp_path / "my_images.yaml").write_text("method: byol\ntrain: {epochs: 1}\n")
    assert "exists already" in mistake(capsys, "recipes", "my_images", "--copy")
    assert (tmp_path / "my_images.yaml").read_text().startswith("method: byol")
    assert "my_images" in mistake(capsys, "recipes", "my_image", "--copy", "elsewhere")
    assert load_recipe("cifar10_resnet18.yaml").train.epochs == 200


def test_the_photographs_that_ship_are_data_by_name(tmp_path, monkeypatch):
    args = build_parser().parse_args(["evaluate", "knn", "run", "--data", "quickstart"])
    assert sorted(file.name for file in Path(args.data).glob("*.parquet")) == ["test.parquet", "train.parquet"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    args = build_parser().parse_args(["embed", "run", "--data", "quickstart"])
    assert args.data == "quickstart", "a folder of one's own comes first"
