# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Files that somebody else may have made, held against their size before they take memory."""

import zipfile
from pathlib import Path
from typing import IO


def refuse_compressed(file: IO[bytes] | Path, size: int) -> None:
    """Raise ValueError for a zip archive of torch, `size` bytes, that unpacks to more: torch never compresses."""
    if sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > size:
        raise ValueError("it unpacks to more than it holds, as no file of torch does")
