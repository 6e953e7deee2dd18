# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Fixed lists of the examples to learn from, and what is measured where a dataset has one split."""

import json
from pathlib import Path

import pytest

from hf_ssl.cli import main
from hf_ssl.data.sources import load_source
from hf_ssl.evaluation.keep import keep
from hf_ssl.evaluation.lists import rows_named
from hf_ssl.recipe import DataConfig, RecipeError
from tests.conftest import digit_images
from tests.methods import save_encoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """train/ and test/, with a folder for each digit; names are those of ImageNet's kind but for one."""
    folder = tmp_path_factory.mktemp("folders")
    for i, (image, digit) in enumerate(zip(*digit_images(90), strict=True)):
        place = folder / ("train" if i < 60 else "test") / f"n{digit}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / (f"n{digit}_{i}.png" if i not in (0, 1) else "same.png"))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def test_the_named_images_are_learned_from(folders, encoder, tmp_path):
    source = load_source(DataConfig(path=str(folders)))
    lists = []
    for draw in (0, 1):
        names = [sorted((folders / "train" / f"n{digit}").iterdir())[draw].name for digit in range(2, 10)]
        lists.append(tmp_path / f"{draw}.txt")
        lists[-1].write_text("\n".join([*names, "n0/same.png", "train/n1/same.png", ""]))
        rows = rows_named(source, str(lists[-1])).tolist()
        assert [Path(source.name(row)).name for row in rows][:8] == names and len(rows) == 10
        assert [Path(source.name(row)).parent.name for row in rows][8:] == ["n0", "n1"]
    command = ["evaluate", "lowshot", encoder, "--data", str(folders), "--num-workers", "0", "--no-baselines"]
    output = tmp_path / "r.json"
    main([*command, "--list", *map(str, lists), "--output", str(output)])
    both = json.loads(output.read_text())
    singles = []
    for file in lists:
        main([*command, "--list", str(file), "--output", str(output)])
        singles.append(json.loads(output.read_text()))
    assert both["lowshot"] == pytest.approx(sum(one["lowshot"] for one in singles) / 2)
    assert both["spread"]["lowshot"] == pytest.approx(abs(singles[0]["lowshot"] - singles[1]["lowshot"]) / 2**0.5)
    assert "0.txt, 1.txt" in both["said"] and singles[0]["errors"]["lowshot"] > 0


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["n2_77.png", "x.png"], r"2 of the 2 images in .* are not in train, such as n2_77.png, x.png"),
        (["same.png"], r"1 names in .* match several images of train, such as same.png; add their folders"),
        ([], "is empty"),
    ],
)
def test_names_that_cannot_be_followed_are_told(folders, tmp_path, names, said):
    (tmp_path / "l.txt").write_text("\n".join(names))
    with pytest.raises(RecipeError, match=said):
        rows_named(load_source(DataConfig(path=str(folders))), str(tmp_path / "l.txt"))


def test_examples_of_one_split_are_found_among_each_other(folders, encoder, tmp_path, capsys):
    output = tmp_path / "r.json"
    command = ["evaluate", "retrieval", encoder, "--num-workers", "0", "--no-baselines", "--output", str(output)]
    main([*command, "--data", str(folders / "test")])
    result = json.loads(output.read_text())
    assert result["examples"] == 30 and result["measured"]["queries"] == "train" and result["errors"]["map"] > 0
    with pytest.raises(SystemExit):
        main([*command, "--data", str(folders), "--query-split", "other"])
    assert "has no split 'other'; set --query-split to one of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--data", str(folders / "test" / "n2")])
    assert "needs a class with two examples" in (said := capsys.readouterr().err) and "Traceback" not in said


def test_results_of_datasets_of_one_name_are_two_files(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").touch()
    for place in ("a/photos", "b/photos"):
        (tmp_path / place).mkdir(parents=True)
    result, model = {"protocol": "knn", "knn": 0.5}, str(tmp_path / "model")

    def kept(data: str) -> str:
        return keep(result, model, DataConfig(path=data), None, None).name

    first, other = kept(str(tmp_path / "a/photos")), kept(str(tmp_path / "b/photos"))
    monkeypatch.chdir(tmp_path / "a")
    assert first == "knn_photos.json" == kept("photos") and other == kept(str(tmp_path / "b/photos")) != first
    monkeypatch.chdir(tmp_path / "b")
    assert kept("photos") == other and kept("user/photos") not in (first, other)
    assert len(list((tmp_path / "model/results").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("linear --protocol swav --clips 3", "--clips is for protocols on frozen features"),
        ("linear --protocol swav --no-baselines", "--no-baselines is for protocols on frozen features"),
        ("lowshot --protocol swav-10% --no-cache", "--no-cache is for protocols on frozen features"),
        ("finetune --no-baselines", "unrecognized arguments: --no-baselines"),
        ("finetune --clips 3", "unrecognized arguments: --clips"),
        ("dense --layer -2", "unrecognized arguments: --layer"),
        ("lowshot --protocol 5 --list a.txt", "--list selects its own protocol"),
        ("lowshot --protocol list", "needs the names of the training images; pass --list FILE"),
        ("lowshot --list nowhere.txt", "The list nowhere.txt cannot be read"),
        ("retrieval --protocol revisited", "--ground-truth gnd_roxford5k.pkl"),
        ("retrieval --ground-truth nowhere.pkl", "There is no file nowhere.pkl"),
    ],
)
def test_an_option_that_decides_nothing_is_refused(encoder, digits, capsys, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    protocol, *more = arguments.split()
    with pytest.raises(SystemExit):
        main(["evaluate", protocol, encoder, "--data", str(digits), *more])
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown
