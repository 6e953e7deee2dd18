# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Signals, dead workers, full disks and second starts leave a checkpoint and a clear message."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from hf_ssl.hub.card import Results
from tests.runs import Run, kill, launcher, start
from tests.training.test_resume import assert_same_weights, command, finished, main, progress


TIMES = ("images_per_second", "clips_per_second", "data_wait", "seconds", "peak_memory_gib")


_opened: list[Run | subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    while _opened:
        kill(_opened.pop())


def of_a_terminal(args: list[str]) -> None:
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests under nohup, and their child processes, ignore it
    main(args)


def opened(args: list[str], log: Path) -> Run:
    """Run the command in its own process group, whose id is the process id."""
    _opened.append(start(of_a_terminal, args, cpu=False, log=log))
    return _opened[-1]


def launched(args: list[str], log: Path, config: str, *options: str) -> subprocess.Popen:
    """Run with `accelerate launch` and a GPU config on a machine without GPUs: two processes on the CPU."""
    with log.open("ab") as out:
        command_line = [*launcher(config, 2, *options), "-m", "hf_ssl", *args]
        _opened.append(subprocess.Popen(command_line, stdout=out, stderr=out, start_new_session=True))
    return _opened[-1]


def wait_for_step(process: Run | subprocess.Popen, output: Path, step: int, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and progress(output) < step:
        assert time.monotonic() < end, "the run made no progress"
        time.sleep(0.01)


def untimed(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def test_the_end_of_the_terminal_leaves_a_checkpoint(digits, tmp_path):
    args = command("simsiam", digits, tmp_path / "run", "data.num_workers=2", "train.checkpoint_every=100")
    process = opened(args, tmp_path / "log")
    wait_for_step(process, tmp_path / "run", 5)
    os.killpg(process.pids[0], signal.SIGHUP)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert "SIGHUP at step" in (tmp_path / "log").read_text()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_sigterm_to_the_whole_group_leaves_a_checkpoint_and_exits_143(digits, tmp_path):
    """As `timeout`, systemd and `scancel` do; `timeout` and `scancel` send it twice."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ["data.num_workers=2", "train.checkpoint_every=100", "monitor.every=1", "train.log_every=2"]
    args = command("simsiam", digits, broken, *more)
    process = opened(args, tmp_path / "log")
    wait_for_step(process, broken, 5)
    os.killpg(process.pids[0], signal.SIGTERM)
    os.killpg(process.pids[0], signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM, (tmp_path / "log").read_text()[-3000:]
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said and "SIGTERM at step" in said
    [kept] = sorted((broken / "checkpoints").iterdir())
    assert 5 <= int(kept.name[5:]) < 40
    finished(args, broken)
    finished(command("simsiam", digits, whole, *more), whole)
    assert_same_weights(*(run / "checkpoints/step_00000040/model.safetensors" for run in (whole, broken)))
    assert untimed(whole) == untimed(broken)
    results = [Results(**json.loads((run / "model/results.json").read_text())) for run in (whole, broken)]
    pairs = zip(*([result.baseline, result.final] for result in results), strict=True)
    for values, others in pairs:
        assert {k: v for k, v in values.items() if k not in TIMES} == {
            k: v for k, v in others.items() if k not in TIMES
        }


@pytest.mark.slow
def test_sigterm_to_the_launcher_of_two_processes_leaves_a_checkpoint(digits, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    args = command("swav", digits, output, "data.num_workers=2", "train.checkpoint_every=100")
    process = launched(args, log, "ddp", "--mixed_precision", "no")
    wait_for_step(process, output, 5)
    process.terminate()
    assert process.wait(timeout=200) != 0
    [kept] = sorted((output / "checkpoints").iterdir())
    assert json.loads((kept / "state.json").read_text())["results"]["hardware"].startswith("2 CPU")
    assert {path.name for path in kept.iterdir()} >= {"rank_0.pt", "rank_1.pt"}
    assert "killed by signal" not in log.read_text()
    assert launched(args, log, "ddp", "--mixed_precision", "no").wait(timeout=300) == 0, log.read_text()[-3000:]
    assert (output / "model/model.safetensors").exists()


def test_a_second_ctrl_c_ends_at_once_without_a_traceback(digits, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    args = command("simsiam", digits, output, "train.steps=4000", "data.num_workers=1")
    with log.open("ab") as out:  # a real command line, to see how the interpreter exits
        process = subprocess.Popen([sys.executable, "-m", "hf_ssl", *args], stdout=out, stderr=out)
    _opened.append(process)
    wait_for_step(process, output, 3)
    # Either both arrive before the next batch is requested, or the second one while the checkpoint is written.
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) in (-signal.SIGINT, 128 + signal.SIGINT)
    assert "Traceback" not in log.read_text()
    for folder in (output / "checkpoints").glob("step_*"):
        assert (folder / "digests.json").exists()


def test_a_second_run_in_a_folder_is_refused_and_says_who_is_there(digits, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    args = command("simsiam", digits, output, "train.steps=4000", "data.num_workers=1")
    first = opened(args, log)
    wait_for_step(first, output, 1)
    second = start(main, args, cpu=False, log=tmp_path / "second.log")
    assert second.wait(timeout=120) == 2
    said = (tmp_path / "second.log").read_text()
    assert f"process {first.pids[0]} on" in said and "since 20" in said and "train.output_dir" in said
    assert "Traceback" not in said
    kill(first)
    again = opened(args, log)  # a stale lock does not block
    wait_for_step(again, output, progress(output) + 1)
    assert again.poll() is None
    kill(again)


def test_a_killed_worker_is_one_sentence_and_a_checkpoint(digits, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    more = ["train.steps=4000", "data.num_workers=2", "train.checkpoint_every=1000", "monitor.every=1000"]
    process = opened(command("simsiam", digits, output, *more), log)
    wait_for_step(process, output, 3)
    workers = psutil.Process(process.pids[0]).children(recursive=True)
    min(workers, key=lambda worker: worker.create_time()).kill()
    assert process.wait(timeout=90) == 1
    said = log.read_text()
    assert "Traceback" not in said and "memory" in said and "data.num_workers" in said
    assert len(list((output / "checkpoints").glob("step_*"))) == 1


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs to mount a file system")
def test_shared_memory_that_is_too_small_is_one_sentence(digits, tmp_path):
    args = command(
        "simsiam", digits, tmp_path / "run", "data.num_workers=2", "train.batch_size=128", "monitor.every=0"
    )
    line = f"mount -t tmpfs -o size=300k tmpfs /dev/shm && exec {sys.executable} -m hf_ssl {' '.join(args)}"
    run = subprocess.run(["unshare", "-m", "sh", "-c", line], capture_output=True, text=True, timeout=200)
    if "unshare" in run.stderr or "mount" in run.stderr.split("hf-ssl")[0]:
        pytest.skip("may not mount")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "/dev/shm" in run.stderr and "data.num_workers" in run.stderr


def test_a_finished_run_leaves_what_is_there(digits, tmp_path):
    output = tmp_path / "run"
    args = command("simsiam", digits, output, "train.steps=2")
    finished(args, output)
    (output / "model/encoder.onnx").write_text("made by hand")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file() and path.name[0] != "."}
    log = tmp_path / "again.log"
    assert start(main, args, cpu=False, log=log).wait(timeout=200) == 0
    assert "already finished" in log.read_text() and "Model: " in log.read_text()
    after = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file() and path.name[0] != "."}
    assert before == after
    longer = tmp_path / "longer.log"
    assert start(main, [*args, "train.steps=4"], cpu=False, log=longer).wait(timeout=200) == 2
    assert "train.init_from" in longer.read_text() and "train.steps" in longer.read_text()


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_other_data_than_a_run_was_begun_with_are_refused(tmp_path, streaming):
    from tests.conftest import digit_images

    photos, output = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for i, image in enumerate(digit_images(32)[0]):
        image.save(photos / f"{i:02}.png")
    more = ("train.steps=4", "train.checkpoint_every=1", f"data.streaming={streaming}", "data.partitions=2")
    args = command("simsiam", photos, output, *more)
    finished(args, output)
    shutil.rmtree(output / "model")
    shutil.rmtree(output / "checkpoints/step_00000004")
    moved, log = tmp_path / "moved", tmp_path / "log"
    shutil.copytree(photos, moved)

    def said(expected: int) -> str:
        log.unlink(missing_ok=True)
        assert start(main, [*args, f"data.path={moved}"], cpu=False, log=log).wait(timeout=200) == expected
        return log.read_text()

    (moved / "00.png").rename(moved / "99.png")
    assert "names of the files" in said(2)
    (moved / "99.png").rename(moved / "00.png")
    content = (moved / "01.png").read_bytes()
    (moved / "01.png").write_bytes(content + b"more")
    assert "sizes of the files" in said(2)
    (moved / "01.png").unlink()
    assert re.search(r"32 then, 31 now.*train\.init_from", said(2))
    (moved / "01.png").write_bytes(content)
    said(0)


def test_weights_that_diverge_in_the_last_step_are_neither_saved_nor_exported(digits, tmp_path):
    output = tmp_path / "run"
    bad = ["optim.name=sgd", "optim.lr=1e38", "train.log_every=1000", "monitor.every=1", "optim.warmup_epochs=0"]
    for more in (["train.steps=1"], ["train.steps=8", "train.checkpoint_every=0.125"]):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        shutil.rmtree(output, ignore_errors=True)
        assert start(main, command("simsiam", digits, output, *bad, *more), cpu=False, log=log).wait(timeout=200) == 1
        said = log.read_text()
        assert "Traceback" not in said and "optim.lr" in said and "NaN or infinite" in said
        assert not (output / "model").exists()
        for weights in (output / "checkpoints").glob("*/model.safetensors"):
            assert all(t.isfinite().all() for t in load_file(weights).values() if t.is_floating_point())


def test_a_lost_metrics_file_costs_the_card_nothing(digits, tmp_path):
    output = tmp_path / "run"
    args = command("simsiam", digits, output, "train.steps=8")
    finished(args, output)
    results = json.loads((output / "model/results.json").read_text())
    shutil.rmtree(output / "model")
    shutil.rmtree(output / "checkpoints/step_00000008")
    (output / "metrics.jsonl").unlink()
    finished(args, output)
    again = json.loads((output / "model/results.json").read_text())
    assert again["baseline"] == results["baseline"] and again["final"]["knn"] == results["final"]["knn"]


def test_what_is_kept_can_be_chosen(digits, tmp_path):
    output = tmp_path / "run"
    more = ["train.steps=12", "train.checkpoint_every=100", "train.keep_every=0.5", "train.checkpoint_minutes=0.0001"]
    finished(command("simsiam", digits, output, *more, "train.keep=1", "train.log_every=1"), output)
    kept = [int(path.name[5:]) for path in sorted((output / "checkpoints").iterdir())]
    assert kept == [4, 8, 12]  # every half epoch of eight steps
    milestones = sorted((output / "milestones").iterdir())
    assert [int(path.name[5:]) for path in milestones] == [4, 8]
    assert all((path / "config.json").exists() and (path / "README.md").exists() for path in milestones)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert all(line["grad_norm"] > 0 and line["peak_memory_gib"] > 0 for line in lines if "loss" in line)


@pytest.mark.slow
def test_a_launch_for_gpus_on_a_machine_without_any_is_one_run(digits, tmp_path):
    assert not torch.accelerator.is_available() or pytest.skip("there is an accelerator")
    output, log = tmp_path / "run", tmp_path / "log"
    args = command("simsiam", digits, output, "train.steps=3", "train.precision=no")
    assert launched(args, log, "fsdp2").wait(timeout=300) == 0, log.read_text()[-3000:]
    results = json.loads((output / "model/results.json").read_text())
    assert results["hardware"] == "2 CPU process(es)"
