# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Python as somebody starts it who has a given environment, without importing torch and transformers each time.

Commands are run in forks of an interpreter that was started with that environment and has imported what most of them
import, but never hf_ssl, and has done nothing with it.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


SERVER = """
import json, os, runpy, sys
import timm, torch, torchvision.transforms.v2
import transformers.models.timm_wrapper.modeling_timm_wrapper
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, AutoVideoProcessor, pipeline
torch.set_num_threads(1)
assert "hf_ssl" not in sys.modules
for line in sys.stdin:
    command, folder, *files = json.loads(line)
    pid = os.fork()
    if not pid:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
for stream, file in enumerate((os.devnull, *files)):
    os.dup2(os.open(file, os.O_RDWR), stream)
os.chdir(folder)
what, code, *_ = command
sys.argv = command[1:]
if what == "-m":
    runpy.run_module(code, run_name="__main__", alter_sys=True)
else:
    exec(code)
"""


class Interpreter:
    """What `python` is in `environment`."""

    def __init__(self, environment: dict[str, str]):
        environment = {**environment, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, text=True, **pipes)

    def run(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess:
        """`python -m MODULE ARGUMENT ...` or `python -c CODE ARGUMENT ...`, in the working folder."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("stdout", "stderr")]
            for file in files:
                file.touch()
            self.server.stdin.write(json.dumps([command, os.getcwd(), *map(str, files)]) + "\n")
            self.server.stdin.flush()
            if not select.select([self.server.stdout], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(command, timeout, *(file.read_text() for file in files))
            code = int(self.server.stdout.readline())
            return subprocess.CompletedProcess(command, code, *(file.read_text() for file in files))


@contextmanager
def interpreter(environment: dict[str, str]) -> Iterator[Interpreter]:
    started = Interpreter(environment)
    try:
        yield started
    finally:
        started.server.kill()  # it waits, or for a command that hangs
        started.server.communicate()


def without_hf_ssl(home: Path) -> dict[str, str]:
    """The environment of a process that finds no checkout and no model that another has loaded."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HOME": str(home)}
