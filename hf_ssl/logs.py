# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Logging for one or several processes, without progress bars for short operations."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.logging import MultiProcessAdapter
from accelerate.state import PartialState


class _Logger(MultiProcessAdapter):
    """Accelerate's logger, with the process number if there are several."""

    def process(self, msg, kwargs):
        if PartialState().num_processes > 1:
            return super().process(msg, kwargs)
        kwargs.setdefault("stacklevel", 2)
        return msg, kwargs


def get_logger(name: str) -> MultiProcessAdapter:
    """A logger for the main process (the process state must be initialized); `main_process_only=False` logs on all."""
    return _Logger(logging.getLogger(name), {})


@contextmanager
def without_bars() -> Iterator[None]:
    """Disable transformers' progress bars, for local files."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
