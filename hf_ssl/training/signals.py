# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""On SIGTERM, SIGINT or SIGHUP, save a checkpoint and stop before the next step; all processes agree on the step."""

import signal
from typing import Any

import torch
import torch.distributed as dist

from ..data.workers import STOPS


class Interrupted(Exception):
    """A run was stopped by signal `signum`. `saved`: whether a checkpoint of `step` was written."""

    def __init__(self, signum: int, step: int, saved: bool):
        self.signum, self.step, self.saved = signum, step, saved
        kept = "a checkpoint was written" if saved else "no checkpoint could be written"
        super().__init__(f"{signal.Signals(signum).name} at step {step}: {kept}; the same command continues the run.")


class StopSignals:
    """Context in which SIGTERM, SIGINT and SIGHUP are only recorded.

    A second SIGINT has its usual effect. A second SIGTERM does not, because launchers, `timeout` and schedulers send
    it to both a process and its group.
    """

    def __init__(self):
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        # Communicate on the CPU to avoid synchronizing with the GPU.
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo") if several else None

    def __enter__(self) -> "StopSignals":
        for signum in STOPS:
            if signum not in (signal.SIGTERM, signal.SIGINT) and signal.getsignal(signum) == signal.SIG_IGN:
                continue  # nohup
            self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def agreed(self, *facts: bool) -> tuple[int | None, ...]:
        """The signal received by any process, and for each fact whether it is true on any; the same on all processes.

        Every process must call it at the same points.
        """
        own = [self.received or 0, *map(int, facts)]
        if self._group is not None:
            flags = torch.tensor(own)
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
            own = flags.tolist()
        return (own[0] or None, *own[1:])

    def _remember(self, signum: int, _frame) -> None:
        self.received = signum
        if signum == signal.SIGINT:
            signal.signal(signum, self._previous[signum])
