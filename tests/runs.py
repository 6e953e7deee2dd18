# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Whole training runs in processes of their own, that can be killed, without each importing torch and the rest anew.

They are forked from a server that has imported everything once and has done nothing with it. Several processes get the
environment that `accelerate launch` makes of a configuration that ships; the launcher itself is run where it matters.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from hf_ssl.recipe import recipes_folder
from tests.distributed.cpu_fsdp import gpu_configuration_on_gloo


PRELOADED = [
    "accelerate.commands.launch",
    "hf_ssl.cli",
    "hf_ssl.training.pretrain",
    "pytest",
    "sklearn.datasets",
    "timm",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "transformers.modeling_utils",
]


def server() -> ForkServerContext:
    """Where processes are forked from, one server for all tests: what is preloaded is read at its start only."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Run:
    """The processes of a run, with as much of `subprocess.Popen` as tests need.

    When one fails the others are killed, as torch's launcher does.
    """

    def __init__(self, processes: list[BaseProcess]):
        self.processes = processes
        for process in processes:  # not daemons: those may not start the workers of a loader
            process.start()
        self.pids = [process.pid for process in processes]
        _started.append(self)

    def poll(self) -> int | None:
        codes = [process.exitcode for process in self.processes]
        failed = [code for code in codes if code]
        if failed and None in codes:
            kill(self)
        return failed[0] if failed else None if None in codes else 0

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("the run", timeout)
            self.processes[0].join(0.02)
            time.sleep(0.005)
        return self.poll()

    def send_signal(self, signum: int) -> None:
        for pid in self.pids:
            os.kill(pid, signum)


_started: list[Run] = []


@atexit.register  # before multiprocessing waits for them; what a failed test leaves behind must not hold up the end
def _kill_those_left() -> None:
    for run in _started:
        if run.poll() is None:
            kill(run)


def kill(run: Run | subprocess.Popen) -> None:
    """SIGKILL to all processes and their workers; those of a launcher are in sessions of their own."""
    found = []
    for pid in run.pids if isinstance(run, Run) else [run.pid]:
        try:
            started = psutil.Process(pid)
            found += [started, *started.children(recursive=True)]
        except psutil.NoSuchProcess:  # it has ended by itself
            continue
    for one in found:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    if isinstance(run, subprocess.Popen):
        run.wait(timeout=60)
        return
    for process in run.processes:
        process.join(60)


def start(
    main: Callable[..., object],
    *arguments: object,
    processes: int = 1,
    config: str = "ddp",
    options: Sequence[str] = (),
    cpu: bool = True,
    log: Path = Path(os.devnull),
) -> Run:
    """Call `main(*arguments)`, as a script's first and only call, in new processes.

    Args:
        main: importable by name.
        processes: more than one are on gloo, with the environment that `accelerate launch` gives them.
        config: name of the file in recipes/accelerate; one with FSDP is made to work without GPUs.
        options: of `accelerate launch`, after the file.
        cpu: `ACCELERATE_USE_CPU`, which makes Accelerate overlook GPUs, and FSDP too.
        log: stdout and stderr are appended to it.
    """
    env = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    if processes > 1:
        env |= launched_environment(config, processes, *options)
    env |= {"OMP_NUM_THREADS": "1"} | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
    ranks = [{"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)] if processes > 1 else [{}]
    sharded = env.get("ACCELERATE_USE_FSDP") == "true"
    every = [server().Process(target=_run, args=(main, arguments, env | rank, sharded, str(log))) for rank in ranks]
    return Run(every)


def launcher(config: str, processes: int, *options: str) -> list[str]:
    """The command line of `accelerate launch`, up to the script."""
    file = recipes_folder() / "accelerate" / f"{config}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    return [*command, "--num_processes", str(processes), "--num_machines", "1", "--main_process_port", "0", *options]


def launched_environment(config: str, processes: int, *options: str) -> dict[str, str]:
    """What the processes of `accelerate launch --config_file recipes/accelerate/CONFIG.yaml` find, but their ranks."""
    _, _, _, *command = launcher(config, processes, "--mixed_precision", "no", *options)
    args, *_ = _validate_launch_command(launch_command_parser().parse_args([*command, "script.py"]))
    env = prepare_multi_gpu_env(args)
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return env | world | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(args.main_process_port)}


def _run(main: Callable[..., object], arguments: tuple, env: dict[str, str], sharded: bool, log: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    torch.set_num_threads(1)
    if sys.platform == "linux":  # a loader's workers are forked, as of a command; not from a server of their own
        multiprocessing.set_start_method("fork", force=True)
    if sharded:
        gpu_configuration_on_gloo()
    main(*arguments)
    if "WORLD_SIZE" not in env and not AcceleratorState._shared_state:
        return  # a command that trains nothing
    # With a wrong environment each process would be a run of its own, or not sharded, and might end as well.
    state = AcceleratorState()
    assert state.num_processes == int(env.get("WORLD_SIZE", "1"))
    assert (state.distributed_type == DistributedType.FSDP) == sharded
