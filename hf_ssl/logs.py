# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""What a terminal shows: log lines of one or several processes, and no progress bars for what takes a moment."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.logging import MultiProcessAdapter
from accelerate.state import PartialState


class _Logger(MultiProcessAdapter):
    """Accelerate's, which names the process where there are several."""

    def process(self, msg, kwargs):
        if PartialState().num_processes > 1:
            return super().process(msg, kwargs)
        kwargs.setdefault("stacklevel", 2)
        return msg, kwargs


def get_logger(name: str) -> MultiProcessAdapter:
    """A logger of the main process, which must have been started; `main_process_only=False` for all."""
    return _Logger(logging.getLogger(name), {})


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of transformers, for files that are here."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
