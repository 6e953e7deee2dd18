# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Soak test, run by hand: kills a streamed run every few minutes, then counts the examples it has seen.

Usage: soak_stream.py DATA OUTPUT MINUTES [WORKERS]
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil


ROOT = Path(__file__).parents[2]
PARTITIONS, BATCH = 8, 64


def start(data: str, output: Path, workers: int) -> subprocess.Popen:
    recipe = output.parent / "soak.yaml"
    recipe.write_text("method: swav\n")
    logs = output.with_suffix(".logs")
    logs.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, str(ROOT / "tests/training/stream_run.py"), str(logs), "pretrain", str(recipe)),
        *(f"data.path={data}", f"train.output_dir={output}", "data.streaming=true", f"data.num_workers={workers}"),
        *(f"data.partitions={PARTITIONS}", "data.shuffle_block=100", f"train.batch_size={BATCH}"),
        *("train.steps=1000000", "train.checkpoint_every=1", "train.log_every=10", "optim.name=larc"),
        *("model.backbone=test_resnet", "model.projector_dims=[32,16]", "model.num_prototypes=20"),
        *("views.all.size=32", "views.local.size=16", "views.local.count=2", "monitor.every=0"),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    error = output.with_suffix(".stderr").open("a")
    return subprocess.Popen(command, env=env, stdout=error, stderr=error)


def processes_of(run: subprocess.Popen) -> list[psutil.Process]:
    main = psutil.Process(run.pid)
    return [main, *main.children(recursive=True)]


def megabytes(run: subprocess.Popen) -> float:
    """Proportional memory (PSS) of the run and its workers, or 0 if it has just ended."""
    try:
        return sum(p.memory_full_info().pss for p in processes_of(run)) / 2**20
    except psutil.Error:
        return 0.0


def main(data: str, output: str, minutes: str, workers: str = "2") -> None:
    folder, end = Path(output), time.monotonic() + 60 * float(minutes)
    kills, peaks = 0, []
    while True:
        run = start(data, folder, int(workers))
        stop = min(end, time.monotonic() + random.uniform(60, 300))
        peak = 0.0
        while time.monotonic() < stop and run.poll() is None:
            time.sleep(1)
            peak = max(peak, megabytes(run))
        peaks.append(round(peak))
        if run.poll() is not None:
            sys.exit(f"it ended by itself with {run.returncode}, see {folder.with_suffix('.stderr')}")
        if stop == end:
            run.send_signal(signal.SIGTERM)
            run.wait()
            break
        for process in processes_of(run):
            process.kill()
        run.wait()
        kills += 1
    last = sorted((folder / "checkpoints").glob("step_*"))[-1]
    steps = json.loads((last / "state.json").read_text())["step"]
    lines = (folder.with_suffix(".logs") / "0.log").read_text().splitlines()
    by_step = {int(line.split()[0]): [int(i) for i in line.split()[1:]] for line in lines}  # the last one wins
    counts = Counter(index for step in range(steps) for index in by_step[step])
    spread = []
    for partition in range(PARTITIONS):
        own = [n for index, n in counts.items() if (index >> 32) % PARTITIONS == partition]
        spread.append(max(own) - min(own))
    summary = {
        "minutes": float(minutes),
        "kills": kills,
        "steps": steps,
        "examples_trained_on": sum(counts.values()),
        "expected": steps * BATCH,
        "different_examples": len(counts),
        "largest_difference_of_counts_in_a_partition": max(spread),
        "steps_repeated_after_kills": len(lines) - len(by_step),
        "peak_megabytes_of_each_start": peaks,
    }
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
