# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Atomic checkpoints: written to a temporary folder, flushed to disk, renamed, and verified on load.

For the contents see `hf_ssl.checkpoint_folder`. Under FSDP, each process writes its shard with
torch.distributed.checkpoint. Names do not depend on the processes: any number can resume, also without FSDP.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint_folder import FORMAT, CheckpointFolder, RunState
from ..disk import DIGESTS, digests_of, files_below, first_line, flush, refused_write, write_digests
from ..hub.shards import SafeReader
from ..logs import get_logger
from ..recipe import RecipeError
from .finite import all_finite
from .fsdp import is_sharded


logger = get_logger(__name__)


@dataclass
class Found:
    """A checkpoint to resume from: its folder, its state, and whether its digests were verified."""

    folder: CheckpointFolder
    state: RunState
    verified: bool

    @property
    def path(self) -> Path:
        return self.folder.path


class Checkpoints:
    """The checkpoints of a run. Keeps the newest `keep`, and those at multiples of `keep_every` steps."""

    def __init__(self, folder: Path, keep: int, accelerator: Accelerator, keep_every: int = 0):
        self.folder, self.keep, self.keep_every, self.accelerator = folder, keep, keep_every, accelerator

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return CheckpointFolder.complete(self.folder)

    def is_milestone(self, step: int) -> bool:
        """Whether the checkpoint of this step is kept for good (`train.keep_every`)."""
        return bool(self.keep_every and step and step % self.keep_every == 0)

    def newest(self) -> Found | None:
        """The newest good checkpoint, or None if there is none; every process must call it.

        Damaged checkpoints are renamed, so that they are ignored from now on but not lost.

        Raises:
            RecipeError: only damaged ones are left, or it was written by a later version of hf_ssl.
        """
        if self.accelerator.is_main_process:
            for partial in self.folder.glob(".partial_*"):  # left by a process killed while writing or deleting
                shutil.rmtree(partial, ignore_errors=True)
        while path := self._last(CheckpointFolder.PATTERN):
            found, fault = self._verified(path)
            if found is not None:
                if found.state.format > FORMAT:
                    raise RecipeError(f"{path} was made by a later version of hf_ssl; update to continue the run.")
                return found
            self._set_aside(path, fault)
        if damaged := self._last("damaged_*"):
            raise RecipeError(
                f"All checkpoints of {self.folder.parent} are damaged, the last one is {damaged.name}. "
                "Restore a copy, or delete it to start over."
            )
        return None

    def load(self, found: Found, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Found, dict[str, Any]]:
        """Load a checkpoint in place; every process must call it.

        If its files have no digests and are unreadable, or its weights are not finite, it is renamed as damaged and
        the one before it is loaded.

        Returns:
            The checkpoint that was loaded, and this process's own state (`own` of `save`).

        Raises:
            RecipeError: it belongs to a different model or FSDP setting, or none is left.
        """
        while True:
            own, fault = self._try_to_load(found, model, optimizer)
            if fault is None:
                return found, own
            self._set_aside(found.path, fault)
            before = self.newest()
            if before is None:
                raise RecipeError(f"{found.path} {fault}, and there is no earlier checkpoint.")
            found = before

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: RunState,
        own: dict[str, Any] | None = None,
    ) -> bool:
        """Write the checkpoint of `step`; every process must call it.

        Args:
            own: per-process state: tensors and plain values.

        Returns:
            False if the write failed. The partial checkpoint is removed and older ones stay.
        """
        final = CheckpointFolder.of_step(self.folder, step).path
        if gather_object([final.exists()])[0]:  # as seen by the main process
            return True
        partial = self.folder / f".partial_{final.name}"
        steps = (self._make_folder, self._write_own, self._write_shards, self._write_digests, self._rename)
        for write in steps:  # all processes continue, or none does
            error = _refusal_of(write, partial, model, optimizer, state, own or {})
            errors = gather_object([error and first_line(error)])
            if any(errors):
                self._report_failure(next(filter(None, errors)), partial)
                return False
        if self.accelerator.is_main_process:
            self._prune()
        self.accelerator.wait_for_everyone()
        return True

    def _last(self, pattern: str) -> Path | None:
        found = sorted(self.folder.glob(pattern))
        return gather_object([found[-1] if found else None])[0]

    def _verified(self, path: Path) -> tuple[Found | None, str]:
        """The checkpoint, or what is wrong with it. Each process verifies a part of the digests."""
        folder = CheckpointFolder(path)
        state, verified, fault = folder.verify(self.accelerator.process_index, self._world)
        faults = [said for said in gather_object([fault]) if said]
        if state is None or faults:
            return None, faults[0]
        return Found(folder, state, verified), ""

    def _set_aside(self, path: Path, fault: str) -> None:
        if self.accelerator.is_main_process:
            aside = path.with_name(f"damaged_{path.name}")
            while aside.exists():
                aside = aside.with_name(f"{aside.name}_again")
            os.replace(path, aside)
            logger.error(f"The checkpoint {path} is damaged: {fault}. It was renamed to {aside.name}.")
        self.accelerator.wait_for_everyone()

    def _try_to_load(self, found: Found, model, optimizer) -> tuple[dict[str, Any], str | None]:
        own: dict[str, Any] = {}
        fault = mismatch = None
        try:
            content = self._read(found.folder, model)
        except RecipeError as error:
            mismatch = str(error)
        except Exception as error:  # safetensors and torch raise many types for truncated or foreign files
            fault = f"it cannot be read ({first_line(error)})"
        else:
            try:
                own = self._apply(found.folder, content, model, optimizer)
            except (Exception, CheckpointException) as error:
                said = " ".join(str(error).split())[:300]
                mismatch = f"{found.path} does not fit this run ({said}); set another train.output_dir."
            else:
                fault = None if all_finite(model) else "its weights are not finite"
        answers = gather_object([(fault, mismatch)])
        fault, mismatch = (next((a[i] for a in answers if a[i]), None) for i in (0, 1))
        if mismatch or (fault and found.verified and "finite" not in fault):  # verified files are not damaged
            raise RecipeError(
                mismatch or f"{found.path}: {fault}; the installed torch may be older than the one that wrote it."
            )
        return own, fault

    def _make_folder(self, partial: Path, *_) -> None:
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def _write_own(self, partial: Path, model, optimizer, state: RunState, own: dict[str, Any]) -> None:
        rank, folder = self.accelerator.process_index, CheckpointFolder(partial)
        own = {"cpu_rng": torch.get_rng_state(), **own}
        if self.accelerator.device.type != "cpu":
            own["device_rng"] = torch.get_device_module(self.accelerator.device).get_rng_state()
        if rank > 0:  # BatchNorm buffers differ between processes when they are not synchronized
            norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
            own["buffers"] = {f"{name}.{k}": b.cpu() for name, norm in norms for k, b in norm.named_buffers()}
        _save(own, folder.rank(rank))
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            saved = {"scaler": scaler.state_dict() if scaler else None}
            if not is_sharded(model):
                tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
                save_file(tensors, folder.weights)
                saved["optimizer"] = optimizer.state_dict()
            _save(saved, folder.optimizer)
            folder.state.write_text(state.to_json(), encoding="utf-8")
        for file in sorted(partial.iterdir()):
            flush(file)
        flush(partial)

    def _write_shards(self, partial: Path, model, optimizer, *_) -> None:
        if is_sharded(model):
            # Buffers are replicated, not sharded; save those of the main process, as without FSDP.
            planner = dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
            shards = CheckpointFolder(partial).shards
            dcp.save(_named_tensors(model, optimizer), checkpoint_id=shards, planner=planner)
            flush(shards)

    def _write_digests(self, partial: Path, *_) -> None:
        names = gather_object([files_below(partial)])[0]
        shares = gather_object([_digests_or_error(partial, names[self.accelerator.process_index :: self._world])])
        for share in shares:
            if isinstance(share, str):
                raise OSError(share)
        if self.accelerator.is_main_process:
            every = {name: value for share in shares for name, value in share.items()}
            write_digests(partial, every)
            flush(partial / DIGESTS)
            flush(partial)

    @property
    def _world(self) -> int:
        return self.accelerator.num_processes

    def _rename(self, partial: Path, *_) -> None:
        if self.accelerator.is_main_process:
            os.replace(partial, partial.with_name(partial.name.removeprefix(".partial_")))
            flush(self.folder)

    def _prune(self) -> None:
        for old in self.complete()[: -self.keep]:
            if not self.is_milestone(CheckpointFolder(old).step):
                gone = old.with_name(f".partial_{old.name}")  # a half-deleted folder must not look like a checkpoint
                try:
                    os.replace(old, gone)
                except OSError:
                    continue
                shutil.rmtree(gone, ignore_errors=True)

    def _read(self, folder: CheckpointFolder, model) -> dict[str, Any]:
        """Read the files without changing any state yet."""
        content: dict[str, Any] = {"saved": _load(folder.optimizer, ("scaler",)), "own": {}}
        if folder.shards.exists():
            content["metadata"] = SafeReader(folder.shards).read_metadata()
        elif is_sharded(model):
            raise RecipeError(
                f"{folder.path} was made without FSDP; continue it with accelerate/ddp (see `hf-ssl recipes`)."
            )
        else:
            content["model"] = load_file(folder.weights)
            if "optimizer" not in content["saved"]:
                raise ValueError("optimizer.pt has no optimizer state")
        own_file = folder.rank(self.accelerator.process_index)
        if own_file.exists():  # missing if the run resumes on more processes
            content["own"] = _load(own_file, ("cpu_rng",))
        return content

    def _apply(self, folder: CheckpointFolder, content: dict[str, Any], model, optimizer) -> dict[str, Any]:
        saved, own = content["saved"], content["own"]
        if "metadata" in content:
            _allocate_state(optimizer, model, content["metadata"].state_dict_metadata)
            dcp.load(_named_tensors(model, optimizer), storage_reader=SafeReader(folder.shards))  # in place
        else:
            model.load_state_dict(content["model"])
            optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        if own:
            torch.set_rng_state(own["cpu_rng"])
            device_rng = own.get("device_rng", own.get("cuda_rng"))  # renamed since format 1
            if device_rng is not None and self.accelerator.device.type != "cpu":
                torch.get_device_module(self.accelerator.device).set_rng_state(device_rng)
            model.load_state_dict(own.get("buffers", {}), strict=False)
        return own

    def _report_failure(self, error: str, partial: Path) -> None:
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        kept = self.complete()
        logger.error(
            f"The checkpoint could not be written to {self.folder} ({error}); free some space or make it writable. "
            f"The last good one is {kept[-1].name if kept else 'none yet'}; training continues."
        )
        self.accelerator.wait_for_everyone()


