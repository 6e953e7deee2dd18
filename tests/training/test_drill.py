# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Fault injection: signals at random moments, small disks, flipped bytes, two runs at once. Nothing may be lost or
differ.

`pytest -m slow tests/training/test_drill.py --drill 5` does five times as much; `-s` prints what was tried.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_ssl.checkpoint_folder import CheckpointFolder
from tests.conftest import write_shards
from tests.runs import Run, kill, start
from tests.training.test_interruption import untimed
from tests.training.test_resume import assert_same_weights, command, main, progress


pytestmark = pytest.mark.slow

SETTINGS = list(itertools.product((1, 2), (0, 2), (False, True)))  # processes, workers, streamed
STEPS = 24  # three epochs: prototypes get unfrozen, the queue is used, the monitor measures twice
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def chance(request) -> random.Random:
    seed = time.time_ns()
    print(f"\nseed {seed}")  # noqa: T201
    return random.Random(seed)


def arguments(data: Path, output: Path, workers: int, streamed: bool) -> list[str]:
    more = [f"data.num_workers={workers}", "train.checkpoint_every=0.5", "train.keep=3", f"train.steps={STEPS}"]
    if streamed:
        more += ["data.streaming=true", "data.partitions=4", "data.shuffle_block=8", "monitor.every=100"]
    return command("swav", data, output, *more)


def script(args: list[str]) -> None:
    """The console script: unlike a call of `main` with arguments, it answers Ctrl-C itself."""
    sys.argv = ["hf-ssl", *args]
    main()


def begun(args: list[str], processes: int, log: Path) -> Run:
    if processes == 1:
        return start(script, args, cpu=False, log=log)
    return start(script, args, processes=processes, config="ddp", log=log)


def interrupted(run: Run, output: Path, step: int, delay: float, signum: int) -> int:
    """The exit code after a signal at that step or later."""
    end = time.monotonic() + 200
    while run.poll() is None and progress(output) < step:
        assert time.monotonic() < end, "the run made no progress"
        time.sleep(0.005)
    time.sleep(delay)
    for pid in run.pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue
    return run.wait(timeout=120)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s[0]} processes, {s[1]} workers, {'streamed' * s[2]}")
def test_signals_at_random_moments_change_nothing(shards, tmp_path, chance, setting, pytestconfig):
    processes, workers, streamed = setting
    whole = tmp_path / "whole"
    log = tmp_path / "whole.log"
    assert begun(arguments(shards, whole, workers, streamed), processes, log).wait(300) == 0, log.read_text()[-2000:]
    sent = dict.fromkeys(SIGNALS, 0)
    for round in range(pytestconfig.getoption("drill")):
        broken, log = tmp_path / f"broken{round}", tmp_path / f"broken{round}.log"
        for signum in chance.sample(SIGNALS, 3):
            run = begun(arguments(shards, broken, workers, streamed), processes, log)
            last = progress(broken)
            code = interrupted(run, broken, last + chance.randrange(1, 8), chance.random() * 0.3, signum)
            if code == 0:
                break
            sent[signum] += 1
            # 128 + signum from the loop; a signal during the export that follows it ends the process at once.
            assert code in (128 + signum, -signum, -signal.SIGKILL), log.read_text()[-2000:]
        run = begun(arguments(shards, broken, workers, streamed), processes, log)
        assert run.wait(300) == 0, log.read_text()[-2000:]
        said = log.read_text()
        assert "Traceback" not in said or (processes > 1 and sent[signal.SIGKILL]), said[-3000:]
        assert_same_weights(*(run / f"checkpoints/step_{STEPS:08d}/model.safetensors" for run in (whole, broken)))
        assert untimed(whole) == untimed(broken)
    print(f"{setting}: signals {sent}, {sum(sent.values())} survived")  # noqa: T201


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="needs to mount file systems")
def test_disks_of_many_sizes_cost_no_more_than_what_did_not_fit(digits, tmp_path, chance, pytestconfig):
    disk, codes = tmp_path / "disk", {0: 0, 1: 0, 2: 0}
    disk.mkdir()
    sizes = [f"size={chance.randrange(20, 16000)}k" for _ in range(6 * pytestconfig.getoption("drill"))]
    sizes += [f"nr_inodes={chance.randrange(2, 60)}" for _ in range(4 * pytestconfig.getoption("drill"))]
    for i, size in enumerate(sizes):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], capture_output=True).returncode:
            pytest.skip("may not mount")
        try:
            output, log = disk / "run", tmp_path / f"{i}.log"
            args = command("simsiam", digits, output, "train.steps=12", "train.keep=2", "train.keep_every=0.5")
            recipe = tmp_path / "simsiam.yaml"
            recipe.write_text("method: simsiam\n")
            args[1] = str(recipe)
            code = start(main, args, cpu=False, log=log).wait(timeout=200)
            said = log.read_text()
            assert "Traceback" not in said and code in codes, f"{size}: {code}\n{said[-3000:]}"
            codes[code] += 1
            assert code or (output / "model/results.json").exists()
            assert not list(output.glob(".partial_model*"))
            for folder in (output / "checkpoints").glob("step_*"):
                assert CheckpointFolder(folder).verify()[2] is None
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    print(f"{len(sizes)} file systems; exit codes {codes}")  # noqa: T201


def test_a_flipped_byte_in_any_file_of_a_checkpoint_is_noticed(digits, tmp_path, chance, pytestconfig):
    good, log, tried = tmp_path / "good", tmp_path / "log", 0
    args = command("simsiam", digits, good, "train.steps=12", "train.checkpoint_every=0.5", "monitor.every=0")
    assert start(main, args, cpu=False, log=log).wait(timeout=200) == 0
    expected = good / "checkpoints/step_00000012/model.safetensors"
    files = sorted(path.name for path in expected.parent.iterdir())
    for _ in range(pytestconfig.getoption("drill")):
        for name in files:
            output, log = tmp_path / "run", tmp_path / f"{tried}.log"
            shutil.copytree(good, output)
            file = output / "checkpoints/step_00000012" / name
            content = bytearray(file.read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(content)
            again = [arg.replace(str(good), str(output)) for arg in args]
            code = start(main, again, cpu=False, log=log).wait(timeout=200)
            said = log.read_text()
            assert code == 0 and "Traceback" not in said, said[-2000:]
            assert "damaged_step_00000012" in said and name in said
            assert_same_weights(expected, output / "checkpoints/step_00000012/model.safetensors")
            shutil.rmtree(output)
            tried += 1
    print(f"{tried} flipped bytes in {files}, all noticed, all runs ended alike")  # noqa: T201


def test_of_two_starts_at_once_one_runs(digits, tmp_path, pytestconfig):
    for i in range(2 * pytestconfig.getoption("drill")):
        output, logs = tmp_path / f"run{i}", [tmp_path / f"{i}{name}.log" for name in "ab"]
        args = command("simsiam", digits, output, "train.steps=4000", "monitor.every=0")
        runs = [start(main, args, cpu=False, log=log) for log in logs]
        end = time.monotonic() + 120
        while all(run.poll() is None for run in runs):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert sorted(run.poll() is None for run in runs) == [False, True]
        [refused] = [i for i, run in enumerate(runs) if run.poll() is not None]
        assert runs[refused].poll() == 2 and "is training in" in logs[refused].read_text()
        kill(runs[1 - refused])
        assert json.loads((output / ".lock.json").read_text())["process"] in runs[1 - refused].pids
