# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""recipes/cluster beside Slurm: a killed worker is started again by torchrun, and a job reaches the Hub's client."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from hf_ssl.recipe import recipes_folder


CLUSTER = recipes_folder() / "cluster"


def workers(launcher: subprocess.Popen) -> list[psutil.Process]:
    """Training processes, without those of their loaders."""
    return [one for one in psutil.Process(launcher.pid).children() if "hf_ssl" in " ".join(one.cmdline())]


@pytest.mark.slow
def test_torchrun_starts_a_killed_worker_again_and_the_run_ends_where_it_would_have(tmp_path, digits):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"method: simsiam\ndata: {{path: {digits}, num_workers: 0}}\nviews: {{all: {{size: 32}}}}\n"
        "model: {backbone: test_resnet, projector_dim: 64, predictor_hidden: 16}\n"
        "train: {epochs: 6, batch_size: 16}\nmonitor: {every: 0}\n"
    )
    environment = {**os.environ, "GPUS": "2", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    weights = []
    for folder in ("whole", "killed"):
        command = ["bash", str(CLUSTER / "torchrun.sh"), str(recipe), f"train.output_dir={tmp_path / folder}"]
        with open(tmp_path / f"{folder}.log", "w") as log:
            run = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                if folder == "killed":
                    end = time.monotonic() + 120
                    while not list((tmp_path / folder).glob("checkpoints/step_*")):
                        assert run.poll() is None and time.monotonic() < end, Path(log.name).read_text()
                        time.sleep(0.05)
                    workers(run)[-1].send_signal(signal.SIGKILL)
                assert run.wait(180) == 0, Path(log.name).read_text()
            finally:
                run.kill()
        weights.append(load_file(tmp_path / folder / "model" / "model.safetensors"))
    attempts = [(tmp_path / f"{folder}.log").read_text().count("2 processes train") for folder in ("whole", "killed")]
    assert attempts == [1, 2]
    assert weights[0].keys() == weights[1].keys()
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())


@pytest.fixture
def job(monkeypatch):
    """recipes/cluster/hf_jobs.py, and what the Hub's client would send."""
    from huggingface_hub import HfApi

    sent = {}

    class Session:
        def post(self, url, json, headers):
            sent.update(json, url=url, authorization=headers.get("authorization"))
            return Answer()

    class Answer:
        def json(self):
            owner = {"id": "1", "name": "user", "type": "user"}
            return {"id": "6af0", "createdAt": "2026-11-27T00:00:00Z", "status": {"stage": "RUNNING"}, "owner": owner}

    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.setattr(HfApi, "whoami", lambda self, token=None: {"name": "user"})
    monkeypatch.setattr("huggingface_hub.hf_api.get_session", Session)
    monkeypatch.setattr("huggingface_hub.hf_api.hf_raise_for_status", lambda response: None)
    monkeypatch.setattr(HfApi, "_upload_scripts_to_bucket", lambda self, **kwargs: [], raising=False)

    def submit(*arguments: str) -> dict:
        monkeypatch.setattr("sys.argv", ["hf_jobs.py", *arguments])
        runpy.run_path(str(CLUSTER / "hf_jobs.py"), run_name="__main__")
        return sent

    return submit


def test_a_job_gets_the_command_the_time_limit_and_the_token_as_a_secret(job, capsys):
    sent = job("--flavor", "l4x1", "--timeout", "2h", "my_images", "train.push_to_hub=user/name", "train.epochs=1")
    command = " ".join(sent["command"])
    assert "uv run --with hf_ssl" in command
    assert command.endswith("hf_jobs.py --inside my_images train.push_to_hub=user/name train.epochs=1")
    assert sent["flavor"] == "l4x1" and sent["timeoutSeconds"] == 7200
    assert list(sent["secrets"]) == ["HF_TOKEN"] and "HF_TOKEN" not in sent["environment"]
    assert os.environ["HF_TOKEN"] not in command + capsys.readouterr().out


def test_a_job_whose_model_would_be_lost_is_refused(job):
    with pytest.raises(SystemExit, match="train.push_to_hub"):
        job("my_images")


def test_inside_the_job_the_recipe_is_trained(monkeypatch):
    called = []
    monkeypatch.setattr(subprocess, "call", lambda command, env: called.extend(command) or 0)
    monkeypatch.setattr("sys.argv", ["hf_jobs.py", "--inside", "my_images", "train.epochs=1"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(CLUSTER / "hf_jobs.py"), run_name="__main__")
    assert called[1:] == ["-m", "hf_ssl", "pretrain", "my_images", "train.epochs=1"]


@pytest.mark.parametrize("name", ["skypilot", "kubernetes"])
def test_what_is_not_run_is_yaml_and_says_so(name):
    text = (CLUSTER / f"{name}.yaml").read_text()
    assert yaml.safe_load(text) and "Not run." in text
