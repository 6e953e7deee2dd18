# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Explain why a name is neither a local folder nor on the Hub, and suggest a similar folder."""

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
    """Whether an exception or its cause means that a name was not found or the Hub could not be reached."""
    return _caused_by(error, _ABSENT)


def absent(name: str, error: BaseException, what: str) -> str:
    """End of an error sentence; `what` is the kind of Hub repository, "dataset" or "model"."""
    if _caused_by(error, (HFValidationError,)):
        hub = f"it is not a valid name of a Hub {what}"
    elif HF_HUB_OFFLINE:
        hub = f"with HF_HUB_OFFLINE=1, no cached Hub {what} was found"
    elif _caused_by(error, (RepositoryNotFoundError, DatasetNotFoundError)):
        hub = f"the Hub has no such {what}, or you cannot access it (log in with `hf auth login`)"
    else:
        hub = f"the Hub {what} is not cached and the Hub could not be reached"
    folder, last = os.path.split(name.rstrip("/"))
    close: list[str] = []
    with suppress(OSError):
        close = get_close_matches(last, [entry.name for entry in os.scandir(folder or ".")], n=1)
    return f"no such folder, and {hub}" + (f"; did you mean {os.path.join(folder, close[0])}?" if close else ".")


def _caused_by(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    known: set[int] = set()
    while error is not None and id(error) not in known:
        if isinstance(error, kinds):
            return True
        known.add(id(error))
        error = error.__cause__ or error.__context__
    return False