def _named_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """References to the tensors of a run, full or sharded, as `model.NAME` and `optimizer.NAME.KEY`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def _allocate_state(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]) -> None:
    """Allocate the optimizer state in a checkpoint; parameters that never had a gradient have none."""
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        for key, tensor in ((k.removeprefix(prefix), v) for k, v in saved.items() if k.startswith(prefix)):
            like = parameter.detach() if tensor.size == parameter.shape else torch.zeros(tensor.size)
            optimizer.state[parameter][key] = torch.zeros_like(like, dtype=tensor.properties.dtype)


def _save(content: dict[str, Any], path: Path) -> None:
    """`torch.save` through a Python file, which raises the operating system's error."""
    with path.open("wb") as file:
        torch.save(content, file)


def _load(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise ValueError(f"{path.name} has unexpected content")
    return content


def _digests_or_error(folder: Path, names: list[str]) -> dict[str, str] | str:
    try:
        return digests_of(folder, names)
    except OSError as error:
        return first_line(error)


def _refusal_of(write: Callable[..., None], *args) -> OSError | None:
    """Run `write` and return the OSError of a failed write, if any; safetensors and torch wrap it in other types."""
    try:
        write(*args)
    except (Exception, CheckpointException) as error:
        refusal = refused_write(error)
        if refusal is None:
            raise
        return refusal
    return None
