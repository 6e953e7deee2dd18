# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""SEER's path as a whole: a stream, sharded by the fsdp2.yaml that ships, killed, continued elsewhere, and shared."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from hf_ssl.recipe import recipes_folder
from tests.data.test_streams import write_parquet
from tests.training.test_resume import progress
from tests.training.test_stream_resume import ends_well, kill, log_of


ROOT = Path(__file__).parents[2]
SHIM = Path(__file__).with_name("cpu_fsdp.py")
SCRIPT = ROOT / "tests" / "training" / "stream_run.py"
STEPS = 24


def start(data: Path, output: Path, processes: int) -> subprocess.Popen:
    """`hf-ssl pretrain seer/wild_small` on gloo processes, cut to tests' size; one process runs without FSDP."""
    logs = output.with_suffix(".logs")
    logs.mkdir(exist_ok=True)
    env = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable]
    if processes == 1:
        env["ACCELERATE_USE_CPU"] = "true"
    else:
        config = recipes_folder() / "accelerate" / "fsdp2.yaml"
        launch += ["-m", "accelerate.commands.launch", "--config_file", str(config), "--mixed_precision", "no"]
        launch += ["--num_processes", str(processes), "--main_process_port", "0", str(SHIM)]
    command = [
        *(*launch, str(SCRIPT), str(logs), "pretrain", "seer/wild_small", f"data.path={data}"),
        *(f"train.output_dir={output}", f"train.steps={STEPS}", "train.batch_size=16", "data.num_workers=0"),
        *("train.checkpoint_every=1", "train.log_every=1", "monitor.every=0", "data.shuffle_block=5"),
        *("model.backbone_args={depth: 6, w0: 16, wa: 16.0, wm: 2.0, group_size: 8}", "model.num_prototypes=20"),
        *("model.projector_dims=[64,64,32]", "model.image_size=32", "views.first.size=32", "views.second.size=32"),
        *(
            "views.local.size=16",
            "views.local.count=2",
            "optim.warmup_steps=2",
            "optim.lr=0.04",
            "model.freeze_prototypes_steps=3",
        ),
        "train.gradient_checkpointing=true",
    ]
    error = output.with_suffix(".stderr").open("a")
    return subprocess.Popen(command, env=env, stdout=error, stderr=error)


def copy_of(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    shutil.copytree(run.with_suffix(".logs"), to.with_suffix(".logs"))
    return to


LOAD = """
import sys, torch
sys.modules["hf_ssl"] = None
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1]).eval()
torch.manual_seed(0)
print(model(torch.randn(2, 3, 32, 32)).pooler_output.double().sum().item())
"""


def loaded_sum(run: Path) -> float:
    """Of the exported encoder's features, in a process that cannot import hf_ssl."""
    command = [sys.executable, "-c", LOAD, str(run / "model")]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_a_streamed_sharded_run_is_killed_and_continued_on_one_and_on_four_processes_and_shared(tmp_path):
    data = write_parquet(tmp_path / "data")  # 96 images: six steps an epoch
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ends_well(start(data, whole, 1), whole)

    process = start(data, broken, 2)
    deadline = time.monotonic() + 200
    while process.poll() is None and progress(broken) < 14:
        assert time.monotonic() < deadline, broken.with_suffix(".stderr").read_text()[-3000:]
        time.sleep(0.01)
    kill(process)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(broken) in (p.info["cmdline"] or [])]
    kept = sorted(path.name for path in (broken / "checkpoints").glob("step_*"))
    assert kept[-1] in ("step_00000012", "step_00000018")

    expected = load_file(whole / "model/pretraining/model.safetensors")
    sum_of_whole = loaded_sum(whole)
    for processes in (1, 4):
        run = copy_of(broken, tmp_path / f"on{processes}")
        ends_well(start(data, run, processes), run)
        ours = load_file(run / "model/pretraining/model.safetensors")
        assert ours.keys() == expected.keys()
        for name, tensor in expected.items():
            scale = tensor.double().abs().max().clamp(min=1e-2)
            assert ((ours[name].double() - tensor.double()).abs().max() / scale).item() < 2e-2, name
        logs = [log_of(run, rank) for rank in range(processes)]
        seen = {step: [i for log in logs for i in log[step]] for step in range(18, STEPS)}
        assert seen == {step: log_of(whole, 0)[step] for step in range(18, STEPS)}, "the batches of the whole run"
        assert loaded_sum(run) == pytest.approx(sum_of_whole, rel=2e-2)
