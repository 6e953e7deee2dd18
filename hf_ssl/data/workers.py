# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Loader workers that ignore stop signals. If one dies, the result is a clear error, never a hang."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..errors import RunError


STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]  # stop signals
_REMEDY = "lower data.num_workers (0 loads in the training process)"


class WorkerError(RunError):
    """A loader worker was killed, or has no shared memory for its batches."""


def start_worker(_: int) -> None:
    """`worker_init_fn`: ignore stop signals sent to the process group; the main process handles them."""
    for signum in STOPS:
        signal.signal(signum, signal.SIG_IGN)


def share(batch: Any) -> Any:
    """Move a worker's tensors to shared memory now, so that a failure becomes an error of the batch.

    In the queue's feeder thread, a failure would only be printed and the main process would wait forever.
    """
    if torch.utils.data.get_worker_info() is not None:
        for tensor in _tensors(batch):
            tensor.share_memory_()
    return batch


def batches(loader: DataLoader) -> Iterator[Any]:
    """Iterate over a loader whose workers start with `start_worker` and end with `share`.

    Raises:
        WorkerError: one was killed, or the shared memory is full.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    answer_to_child = signal.getsignal(signal.SIGCHLD) if main_thread and hasattr(signal, "SIGCHLD") else None
    before = set(multiprocessing.active_children())
    iterator = iter(loader)
    workers = set(multiprocessing.active_children()) - before
    if answer_to_child is not None:
        # torch's SIGCHLD handler would raise anywhere, even in the middle of a step or a checkpoint. Waiting for the
        # next batch also detects a dead worker.
        signal.signal(signal.SIGCHLD, answer_to_child)
    try:
        yield from iterator
    except RuntimeError as error:
        said = str(error)
        if "DataLoader worker" in said and ("exited unexpectedly" in said or "killed by signal" in said):
            raise WorkerError(_ended(workers)) from None
        if "shared memory" in said or "No space left on device" in said:
            raise WorkerError(
                f"Shared memory (/dev/shm) is too small for the loader's batches; enlarge it (docker run "
                f"--shm-size) or {_REMEDY}."
            ) from None
        raise
    except (EOFError, OSError):  # the worker that holds the batch's shared memory is gone
        if _any_ended(workers):
            raise WorkerError(_ended(workers)) from None
        raise
    finally:
        del iterator  # shuts the workers down and waits for them
        for worker in workers:
            if worker.is_alive():  # stuck in a read, and ignoring SIGTERM
                worker.kill()


def _any_ended(workers: set) -> bool:
    """Whether a worker dies within five seconds: its sockets close before its exit code is known."""
    for _ in range(50):
        if any(worker.exitcode for worker in workers):
            return True
        time.sleep(0.1)
    return False


def _ended(workers: set) -> str:
    codes = sorted({worker.exitcode for worker in workers if worker.exitcode})
    if -signal.SIGKILL in codes:
        why = "was killed, usually because the machine ran out of memory"
    elif hasattr(signal, "SIGBUS") and -signal.SIGBUS in codes:
        why = "ran out of shared memory (/dev/shm; enlarge it with docker run --shm-size)"
    else:
        why = f"ended with {', '.join(map(str, codes)) or 'no exit code'}"
    return f"A loader worker {why}; {_REMEDY} or free some memory, and run the same command again."


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
