# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or absent: written beside, flushed to the disk, then renamed.

One folder a checkpoint, `checkpoints/step_00001234/`: `model.safetensors` (weights and every buffer the method
remembers), `optimizer.pt`, `rank_N.pt` (random states, and that process's BatchNorm buffers), `state.json` (step,
recipe, counters). Nothing in it needs pickle to be trusted: tensors are read with `weights_only=True`.

Under FSDP, `shards/` stands for the first two: each process writes its part (torch.distributed.checkpoint), by names
that do not depend on the number of processes, so that any number continues, also without FSDP. Its `.metadata` is a
pickle, which `hub/shards.py` reads without executing it.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.nn.modules.batchnorm import _BatchNorm

from ..hub.shards import SafeReader
from ..recipe import RecipeError, changed_keys
from .fsdp import is_sharded


logger = get_logger(__name__)


class Checkpoints:
    """The checkpoints of one run, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int, accelerator: Accelerator):
        self.folder, self.keep, self.accelerator = folder, keep, accelerator

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step_" + "[0-9]" * 8))

    def state(self) -> dict[str, Any]:
        """What the newest checkpoint says beside its tensors; nothing without one."""
        found = self.complete()
        try:
            return json.loads((found[-1] / "state.json").read_text()) if found else {}
        except (OSError, json.JSONDecodeError):
            return {}  # `load_latest` says what is wrong

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> bool:
        """Write the checkpoint of `step`; every process must call it.

        Returns:
            False when the disk refused it: what was half-written is removed, the older checkpoints stay.
        """
        final = self.folder / f"step_{step:08d}"
        if final.exists():
            return True
        partial = self.folder / f".partial_{final.name}"
        for write in (self._make_folder, self._write_own, self._write_shards):  # all processes go on, or none
            error = _failure_of(write, partial, model, optimizer, {"step": step, **state})
            if any(gather_object([error is not None])):
                self._report_failure(error, partial)
                return False
        if self.accelerator.is_main_process:
            os.replace(partial, final)
            _flush(self.folder)
            for old in self.complete()[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return True

    def load_latest(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Continue from the newest complete checkpoint, in place.

        Returns:
            Its state, or None when there is none.

        Raises:
            RecipeError: it belongs to another recipe, or its files cannot be read.
        """
        if self.accelerator.is_main_process:
            for partial in self.folder.glob(".partial_*"):  # a process was killed while it wrote
                shutil.rmtree(partial, ignore_errors=True)
        found = self.complete()
        if not found:
            return None
        path = found[-1]
        try:
            state = json.loads((path / "state.json").read_text())
            changed = changed_keys(state["recipe"], recipe)
            if changed:
                raise RecipeError(
                    f"{path} was made by another recipe: {', '.join(changed)} differ(s); "
                    "restore these values or set another train.output_dir."
                )
            self._load_tensors(path, model, optimizer)
        except (OSError, KeyError, RuntimeError, json.JSONDecodeError, CheckpointException) as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RecipeError(
                f"The checkpoint {path} cannot be read ({first_line}); delete it to continue from an older one."
            ) from error
        return state

    def _make_folder(self, partial: Path, *_) -> None:
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def _write_own(self, partial: Path, model, optimizer, state) -> None:
        rank = self.accelerator.process_index
        own: dict[str, Any] = {"cpu_rng": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            own["cuda_rng"] = torch.cuda.get_rng_state(self.accelerator.device)
        if rank > 0:  # BatchNorm buffers differ between processes when they are not synchronised
            norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
            own["buffers"] = {f"{name}.{k}": b.cpu() for name, norm in norms for k, b in norm.named_buffers()}
        torch.save(own, partial / f"rank_{rank}.pt")
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            saved = {"scaler": scaler.state_dict() if scaler else None}
            if not is_sharded(model):
                tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
                save_file(tensors, partial / "model.safetensors")
                saved["optimizer"] = optimizer.state_dict()
            torch.save(saved, partial / "optimizer.pt")
            (partial / "state.json").write_text(json.dumps(state, indent=1))
        for file in sorted(partial.iterdir()):
            _flush(file)
        _flush(partial)

    def _write_shards(self, partial: Path, model, optimizer, _) -> None:
        if is_sharded(model):
            # Buffers, which are whole on every process, are the main one's, as without FSDP.
            planner = dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
            dcp.save(_named_tensors(model, optimizer), checkpoint_id=partial / "shards", planner=planner)
            _flush(partial / "shards")

    def _load_tensors(self, path: Path, model, optimizer) -> None:
        saved = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        if (path / "shards").exists():
            _allocate_state(optimizer, model, path / "shards")
            dcp.load(_named_tensors(model, optimizer), storage_reader=SafeReader(path / "shards"))  # in place
        elif is_sharded(model):
            raise RecipeError(f"{path} was made without FSDP; continue it with recipes/accelerate/ddp.yaml.")
        else:
            model.load_state_dict(load_file(path / "model.safetensors"))
            optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        own_file = path / f"rank_{self.accelerator.process_index}.pt"
        if own_file.exists():  # absent when the run continues on more processes
            own = torch.load(own_file, map_location="cpu", weights_only=True)
            torch.set_rng_state(own["cpu_rng"])
            if "cuda_rng" in own and self.accelerator.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda_rng"], self.accelerator.device)
            model.load_state_dict(own.get("buffers", {}), strict=False)

    def _report_failure(self, error: OSError | None, partial: Path) -> None:
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        kept = self.complete()
        logger.error(
            f"The checkpoint could not be written to {self.folder} ({error or 'another process failed'}); free some "
            f"space. The last good one is {kept[-1].name if kept else 'none yet'}; training goes on."
        )


def _named_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The tensors of a run themselves, whole or sharded: `model.NAME`, `optimizer.NAME.KEY`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def _allocate_state(optimizer: torch.optim.Optimizer, model: nn.Module, shards: Path) -> None:
    """Room for the state that a checkpoint has of each parameter; one that never had a gradient has none."""
    saved = SafeReader(shards).read_metadata().state_dict_metadata
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        for key, tensor in ((k.removeprefix(prefix), v) for k, v in saved.items() if k.startswith(prefix)):
            like = parameter.detach() if tensor.size == parameter.shape else torch.zeros(tensor.size)
            optimizer.state[parameter][key] = torch.zeros_like(like, dtype=tensor.properties.dtype)


def _failure_of(write: Callable[..., None], *args) -> Exception | None:
    """The disk's refusal, if any, as safetensors and torch wrap it into classes of their own."""
    try:
        write(*args)
    except OSError as error:
        return error
    except (Exception, CheckpointException) as error:
        if not _is_disk_failure(error):
            raise
        return OSError(str(error))
    return None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_disk_failure(error: BaseException) -> bool:
    text = str(error).lower()
    signs = ("no space left", "os error 28", "file write failed", "i/o error", "writing file")
    return any(sign in text for sign in signs)
