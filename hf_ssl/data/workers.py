# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Loader workers that outlive a stop signal, and whose end by anything else is one sentence and never a hang."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..errors import RunError


STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]  # asked to stop
_REMEDY = "lower data.num_workers (0 loads in the training process itself)"


class WorkerError(RunError):
    """A loader's worker was killed, or has no memory to hand its batches over."""


def start_worker(_: int) -> None:
    """`worker_init_fn`: a stop signal to the whole process group is the main process's to answer."""
    for signum in STOPS:
        signal.signal(signum, signal.SIG_IGN)


def share(batch: Any) -> Any:
    """Move a worker's tensors into shared memory here, where a refusal is an error of the batch.

    Left to the queue's thread, it is printed by the worker, and the main process waits for the batch for ever.
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
        # torch would raise a worker's end at any moment, in the middle of a step or of a checkpoint; waiting for a
        # batch notices it, too.
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
    except (EOFError, OSError):  # the memory of a batch is fetched from its worker, which is there no more
        if _any_ended(workers):
            raise WorkerError(_ended(workers)) from None
        raise
    finally:
        del iterator  # asks the workers to end, and waits for them
        for worker in workers:
            if worker.is_alive():  # stuck in a read, and deaf to SIGTERM
                worker.kill()


def _any_ended(workers: set) -> bool:
    """Whether a worker has died, or does so within seconds: its sockets close before it is gone."""
    for _ in range(50):
        if any(worker.exitcode for worker in workers):
            return True
        time.sleep(0.1)
    return False


def _ended(workers: set) -> str:
    codes = sorted({worker.exitcode for worker in workers if worker.exitcode})
    if -signal.SIGKILL in codes:
        why = "was killed, as a rule because the machine has no memory left"
    elif hasattr(signal, "SIGBUS") and -signal.SIGBUS in codes:
        why = "found no room in the shared memory (/dev/shm; docker run --shm-size enlarges it)"
    else:
        why = f"ended with {', '.join(map(str, codes)) or 'no word'}"
    return f"A loader's worker {why}; {_REMEDY} or free some memory, and run the same command again."


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
