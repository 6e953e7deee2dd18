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
    """Disable the progress bars of transformers and datasets, for short operations on local files."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as bars

    shown, others_shown = bars.is_progress_bar_enabled(), not are_progress_bars_disabled()
    bars.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
        if others_shown:
            enable_progress_bars()


@contextmanager
def without_load_report() -> Iterator[None]:
    """Disable transformers' table of missing and unexpected weights, where they are expected or checked."""
    logger = logging.getLogger("transformers.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(other)  # a level on this logger would make transformers print more
    try:
        yield
    finally:
        logger.removeFilter(other)
