# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""SEER end to end: a stream, sharded with the shipped fsdp2.yaml, killed, resumed elsewhere, and exported."""

import shutil
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.data.test_streams import write_parquet
from tests.runs import Run, kill, start
from tests.training import stream_run
from tests.training.test_resume import progress
from tests.training.test_stream_resume import ends_well, log_of


STEPS = 18


def command(data: Path, output: Path) -> list[str]:
    """Script arguments for `hf-ssl pretrain seer/wild_small`, reduced to test size."""
    logs = output.with_suffix(".logs")
    logs.mkdir(exist_ok=True)
    return [
        *(str(logs), "pretrain", "seer/wild_small", f"data.path={data}"),
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


def started(data: Path, output: Path, processes: int) -> Run:
    """Run on gloo processes; a single process runs without FSDP."""
    how = {"config": "fsdp2", "cpu": processes == 1, "log": output.with_suffix(".stderr")}
    return start(stream_run.run, *command(data, output), processes=processes, **how)


def copy_of(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    shutil.copytree(run.with_suffix(".logs"), to.with_suffix(".logs"))
    return to


LOAD = """
import sys, torch
sys.modules["hf_ssl"] = None
from transformers import AutoModel
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder).eval()
    torch.manual_seed(0)
    print(model(torch.randn(2, 3, 32, 32)).pooler_output.double().sum().item())
"""


@pytest.mark.slow
def test_a_streamed_sharded_run_is_killed_and_continued_on_one_and_on_four_processes_and_shared(elsewhere, tmp_path):
    data = write_parquet(tmp_path / "data")  # 96 images: six steps per epoch
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ends_well(started(data, whole, 1), whole)

    process = started(data, broken, 2)
    deadline = time.monotonic() + 200
    while process.poll() is None and progress(broken) < 8:
        assert time.monotonic() < deadline, broken.with_suffix(".stderr").read_text()[-3000:]
        time.sleep(0.01)
    kill(process)
    assert not any(psutil.pid_exists(pid) for pid in process.pids)
    kept = sorted(path.name for path in (broken / "checkpoints").glob("step_*"))
    assert kept[-1] in ("step_00000006", "step_00000012")

    expected = load_file(whole / "model/pretraining/model.safetensors")
    continued = {processes: copy_of(broken, tmp_path / f"on{processes}") for processes in (1, 4)}
    for processes, run in continued.items():
        ends_well(started(data, run, processes), run)
        ours = load_file(run / "model/pretraining/model.safetensors")
        assert ours.keys() == expected.keys()
        for name, tensor in expected.items():
            scale = tensor.double().abs().max().clamp(min=1e-2)
            assert ((ours[name].double() - tensor.double()).abs().max() / scale).item() < 2e-2, name
        logs = [log_of(run, rank) for rank in range(processes)]
        seen = {step: [i for log in logs for i in log[step]] for step in range(12, STEPS)}
        assert seen == {step: log_of(whole, 0)[step] for step in range(12, STEPS)}, "the batches of the whole run"
    done = elsewhere.run("-c", LOAD, *(str(run / "model") for run in (whole, *continued.values())))
    assert done.returncode == 0, done.stderr[-3000:]
    sum_of_whole, *sums = map(float, done.stdout.split())
    assert len(sums) == 2 and sums == pytest.approx([sum_of_whole] * 2, rel=2e-2)
