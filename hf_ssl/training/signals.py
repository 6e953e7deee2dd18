# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""SIGTERM and SIGINT end a run at the next step, after a checkpoint; all processes agree on the step."""

import signal

import torch
import torch.distributed as dist


class Interrupted(Exception):
    """A run was asked to stop. `signum` is the signal, `saved` whether a checkpoint of `step` could be written."""

    def __init__(self, signum: int, step: int, saved: bool):
        self.signum, self.step, self.saved = signum, step, saved
        kept = "a checkpoint has been written" if saved else "no checkpoint could be written at this step"
        super().__init__(f"{signal.Signals(signum).name} at step {step}: {kept}; the same command continues the run.")


class StopSignals:
    """Context in which SIGTERM and SIGINT are remembered instead of acting; a second one acts at once."""

    def __init__(self):
        self.received: int | None = None
        self._previous: dict[int, object] = {}
        # Signals are exchanged on the CPU so that no process waits for its GPU.
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None

    def __enter__(self) -> "StopSignals":
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def agreed(self) -> int | None:
        """The signal that any process has received, the same answer everywhere; call it once a step."""
        if self._group is None:
            return self.received
        flag = torch.tensor(self.received or 0)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return flag.item() or None

    def _remember(self, signum: int, _frame) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
