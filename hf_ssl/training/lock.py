# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Lock an `output_dir`, so that two runs do not write to the same files.

The operating system's lock (`flock`) is released when its process ends, however it ends. On NFS it works across
machines if the server supports locks (Linux, NFS 4, or 3 with lockd). A mount with `nolock` or `local_lock` limits it
to one machine. On a file system without locks, nothing prevents a second run.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock, Timeout

from ..disk import atomic_write, first_line
from ..errors import UserError
from ..logs import get_logger


logger = get_logger(__name__)

_DYING = 20.0  # seconds to wait for the loader workers of a killed process, which inherited the lock


@contextmanager
def run_lock(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Create a run's folder and hold its lock on the main process. Every process must enter.

    Raises:
        UserError: on all processes, if another run holds the lock or the folder is not writable.
    """
    refusal, lock, made = None, FileLock(folder / ".lock"), not folder.exists()
    if accelerator.is_main_process:
        refusal = _acquire(folder, lock)
    refusal = next((said for said in gather_object([refusal]) if said), None)
    try:
        if refusal:
            raise UserError(refusal)
        yield
    finally:
        lock.release()
        if made and accelerator.is_main_process and _is_empty(folder):  # a rejected recipe leaves no folder
            shutil.rmtree(folder, ignore_errors=True)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and set(os.listdir(folder)) <= {".lock", ".lock.json"}


def _acquire(folder: Path, lock: FileLock) -> str | None:
    """Acquire the lock, or return why that failed."""
    holder = folder / ".lock.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            lock.acquire(timeout=0 if _is_alive(_read(holder)) else _DYING)
        own = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        atomic_write(holder, json.dumps(own))
    except Timeout:
        told = _read(holder)
        who = "process {process} on {host}, since {since},".format_map(told) if told else "another process"
        return f"{who} is training in train.output_dir={folder}; wait, stop it, or set another train.output_dir."
    except NotImplementedError:  # a file system without locks
        logger.warning(f"{folder} is on a file system without locks; make sure that no second run uses this folder.")
    except OSError as error:
        return (
            f"train.output_dir={folder} cannot be written ({first_line(error)}); free some space or set another one."
        )
    return None


def _read(holder: Path) -> dict | None:
    with suppress(OSError, ValueError):
        told = json.loads(holder.read_text(encoding="utf-8"))
        if isinstance(told, dict) and told.keys() >= {"host", "process", "since"}:
            return told
    return None


def _is_alive(told: dict | None) -> bool:
    """Whether the holder may be running; assumed for other machines, where it cannot be checked."""
    return told is None or told["host"] != socket.gethostname() or psutil.pid_exists(told["process"])
