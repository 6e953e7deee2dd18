# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""recipes/cluster/seer.sbatch, with stand-ins for Slurm's commands that write down how they were called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hf_ssl.recipe import recipes_folder


SCRIPT = recipes_folder() / "cluster" / "seer.sbatch"

COMMANDS = {
    # Two machines, one after the other: each evaluates the command with its own number.
    "srun": """
shift
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done
echo $$ > "$LOGS/step"
trap 'exit 143' TERM
for i in $(seq 300); do [ -e "$LOGS/end" ] && exit "$(cat "$LOGS/end")"; sleep 0.1; done
""",
    "accelerate": 'echo "$@" >> "$LOGS/accelerate"',
    "scontrol": """
echo "$@" >> "$LOGS/scontrol"
[ "$1" = show ] && printf 'node7\\nnode8\\n'
exit 0
""",
    "scancel": 'echo "$@" >> "$LOGS/scancel"; kill -TERM "$(cat "$LOGS/step")"',
}


@pytest.fixture
def cluster(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "logs").mkdir()
    slurm = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "77", "SLURM_GPUS_ON_NODE": "4"}
    return {**os.environ, **slurm, "PATH": f"{folder}:{os.environ['PATH']}", "LOGS": str(tmp_path / "logs")}


def start(cluster: dict[str, str]) -> tuple[subprocess.Popen, Path]:
    logs = Path(cluster["LOGS"])
    job = subprocess.Popen(["bash", str(SCRIPT), "seer/wild_small", "data.path=my shards"], env=cluster)
    deadline = time.monotonic() + 20
    while not (logs / "step").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job, logs


@pytest.mark.parametrize("code", [0, 1, 2])
def test_every_machine_starts_one_launcher_and_its_end_is_the_jobs_end(cluster, code):
    job, logs = start(cluster)
    (logs / "end").write_text(str(code))
    assert job.wait(timeout=20) == code
    calls = (logs / "accelerate").read_text().splitlines()
    for rank, call in enumerate(calls):
        assert f"--num_machines 2 --machine_rank {rank} --num_processes 8 --main_process_ip node7" in call
        assert call.startswith("launch --config_file recipes/accelerate/fsdp2.yaml")
        assert call.endswith("-m hf_ssl pretrain seer/wild_small data.path=my shards")
    assert len(calls) == 2
    assert "requeue" not in (logs / "scontrol").read_text()


def test_a_preempted_job_stops_the_training_and_asks_for_its_turn_again(cluster):
    job, logs = start(cluster)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 0
    assert (logs / "scancel").read_text() == "--signal=TERM 77.0\n"
    assert "requeue 77" in (logs / "scontrol").read_text().splitlines()
