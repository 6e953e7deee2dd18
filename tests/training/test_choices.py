# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`auto` values are chosen once, logged, and kept."""

import pytest
import torch
import yaml

from hf_ssl import devices
from hf_ssl.devices import best_precision
from hf_ssl.recipe import load_recipe
from hf_ssl.training import choices
from hf_ssl.training.pretrain import pretrain
from tests.training.test_resume import assert_same_weights, command


def run(digits, folder, *more: str):
    _, path, *overrides = command(
        "simsiam", digits, folder, "train.steps=4", "train.checkpoint_minutes=0.000001", *more
    )
    return pretrain(load_recipe(path, overrides))


def test_a_run_keeps_the_precision_that_it_chose_first(digits, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(choices, "best_precision", lambda: "bf16")
    with caplog.at_level("INFO", "hf_ssl"):
        auto = run(digits, tmp_path / "auto", "train.precision=auto")
    assert "train.precision=auto: bf16" in caplog.text
    assert yaml.safe_load((tmp_path / "auto" / "recipe.yaml").read_text())["train"]["precision"] == "bf16"
    said = run(digits, tmp_path / "said", "train.precision=bf16")
    assert_same_weights(auto.model_dir / "model.safetensors", said.model_dir / "model.safetensors")
    # Another machine, where the choice would differ.
    kept = sorted((tmp_path / "auto/checkpoints").iterdir())
    assert len(kept) > 1
    for step in kept[1:]:
        step.rename(tmp_path / step.name)
    monkeypatch.setattr(choices, "best_precision", lambda: "no")
    again = run(digits, tmp_path / "auto", "train.precision=auto")
    assert_same_weights(again.model_dir / "model.safetensors", said.model_dir / "model.safetensors")
    assert yaml.safe_load((tmp_path / "auto" / "recipe.yaml").read_text())["train"]["precision"] == "bf16"


@pytest.mark.parametrize("launched", ["no", "bf16", "fp16", "fp8"])
def test_what_the_launcher_says_wins(monkeypatch, launched):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert best_precision() == (None if launched == "fp8" else launched)


@pytest.mark.parametrize(("flags", "precision"), [("fpu amx_bf16 avx", "bf16"), ("fpu avx512_bf16", "no")])
def test_a_cpu_is_asked_whether_it_multiplies_matrices_of_bf16(monkeypatch, tmp_path, flags, precision):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(devices, "CPU_FLAGS", tmp_path / "cpuinfo")
    assert best_precision() == precision
    monkeypatch.setattr(devices, "CPU_FLAGS", tmp_path / "absent")
    assert best_precision() == "no"
