# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Classifiers learn, resume exactly, and do not depend on the number of processes."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_ssl import SimSiamModel
from hf_ssl.cli import main
from hf_ssl.errors import UserError
from hf_ssl.evaluation.protocols import FINETUNE_PROTOCOLS, LINEAR_PROTOCOLS, Supervised
from hf_ssl.recipe import DataConfig, MonitorConfig, TrainConfig
from hf_ssl.training import supervised as module
from hf_ssl.training.supervised import rate, supervised
from tests.methods import save_encoder
from tests.runs import start


HEAD = Supervised("a test", 3, 32, lr=(0.1,), momentum=0.9)
WHOLE = Supervised("a test", 8, 32, frozen=False, optimizer="adamw", lr=(2e-3,), head_lr=1e-2)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def learn(encoder: str, digits: str, folder: Path, settings: Supervised, **more) -> dict:
    data, monitor = DataConfig(path=str(digits), num_workers=0), MonitorConfig(path=str(digits))
    train = TrainConfig(precision="no")
    return supervised(encoder, data, monitor, settings, folder=Path(folder), train=train, **more)


def test_all_layers_learn_digits(encoder, digits, tmp_path):
    found = learn(encoder, digits, tmp_path, replace(WHOLE, seeds=2))
    assert found["finetune"] > 0.4 and found["queries"] == 64
    assert found["errors"]["finetune"] == pytest.approx(found["spread"]["finetune"] / math.sqrt(2))


def test_the_best_of_several_rates_is_chosen_on_training_examples(encoder, digits, tmp_path, monkeypatch):
    told = []
    real = module._accuracy
    monkeypatch.setattr(
        module, "_accuracy", lambda trial, source, head: told.append(source) or real(trial, source, head)
    )
    found = learn(encoder, digits, tmp_path, replace(HEAD, epochs=12, lr=(1e-9, 10.0, 1e-8)), protocol="linear")
    assert found["chosen"]["lr"] == 10.0 and found["linear"] > 0.15
    assert [len(source) for source in told] == [len(told[0])] * 3 + [64] and len(told[0]) < 20


def test_a_frozen_encoder_stays_as_it_is(encoder, digits, tmp_path):
    seen = {}
    real = module._train

    def watched(trial, source, folder):
        before = {name: tensor.clone() for name, tensor in trial.encoder.model.state_dict().items()}
        real(trial, source, folder)
        seen["same"] = all(before[name].equal(t) for name, t in trial.encoder.model.state_dict().items())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_train", watched)
        learn(encoder, digits, tmp_path, HEAD)
    assert seen["same"], "weights and BatchNorm's statistics"


class _Killed(Exception):
    pass


def test_an_interrupted_run_ends_where_it_would_have_ended(encoder, digits, tmp_path, monkeypatch):
    whole = learn(encoder, digits, tmp_path / "whole", WHOLE)
    steps, real = [], module.rate

    def dying(settings, step, *more):
        steps.append(step)
        if len(steps) == 11:
            raise _Killed
        return real(settings, step, *more)

    monkeypatch.setattr(module, "rate", dying)
    with pytest.raises(_Killed):
        learn(encoder, digits, tmp_path / "again", WHOLE)
    again = learn(encoder, digits, tmp_path / "again", WHOLE)
    assert steps[11] == 8, "it goes on from its newest checkpoint"
    assert {key: again[key] for key in ("finetune", "finetune_mean_per_class")} == {
        key: whole[key] for key in ("finetune", "finetune_mean_per_class")
    }


def learn_heads(encoder: str, digits: str, folder: str) -> None:
    """Save the trained layer and its accuracy in `folder`, one file per process."""
    kept = {}
    real = module._train

    def watched(trial, source, place):
        real(trial, source, place)
        kept["weight"] = trial.network.heads[0].weight.detach().clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_train", watched)
        kept["accuracy"] = learn(encoder, digits, Path(folder), HEAD, protocol="linear")["linear"]
    torch.save(kept, Path(folder) / f"{os.environ.get('RANK', 0)}.pt")


