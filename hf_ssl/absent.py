# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A name that is no folder here: why it is nothing on the Hub either, and which folder may have been meant."""

import os
from contextlib import suppress
from difflib import get_close_matches

from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError


_ABSENT = (
    *(RepositoryNotFoundError, DatasetNotFoundError, HFValidationError),
    *(HTTPError, LocalEntryNotFoundError, ConnectionError),
)


def is_absent(error: BaseException) -> bool:
    """Whether an exception, or what caused it, is that a name was not found or that the Hub could not be asked."""
    return _caused_by(error, _ABSENT)


def absent(name: str, error: BaseException, what: str) -> str:
    """A sentence's end: "there is no folder photoz here, and .."; `what` the Hub would have, "dataset" or "model"."""
    if _caused_by(error, (HFValidationError,)):
        hub = f"it is no name that a Hub {what} can have"
    elif HF_HUB_OFFLINE:
        hub = f"as a Hub {what} it is not in the cache, where HF_HUB_OFFLINE=1 looks alone"
    elif _caused_by(error, (RepositoryNotFoundError, DatasetNotFoundError)):
        hub = f"the Hub has no {what} of that name that you may read (for private ones: `hf auth login`)"
    else:
        hub = f"as a Hub {what} it is not in the cache, and the Hub could not be reached"
    folder, last = os.path.split(name.rstrip("/"))
    close: list[str] = []
    with suppress(OSError):
        close = get_close_matches(last, [entry.name for entry in os.scandir(folder or ".")], n=1)
    return f"there is no folder of that name here, and {hub}" + (
        f"; did you mean {os.path.join(folder, close[0])}?" if close else "."
    )


def _caused_by(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    known: set[int] = set()
    while error is not None and id(error) not in known:
        if isinstance(error, kinds):
            return True
        known.add(id(error))
        error = error.__cause__ or error.__context__
    return False
