# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Feature cache on disk: embedded once, by one or more processes, and memory-mapped for evaluation.

Features are stored as Arrow files, one per encoder, dataset and precision. The key has digests of the weights, the
preprocessing and the data, so that outdated features are never used.
"""

import json
import logging
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from accelerate.state import PartialState
from accelerate.utils import gather, gather_object
from huggingface_hub.constants import HF_HOME

from ..data.fingerprint import fingerprint
from ..data.sources import Source
from ..devices import process_state
from ..disk import first_line, flush
from ..errors import UserError
from .encoders import Encoder
from .features import Batch, Features, embedded


logger = logging.getLogger(__name__)

CACHE = Path(os.environ.get("HF_SSL_CACHE") or Path(HF_HOME) / "hf_ssl") / "features"
_VERSION = 1  # of the file format
_ABANDONED = 24 * 60 * 60  # seconds without a change after which partial features are abandoned
_FULL_PRECISION = 2**30  # bytes; larger features are stored in float16


def features_of(
    encoder: Encoder,
    source: Source,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    precision: str = "no",
    cache: Path | None = CACHE,
) -> dict[str, Features]:
    """Vectors of all examples by name, from the cache if possible.

    All processes must call this. Each example is embedded once, by one of them.

    Args:
        precision: "bf16" or "fp16" for autocast, else "no".
        cache: folder of the cache; None disables it.

    Raises:
        UserError: the disk is full.
    """
    state = process_state()
    key = key_of(encoder, source, precision)
    folder = CACHE if cache is None else Path(cache)
    file = folder / f"{key}.arrow"
    there = gather_object([cache is not None and state.is_main_process and _is_whole(file)])[0]
    if not there:
        partial = (
            folder / f".partial_{key}_{socket.gethostname()}_{os.getpid()}"
        )  # other processes may write the same features
        partial = Path(gather_object([str(partial)])[0])
        batches = _embedded(encoder, source, precision, batch_size, num_workers, state)
        failed: list[str] = []
        try:
            writer = _Writer(partial, len(source)) if state.is_main_process else None
            for batch in batches:
                failed += batch.failed
                whole = _gathered(batch, batch_size, state)
                if writer is not None:
                    writer.add(whole)
            failed = sorted(gather_object(failed))
            if writer is not None:
                # Unreadable files may become readable without changing, by installing a package or mounting a disk.
                kept = cache is not None and len(failed) < len(source)
                writer.finish(file if kept else partial / "features.arrow", failed)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"The features could not be written to {folder} ({error}); free some space, or set HF_SSL_CACHE."
            ) from error
        state.wait_for_everyone()
        if not gather_object([file.exists()])[0] or cache is None:
            found = read(partial / "features.arrow")
            state.wait_for_everyone()
            if state.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)  # mapped files stay until they are released
            return found
        if state.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
    return read(file)


def _is_whole(file: Path) -> bool:
    """Whether cached features are readable; damaged ones are reported and recomputed."""
    try:
        if file.exists():
            read(file)
            return True
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        logger.warning(f"The features in {file} are damaged ({first_line(error)}) and will be recomputed.")
    return False


def read(file: Path) -> dict[str, Features]:
    """Read features, memory-mapped."""
    table = pa.ipc.open_file(pa.memory_map(str(file)))
    batch, about = table.get_batch(0), json.loads(table.schema.metadata[b"hf_ssl"])
    examples, labels = (
        torch.from_numpy(batch.column(name).to_numpy(zero_copy_only=True).copy()) for name in ("row", "label")
    )
    found = {}
    for name, (clips, scale) in about["vectors"].items():
        column = batch.column(f"vectors_{name}")
        values = column.values.to_numpy(zero_copy_only=True)[column.offset * column.type.list_size :]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # read-only use
            vectors = torch.from_numpy(values.reshape(len(labels), clips, column.type.list_size // clips))
        vectors = vectors[:, 0] if clips == 1 else vectors
        found[name] = Features(vectors, labels, about["failed"], scale, examples=examples)
    return found


def key_of(encoder: Encoder, source: Source, precision: str) -> str:
    """Cache key of an encoder and source; depends on weights, examples, labels and files."""
    about = [_VERSION, encoder.digest, precision, fingerprint(source, False), repr(source.decoding)]
    state = xxhash.xxh3_128(json.dumps(about, sort_keys=True).encode())
    state.update(np.ascontiguousarray(source.numbers).tobytes())
    if source.boxes is not None:
        state.update(repr(source.boxes).encode())
    _add_content(state, source)
    return state.hexdigest()


def _add_content(state: Any, source: Source) -> None:
    """Hash what distinguishes data of the same names and sizes: rows, modification times, or content."""
    dataset = source.dataset
    if dataset._indices is not None:  # a subset
        state.update(dataset._indices.column(0).to_numpy().tobytes())
    for file in (Path(one["filename"]) for one in dataset.cache_files):
        with suppress(OSError):
            state.update(f"{file} {file.stat().st_mtime_ns}".encode())
    for column in source.columns.values():
        for chunk in dataset.data.column(column).chunks:
            content, paths = (chunk.field(part) for part in ("bytes", "path"))
            if not dataset.cache_files:
                for buffer in filter(None, content.buffers()):
                    state.update(memoryview(buffer))
            for path in paths.to_pylist():
                with suppress(OSError, TypeError, ValueError):  # missing or remote
                    state.update(str(os.stat(path).st_mtime_ns).encode())


def _embedded(
    encoder: Encoder, source: Source, precision: str, batch_size: int, num_workers: int, state: PartialState
) -> Iterator[Batch]:
    device = state.device
    encoder.to(device)
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    with torch.autocast(device.type, types.get(precision, torch.bfloat16), enabled=precision in types):
        yield from embedded(
            encoder.embed,
            source,
            encoder.transform,
            device=device,
            batch_size=batch_size,
            num_workers=num_workers,
            rank=state.process_index,
            world_size=state.num_processes,
        )


def _gathered(batch: Batch, batch_size: int, state: PartialState) -> Batch:
    """Gather the batches of all processes."""
    if state.num_processes == 1:
        return batch
    size = max(gather_object([len(batch.rows)]))
    device = state.device

    def padded(tensor: torch.Tensor, value: int) -> torch.Tensor:
        more = tensor.new_full((size - len(tensor), *tensor.shape[1:]), value)
        return torch.cat([tensor, more]).to(device)

    rows, labels, vectors = gather(
        (padded(batch.rows, -1), padded(batch.labels, -1), {name: padded(v, 0) for name, v in batch.vectors.items()})
    )
    known = rows >= 0
    return Batch(rows[known], {name: v[known] for name, v in vectors.items()}, labels[known], [])


class _Writer:
    """Collect vectors in memory-mapped files and convert them to an Arrow file."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for other in folder.parent.glob(".partial_*"):
            with suppress(OSError):  # its own process may remove it at the same time
                if time.time() - max(file.stat().st_mtime for file in (other, *other.iterdir())) > _ABANDONED:
                    shutil.rmtree(other, ignore_errors=True)
        self.labels, self.known = np.full(count, -1, np.int64), np.zeros(count, bool)
        self.arrays: dict[str, np.memmap] = {}
        self.scales: dict[str, float] = {}

    def add(self, batch: Batch) -> None:
        rows = batch.rows.cpu().numpy()
        self.labels[rows], self.known[rows] = batch.labels.cpu().numpy(), True
        for name, vectors in batch.vectors.items():
            values = vectors.cpu().numpy()
            if name not in self.arrays:
                self._open(name, values)
            if self.arrays[name].dtype == np.float16:
                values = values / self.scales[name]
                if not np.abs(values).max(initial=0.0) < 65504:
                    raise OSError("a feature is 65,504 times as large as all of the first batch")
            self.arrays[name][rows] = values

    def _open(self, name: str, first: np.ndarray) -> None:
        half = self.count * first[0].size * 4 > _FULL_PRECISION if len(first) else False
        largest = float(np.abs(first).max(initial=0.0))
        self.scales[name] = 2.0 ** np.ceil(np.log2(largest)) if half and largest > 0 else 1.0
        shape = (self.count, *first.shape[1:])
        file, kind = self.folder / f"{name or 'features'}.raw", np.dtype(np.float16 if half else np.float32)
        with file.open("wb") as opened:
            if hasattr(os, "posix_fallocate"):  # if the disk fills up under a mapping, the process is killed
                os.posix_fallocate(opened.fileno(), 0, int(np.prod(shape)) * kind.itemsize)
            else:
                opened.truncate(int(np.prod(shape)) * kind.itemsize)
        self.arrays[name] = np.memmap(file, kind, "r+", shape=shape)

    def finish(self, file: Path, failed: list[str]) -> None:
        """Write one record batch from the mapped files."""
        kept = np.flatnonzero(self.known)
        arrays: list[Any] = [pa.array(kept), pa.array(self.labels[kept])]
        fields = [pa.field("row", pa.int64()), pa.field("label", pa.int64())]
        for name, array in self.arrays.items():
            for start in range(0, len(kept), 4096):  # skipping rows that could not be read
                part = kept[start : start + 4096]
                if part[0] != start or part[-1] != start + len(part) - 1:
                    array[start : start + len(part)] = array[part]
            flat = array[: len(kept)].reshape(-1)
            width = array[0].size
            column = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
            arrays.append(column)
            fields.append(pa.field(f"vectors_{name}", column.type))
        vectors = {name: (array.shape[1], self.scales[name]) for name, array in self.arrays.items()}
        about = json.dumps({"vectors": vectors, "failed": failed})
        schema = pa.schema(fields, metadata={"hf_ssl": about})
        file.parent.mkdir(parents=True, exist_ok=True)
        made = self.folder / "made.arrow"
        with pa.OSFile(str(made), "wb") as opened, pa.ipc.new_file(opened, schema) as writer:
            writer.write_batch(pa.record_batch(arrays, schema=schema))
        flush(made)
        os.replace(made, file)
        with suppress(OSError):
            flush(file.parent)