def test_two_processes_learn_what_one_does(encoder, digits, tmp_path):
    learn_heads(encoder, str(digits), str(tmp_path / "one"))
    run = start(learn_heads, encoder, str(digits), str(tmp_path / "two"), processes=2, log=tmp_path / "log")
    assert run.wait(timeout=120) == 0, (tmp_path / "log").read_text()[-3000:]
    alone, *both = (torch.load(tmp_path / file) for file in ("one/0.pt", "two/0.pt", "two/1.pt"))
    for one in both:
        assert torch.allclose(one["weight"], alone["weight"], atol=1e-5)
        assert one["accuracy"] == pytest.approx(alone["accuracy"], abs=0.02)


def test_rates_follow_the_published_schedules():
    swav, seer = LINEAR_PROTOCOLS["swav"], FINETUNE_PROTOCOLS["seer2021"]
    assert rate(swav, 0, 1000, 10) == rate(swav, 9, 1000, 10) == 1 and rate(swav, 500, 1000, 10) == pytest.approx(0.5)
    assert [rate(seer, epoch * 10, 350, 10) for epoch in (0, 29, 30)] == pytest.approx([1, 1, 0.1])
    warm = FINETUNE_PROTOCOLS["small"]
    assert rate(warm, 0, 500, 10) == pytest.approx(1 / 50) and rate(warm, 49, 500, 10) == 1


def test_the_command_trains_and_keeps_its_figures(encoder, digits, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--data",
        str(digits),
        "--num-workers",
        "0",
        "--epochs",
        "1",
        "--train-batch-size",
        "32",
        "--seeds",
        "1",
    ]
    main(["evaluate", "finetune", encoder, *arguments, "--output", "result.json"])
    told = capsys.readouterr()
    assert "finetune" in told.out and "LOAD REPORT" not in told.err + caplog.text  # the new head is expected
    result = json.loads((tmp_path / "result.json").read_text())
    assert "1 epochs, batch 32" in result["said"] and 0 <= result["finetune"] <= 1


def test_figures_of_other_weights_and_other_files_are_made_anew(encoder, tmp_path):
    data = tmp_path / "data"
    for split in ("train", "test"):
        for number in range(32):
            (data / split / str(number % 2)).mkdir(parents=True, exist_ok=True)
            Image.new("L", (32, 32), 200 * (number % 2) + number).save(
                data / split / str(number % 2) / f"{number}.bmp"
            )
    calls, real = [], module._train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_train", lambda *args: calls.append(1) or real(*args))

        def made() -> int:
            learn(encoder, data, tmp_path / "kept", replace(HEAD, epochs=1), protocol="linear")
            return len(calls)

        assert [made(), made()] == [1, 1]
        Image.new("L", (32, 32), 255).save(data / "test/0/0.bmp")
        assert made() == 2, "the same name and size"
        model = SimSiamModel.from_pretrained(encoder)
        with torch.no_grad():
            next(model.parameters()).add_(0.1)
        model.save_pretrained(tmp_path / "model")
        shutil.copytree(encoder, tmp_path / "before")
        shutil.copytree(tmp_path / "model", encoder, dirs_exist_ok=True)
        try:
            assert made() == 3, "trained on in the same folder"
        finally:
            shutil.copytree(tmp_path / "before", encoder, dirs_exist_ok=True)


def test_a_loss_that_is_no_number_ends_the_run(encoder, digits, tmp_path):
    with pytest.raises(UserError, match="NaN or infinite before step .*lower the learning rate"):
        learn(encoder, digits, tmp_path, replace(WHOLE, optimizer="sgd", lr=(1e30,), head_lr=1e30))


def test_images_that_cannot_be_learned_from_are_named(encoder, tmp_path):
    for i in range(40):
        place = tmp_path / "data" / ("test" if i >= 34 else "train") / str(i % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 6 * i).save(place / f"{i}.png")
    (tmp_path / "data/train/0/4.png").write_bytes(b"nothing")
    settings = replace(HEAD, epochs=4, batch_size=16)
    found = learn(encoder, tmp_path / "data", tmp_path / "run", settings, protocol="linear")
    assert [Path(name.split(" (")[0]).name for name in found["failed"]] == ["4.png"]
    assert found["errors"]["linear_mean_per_class"] >= 0
