# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Limits of this process: cores, memory, shared memory and open files."""

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path

import psutil
import torch


CGROUPS = Path("/sys/fs/cgroup")  # Linux only
OWN_CGROUP = Path("/proc/self/cgroup")
SHARED_MEMORY = "/dev/shm"


def local_processes() -> int:
    """Number of training processes on this machine, according to the launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def usable_cores() -> float:
    """Cores available to all processes here: the CPU affinity, limited by the container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min([cores, *_quotas()])


def _quotas() -> list[float]:
    """CPU quotas, in cores, of this process's control groups (version 2, then 1)."""
    found = []
    for line in _read(OWN_CGROUP).splitlines():
        _, controllers, own = line.split(":", 2)
        root = CGROUPS if not controllers else CGROUPS / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        inside = root / own.lstrip("/")
        for folder in [inside, *inside.parents] if inside.is_relative_to(root) else [root]:
            if not folder.is_relative_to(root):
                break
            if controllers:
                pair = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            else:
                pair = _read(folder / "cpu.max").split()
            with suppress(ValueError, IndexError, ZeroDivisionError):  # "max", or no such file
                quota = int(pair[0]) / int(pair[1])
                found += [quota] if quota > 0 else []
    return found


def _read(file: Path) -> str:
    with suppress(OSError):
        return file.read_text()
    return ""


def free_memory(device: torch.device) -> float:
    """Bytes that this process can still allocate: free memory of a GPU, or its share of the machine's free memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [psutil.virtual_memory().available]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(ValueError):
            limits.append(int(_read(CGROUPS / limit)) - int(_read(CGROUPS / used)))
    return max(0, min(limits)) / local_processes()


def most_workers(batch_bytes: float) -> float:
    """Largest number of loader workers that shared memory and open files allow; each prefetches two batches."""
    limits = [math.inf]
    with suppress(OSError):
        limits.append(shutil.disk_usage(SHARED_MEMORY).free / local_processes() / 2 / (3 * batch_bytes))
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft != resource.RLIM_INFINITY:
            limits.append((soft - 256) / 64)  # per worker: its pipes and the tensors in transit
    return min(limits)
