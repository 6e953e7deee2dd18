# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A real training process, interrupted anywhere and restarted, gives bit-identical results."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hf_ssl.cli import main
from tests.methods import METHOD_OVERRIDES, recipe_file
from tests.runs import Run, start


def command(method: str, data: Path, output: Path, *more: str) -> list[str]:
    """Arguments of `hf-ssl`."""
    return [
        *("pretrain", str(recipe_file(method, output.parent)), f"data.path={data}", f"train.output_dir={output}"),
        *(() if method == "avid" else ("model.backbone=test_resnet",)),
        *("views.all.size=32", "train.batch_size=16", "train.steps=40"),
        *("train.checkpoint_every=0.5", "train.log_every=3", "monitor.every=2", "data.num_workers=0"),
        *METHOD_OVERRIDES[method],
        *more,
    ]


def progress(output: Path) -> int:
    """The last step in metrics.jsonl."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(steps, default=-1)


def started(args: list[str], output: Path) -> Run:
    return start(main, args, cpu=False, log=output.with_suffix(".log"))


def finished(args: list[str], output: Path) -> None:
    assert started(args, output).wait(timeout=300) == 0, output.with_suffix(".log").read_text()[-3000:]


def stop_at(process: Run | subprocess.Popen, output: Path, step: int, delay: float, signum: int) -> int:
    """Send the signal `delay` seconds after the run has reached `step`; returns the exit code."""
    deadline = time.monotonic() + 120
    while process.poll() is None and progress(output) < step:
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signum)
    return process.wait(timeout=60)


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    different = [name for name in a if not a[name].equal(b[name])]
    assert not different


# The method with the most state is always tested, the others only with the slow tests.
@pytest.mark.parametrize(
    "method", [m if m == "swav" else pytest.param(m, marks=pytest.mark.slow) for m in METHOD_OVERRIDES]
)
def test_killed_several_times_ends_bit_for_bit_like_uninterrupted(method, digits, videos, tmp_path):
    ends_like_uninterrupted(method, videos if method == "avid" else digits, tmp_path)


@pytest.mark.slow
def test_killed_with_several_matrices_of_prototypes_it_ends_like_uninterrupted(digits, tmp_path):
    ends_like_uninterrupted("swav", digits, tmp_path, "model.num_prototypes=[20,12]")


def ends_like_uninterrupted(method: str, data: Path, tmp_path: Path, *more: str) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = (*more, "train.steps=24")
    finished(command(method, data, whole, *more), whole)
    chance = random.Random(f"{method}{time.time()}")  # different moments in every run of the test
    kills = []
    for least in (2, 8, 14):
        moment = (least + chance.randrange(6), chance.random() * 0.1)
        kills.append(moment)
        code = stop_at(started(command(method, data, broken, *more), broken), broken, *moment, signal.SIGKILL)
        if code == 0:  # finished before the signal
            break
    finished(command(method, data, broken, *more), broken)
    print("killed at", kills)  # noqa: T201
    last = "checkpoints/step_00000024/model.safetensors"
    assert_same_weights(whole / last, broken / last)
    assert_same_weights(whole / "model/model.safetensors", broken / "model/model.safetensors")
    steps = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_sigterm_leaves_a_checkpoint_of_that_step_and_exits_143(digits, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    args = command("simsiam", digits, broken, "train.checkpoint_every=100")
    command_line = [sys.executable, "-m", "hf_ssl", *args]  # a real command line
    with subprocess.Popen(command_line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        code = stop_at(process, broken, 6, 0.0, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    kept = sorted((broken / "checkpoints").iterdir())
    assert [p.name[:5] for p in kept] == ["step_"]
    assert 6 <= int(kept[0].name[5:]) < 40
    finished(args, broken)
    finished(command("simsiam", digits, whole, "train.checkpoint_every=100"), whole)
    last = "checkpoints/step_00000040/model.safetensors"
    assert_same_weights(whole / last, broken / last)


def test_a_changed_recipe_is_refused_with_the_names_of_the_keys(digits, tmp_path):
    output = tmp_path / "run"
    finished(command("simsiam", digits, output, "train.steps=2"), output)
    again = command("simsiam", digits, output, "train.steps=2", "optim.lr=0.3", "data.num_workers=1")
    refused = tmp_path / "refused"
    assert started(again, refused).wait(timeout=300) == 2
    said = refused.with_suffix(".log").read_text()
    assert "optim.lr" in said and "num_workers" not in said
