# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Information about the machine for bug reports.

Nothing here fails if a package is missing or broken.
"""

import os
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import __version__


PACKAGES = (
    *("torch", "torchvision", "timm", "transformers", "datasets", "accelerate", "huggingface_hub", "numpy", "pillow"),
    *("opencv-python-headless", "pyarrow", "av", "onnx", "onnxruntime", "trackio", "tensorboard", "wandb", "mteb"),
)
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "TRACKIO_SERVER_URL")
_SETTINGS = (
    *("HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE"),
    *("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"),
)
_QUOTAS = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")


def environment() -> dict[str, Any]:
    """Versions, devices, memory and disk of this machine, as plain data; None for unknown values."""
    return {
        "hf_ssl": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES} | (_told(_torch) or {}),
        "devices": _told(_devices),
        "precision": _told(_precision),
        "ffmpeg": _told(_ffmpeg),
        "cores": {"machine": os.cpu_count(), "affinity": _affinity(), "quota": _told(_quota)},
        "memory_gib": _told(_memory),
        "free_gib": {str(place): _free(place) for place in dict.fromkeys((Path.cwd(), _hf_home(), Path("/dev/shm")))},
        "tokens": {name: True for name in _TOKENS if os.environ.get(name)} | {"hf auth login": _told(_logged_in)},
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def _told(find: Callable[[], Any]) -> Any:
    with suppress(Exception):  # a missing or broken package, or a system without this feature
        return find()
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch() -> dict[str, str]:
    """torch's version with its build variant, which the package metadata lacks."""
    import torch

    return {"torch": str(torch.__version__)}


def _devices() -> list[str]:
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return ["CPU only"]
    found = [f"{device.type}:{i}" for i in range(torch.accelerator.device_count())]
    if device.type != "cuda":
        return found
    about = map(torch.cuda.get_device_properties, range(len(found)))
    return [f"{name} {one.name}, {one.total_memory / 2**30:.1f} GiB" for name, one in zip(found, about, strict=True)]


def _precision() -> str:
    from .devices import best_precision

    return best_precision() or "as the launcher says"


def _ffmpeg() -> str:
    import av

    return ", ".join(f"{name} {'.'.join(map(str, number))}" for name, number in av.library_versions.items())


def _affinity() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _quota() -> float | None:
    """CPU quota of the cgroup, in cores; None for no limit."""
    first, second = map(Path, _QUOTAS)
    if first.exists():
        quota, period = first.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    quota = second.read_text()
    return None if int(quota) < 0 else int(quota) / int(second.with_name("cpu.cfs_period_us").read_text())


def _memory() -> dict[str, float]:
    import psutil

    memory = psutil.virtual_memory()
    return {"total": round(memory.total / 2**30, 1), "available": round(memory.available / 2**30, 1)}


def _hf_home() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HOME", default)).expanduser()


def _free(place: Path) -> float | None:
    """Free space of the file system that has the path, or will have it."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return _told(lambda: round(shutil.disk_usage(place).free / 2**30, 1))


def _logged_in() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def text(found: dict[str, Any]) -> str:
    """Format the result of `environment`, to paste into a bug report."""
    missing = [name for name, number in found["packages"].items() if number is None]
    there = [f"{name} {number}" for name, number in found["packages"].items() if number is not None]
    cores, memory = found["cores"], found["memory_gib"] or {}
    quota = "no quota" if cores["quota"] is None else f"quota {cores['quota']:g}"
    tokens = [name for name, is_there in found["tokens"].items() if is_there]
    lines = {
        "hf_ssl": f"{found['hf_ssl']}, Python {found['python']}, {found['system']}",
        "packages": ", ".join(there),
        "not installed": ", ".join(missing) or "-",
        "devices": "; ".join(found["devices"] or ["unknown: torch cannot be imported"]),
        "auto precision": found["precision"] or "unknown",
        "PyAV's FFmpeg": found["ffmpeg"] or "not installed",
        "cores": f"{cores['machine']} in the machine, affinity {cores['affinity'] or 'unknown'}, {quota}",
        "memory": ", ".join(f"{size:g} GiB {name}" for name, size in memory.items()) or "unknown",
        "free": ", ".join(f"{size} GiB in {place}" for place, size in found["free_gib"].items()),
        "tokens": ", ".join(tokens) or "none",
        "settings": ", ".join(f"{name}={value}" for name, value in found["settings"].items()) or "-",
    }
    return "\n".join(f"{name + ':':16}{value}" for name, value in lines.items())
