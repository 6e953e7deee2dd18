# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Save results in the model's folder."""

import os
import sys
from pathlib import Path
from typing import Any

import xxhash

from ..devices import process_state
from ..disk import atomic_write
from ..errors import UserError
from ..files import read_json
from ..hub.card import hardware, versions
from ..recipe import DataConfig
from .results import to_json


def keep(result: dict[str, Any], model: str, data: DataConfig, name: str | None, output: Path | None) -> Path | None:
    """Write a result to `results/<protocol>_<dataset>.json` in the model's folder, or to `output`; None where there is
    neither. If that file belongs to another dataset with the same name, a digest of the path is appended.

    Raises:
        UserError: the file cannot be written.
    """
    inner = Path(model) / "model"
    folder = inner if inner.is_dir() else Path(model)
    if output is None and not (folder / "config.json").exists():
        return None
    protocol = result.get("protocol", "") + ("" if name is None else f"-{name}")
    protocol += "" if result.get("layer") is None else f"-layer{result['layer']}"
    path = str(data.path)
    dataset = "_".join(Path(path).with_suffix("").parts[-1:]) or "data"
    safe = "".join(c if c.isalnum() or c in "-_.%" else "_" for c in f"{protocol}_{dataset}")
    place = xxhash.xxh3_64_hexdigest((os.path.abspath(path) if os.path.exists(path) else path).encode())[:8]
    file = output if output is not None else folder / "results" / f"{safe}.json"
    if output is None and _is_of_other(file, place, path):
        file = file.with_name(f"{safe}-{place}.json")
    device = str(process_state().device)
    about: dict[str, Any] = {"model": model, "data": path, "place": place, "name": name}
    about |= {"command": " ".join(sys.argv[1:])}
    about |= {"hardware": hardware(process_state().num_processes, device), "versions": versions()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, to_json(result | about))
    except OSError as error:
        raise UserError(f"The result could not be written to {file} ({error}); choose another --output.") from error
    return file


def _is_of_other(file: Path, place: str, path: str) -> bool:
    """Whether an existing result is for another dataset; earlier versions saved only the path as given."""
    if not file.exists():
        return False
    try:
        before = read_json(file)
    except UserError:  # damaged
        return False
    return before.get("place", place) != place or ("place" not in before and before.get("data") != path)
