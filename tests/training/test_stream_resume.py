# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A streamed run that is killed repeatedly and resumed with other workers sees the same examples."""

import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.data.test_streams import write_parquet
from tests.runs import Run, kill, start
from tests.training import stream_run
from tests.training.test_resume import assert_same_weights, progress


LENGTHS = (40, 52, 36, 64, 40, 56, 32, 64)  # 384 in total; 92, 100, 76 and 116 by partition
STEPS, BATCH, PARTITIONS = 48, 16, 4


def launch(data: Path, output: Path, processes: int, workers: int) -> Run:
    recipe = output.parent / "stream.yaml"
    recipe.write_text("method: swav\n")
    logs = output.with_suffix(".logs")
    logs.mkdir(exist_ok=True)
    command = [
        *(str(logs), "pretrain", str(recipe)),
        *(f"data.path={data}", f"train.output_dir={output}", "data.streaming=true", f"data.num_workers={workers}"),
        *(f"data.partitions={PARTITIONS}", "data.shuffle_block=10", f"train.batch_size={BATCH}"),
        *(f"train.steps={STEPS}", "train.checkpoint_every=0.25", "train.log_every=1", "optim.name=larc"),
        *("model.backbone=test_resnet", "model.projector_dims=[32,16]", "model.num_prototypes=20"),
        *("model.freeze_prototypes_steps=5", "views.all.size=16", "views.local.count=1"),
    ]
    return start(stream_run.run, *command, processes=processes, log=output.with_suffix(".stderr"))


def killed_at(data: Path, output: Path, processes: int, workers: int, step: int, delay: float) -> None:
    """Run, then kill all processes at once, `delay` seconds after `step` was logged."""
    process = launch(data, output, processes, workers)
    deadline = time.monotonic() + 120
    while process.poll() is None and progress(output) < step:
        assert time.monotonic() < deadline, output.with_suffix(".stderr").read_text()[-2000:]
        time.sleep(0.005)
    assert process.poll() is None, output.with_suffix(".stderr").read_text()[-2000:]
    time.sleep(delay)
    kill(process)


def finished(data: Path, output: Path, processes: int, workers: int) -> None:
    ends_well(launch(data, output, processes, workers), output)


def ends_well(process: Run | subprocess.Popen, output: Path, seconds: float = 200) -> None:
    """Wait for exit code 0. If the run hangs, kill all its processes and fail."""
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        code = "none: it hung"
    assert code == 0, output.with_suffix(".stderr").read_text()[-3000:]


def trained_on(output: Path, processes: int) -> list[list[int]]:
    """The examples of every step, over all processes; for a repeated step, those of the last time."""
    logs = [log_of(output, rank) for rank in range(processes)]
    return [[index for log in logs for index in log[step]] for step in range(STEPS)]


def log_of(output: Path, rank: int) -> dict[int, list[int]]:
    lines = (output.with_suffix(".logs") / f"{rank}.log").read_text().splitlines()
    return {int(line.split()[0]): [int(index) for index in line.split()[1:]] for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_continued_with_other_workers_it_equals_the_uninterrupted_run(processes, tmp_path):
    data = write_parquet(tmp_path / "data", LENGTHS)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finished(data, whole, processes, workers=0)
    chance = random.Random(f"{processes}{time.time()}")  # different moments in every run of the test
    for workers, step in ((0, 5), (1, 13), (2, 22), (4, 30)):
        killed_at(data, broken, processes, workers, step + chance.randrange(6), chance.random() * 0.3)
    finished(data, broken, processes, workers=2)

    assert trained_on(whole, processes) == trained_on(broken, processes)
    assert_same_weights(whole / "model/pretraining/model.safetensors", broken / "model/pretraining/model.safetensors")

    # 48 steps of 16 take 192 examples from each of the four partitions, each example equally often (+-1).
    counts = Counter(index for step in trained_on(broken, processes) for index in step)
    assert len(counts) == sum(LENGTHS)
    for partition in range(PARTITIONS):
        own = [n for index, n in counts.items() if (index >> 32) % PARTITIONS == partition]
        assert sum(own) == STEPS * BATCH // PARTITIONS and max(own) - min(own) <= 1
