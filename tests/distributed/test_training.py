# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A recipe on several processes gives the same weights as on one process with the global batch."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_ssl.training.metrics import read_metrics
from tests.distributed import train_all_methods
from tests.distributed.train_all_methods import METHODS
from tests.runs import launcher, start


ROOT = Path(__file__).parents[2]
SCRIPT, SHIM = (Path(__file__).with_name(name) for name in ("train_all_methods.py", "cpu_fsdp.py"))


def train(
    output: Path, processes: int, *arguments: str, config: str = "ddp", options=(), by_launcher: bool = False
) -> Path:
    """Run the script with a shipped config, on gloo processes without a GPU; resumes an existing run.

    `by_launcher`: use `accelerate launch` itself, not processes with its environment.
    """
    output.mkdir(exist_ok=True)
    log, cpu = output / "stderr", config == "ddp"  # otherwise Accelerate would not shard
    if by_launcher:
        env = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
        command = launcher(config, processes, "--mixed_precision", "no", *options)
        command += [*([] if cpu else [str(SHIM)]), str(SCRIPT), str(output), *arguments]
        with log.open("a") as file:
            code = subprocess.run(command, env=env, stdout=file, stderr=file, timeout=300).returncode
    else:
        how = {"processes": processes, "config": config, "options": options, "cpu": cpu, "log": log}
        code = start(train_all_methods.main, str(output), *arguments, **how).wait(timeout=300)
    assert code == 0, log.read_text()[-3000:]
    return output


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("one") / "run", 1)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("two") / "run", 2, by_launcher=True)


def weights(output: Path, method: str) -> dict[str, torch.Tensor]:
    return load_file(output / method / "checkpoints/step_00000004/model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_end_at_the_weights_of_one(method, one_process, two_processes):
    a, b = weights(one_process, method), weights(two_processes, method)
    assert a.keys() == b.keys()
    for name in a:
        scale = a[name].double().abs().max().clamp(min=1e-2)
        assert ((a[name].double() - b[name].double()).abs().max() / scale).item() < 1e-10, name


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_report_the_loss_of_the_global_batch(method, one_process, two_processes):
    losses = [
        [line["loss"] for line in read_metrics(output / method / "metrics.jsonl") if "loss" in line]
        for output in (one_process, two_processes)
    ]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # logged in float32


@pytest.mark.parametrize("method", METHODS)
def test_knn_counts_every_image_once_on_any_number_of_processes(method, one_process, two_processes):
    knn = [
        [line["knn"] for line in read_metrics(output / method / "metrics.jsonl") if "knn" in line][0]
        for output in (one_process, two_processes)
    ]
    assert knn[0] == knn[1]  # before the first step the weights are the same


def test_two_processes_without_synchronized_batchnorm_equal_two_micro_batches(tmp_path):
    """Losses that are means over images do not depend on how a batch is split. BatchNorm does, alike in both."""
    micro = train(tmp_path / "micro", 1, "train.accumulation=2")
    split = train(tmp_path / "split", 2, "train.sync_batchnorm=false")
    for method in ("byol", "simsiam"):
        a, b = weights(micro, method), weights(split, method)
        for name in a:
            if "running_" not in name and "num_batches" not in name:
                scale = a[name].double().abs().max().clamp(min=1e-2)
                assert ((a[name].double() - b[name].double()).abs().max() / scale).item() < 1e-10, name
