# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`hf-ssl bench` measures what `pretrain` does, and leaves nothing behind. How fast it is, no test says."""

import json
import sys

import pytest

from hf_ssl.bench import PARTS, bench, table
from hf_ssl.cli import main
from hf_ssl.recipe import RecipeError, recipe_from_dict
from tests.training.test_resume import METHOD_OVERRIDES, command


QUICK = {"repeats": 1, "seconds": 0.01}


@pytest.mark.parametrize("method", sorted(METHOD_OVERRIDES))
def test_every_method_is_measured_as_it_trains(method, digits, videos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = videos if method == "avid" else digits
    arguments = ["bench", *command(method, data, tmp_path / "run")[1:], "--repeats=1", "--seconds=0.01", "--json"]
    main(arguments)
    result = json.loads(capsys.readouterr().out)
    rates = result["rates"]["hf_ssl"]
    assert all(0 < rates[part]["low"] <= rates[part]["median"] <= rates[part]["high"] for part in PARTS)
    named = {"decode", "crop and flip", "colors and normalization", "forward", "backward", "optimizer"}
    assert named <= result["seconds"].keys() and all(value >= 0 for value in result["seconds"].values())
    assert 0 < result["efficiency"] and "hf_ssl" in result["versions"]
    assert [file.name for file in tmp_path.iterdir()] == [f"{method}.yaml"], "no run is kept"


def test_cpu_seconds_are_of_one_thread_without_workers(digits):
    content = {"method": "simsiam", "data": {"path": str(digits), "num_workers": 2}, "train": {"epochs": 1}}
    content |= {"model": {"backbone": "test_resnet"}, "views": {"all": {"size": 32}}}
    content["train"]["batch_size"] = 16
    result = bench(recipe_from_dict(content), cpu_seconds=True, **QUICK)
    assert (result["workers"], result["threads"]) == (0, 1) and "CPU second" in table(result)


def test_a_package_that_is_not_there_is_one_sentence(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly", None)
    content = {"method": "simsiam", "data": {"path": str(digits)}, "train": {"epochs": 1, "batch_size": 16}}
    content |= {"model": {"backbone": "test_resnet"}, "views": {"all": {"size": 32}}}
    with pytest.raises(RecipeError, match="pip install lightly"):
        bench(recipe_from_dict(content), against="lightly", **QUICK)


@pytest.mark.parametrize("option", ["--repeats=0", "--seconds=0", "--seconds=nan", "--seconds=inf"])
def test_times_that_are_none_are_refused(digits, capsys, option):
    with pytest.raises(SystemExit):
        main(["bench", "quickstart", f"data.path={digits}", option])
    assert "--repeats must be at least 1, and --seconds greater than 0" in capsys.readouterr().err
