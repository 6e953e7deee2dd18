# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Read sharded checkpoints (torch.distributed.checkpoint) without executing anything in their files.

The index of such a folder, `.metadata`, is a pickle, and entries that are not tensors are pickles, too. Here the index
is read into inert records, from which only tensor descriptions are used, and other entries are refused. It is checked
against the files before any memory is allocated.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from ..files import refuse_compressed


_OWN = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_OTHERS = {("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict")}
_OTHERS |= {(module, name) for module in ("pathlib", "pathlib._local") for name in _PATHS}
# The opcodes that torch's writer uses; some of the others allocate as much memory as they claim to need.
_OPCODES = set(
    "APPEND APPENDS BINGET BININT BININT1 BININT2 BINUNICODE BUILD EMPTY_DICT EMPTY_LIST EMPTY_TUPLE FRAME LONG1 "
    "LONG_BINGET MARK MEMOIZE NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS SHORT_BINUNICODE "
    "STACK_GLOBAL STOP TUPLE TUPLE1 TUPLE2 TUPLE3".split()
)
_MOST_BYTES = 256 * 2**20


class SafeReader(dcp.FileSystemReader):
    """Reads only tensors from a folder of torch.distributed.checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read and check the index.

        Raises:
            pickle.UnpicklingError: not such an index, one that names anything but tensors and their files, or one
                that claims more data than the files have.
        """
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        try:
            metadata = _checked(_unpickled(path), path.parent)
        except pickle.UnpicklingError:
            raise
        except Exception as error:  # truncated or foreign files may raise anything
            raise pickle.UnpicklingError(f"{path} is not the index of a sharded checkpoint ({error!r})") from error
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def _slice_file(self, file: IO[bytes], sinfo: _StorageInfo) -> IO[bytes]:
        file.seek(sinfo.offset)
        part = io.BytesIO(file.read(sinfo.length))
        refuse_compressed(part, sinfo.length)
        part.seek(0)
        return part


def read_shards(folder: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of the method in a sharded checkpoint, unsharded, on the CPU.

    Raises:
        pickle.UnpicklingError: files are truncated, of another format, or hold more than tensors.
    """
    reader = SafeReader(folder)
    saved = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in saved.items()
        if name.startswith("model.")
    }
    try:
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:  # torch derives it from BaseException, not Exception
        said = " ".join(repr(failure[0]) for failure in error.failures.values())
        raise pickle.UnpicklingError(f"{folder}: {said}") from error
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


class _Record:
    """Inert stand-in for an object in the index: keeps its arguments and state, has no behavior."""

    args: tuple = ()
    state: Any = None

    def __new__(cls, *args: Any) -> "_Record":
        record = super().__new__(cls)
        record.args = args
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if (module in _OWN and "." not in name) or (module, name) in _OTHERS:
            return type(name, (_Record,), {})
        raise pickle.UnpicklingError(f"it uses {module}.{name}, which hf-ssl never executes")


def _unpickled(path: Path) -> _Record:
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise pickle.UnpicklingError(f"{path} is not a file of a sharded checkpoint")
    with path.open("rb") as file:
        foreign = {opcode.name for opcode, _, _ in pickletools.genops(file)} - _OPCODES
        if foreign:
            raise pickle.UnpicklingError(f"{path} is not an index written by torch ({', '.join(sorted(foreign))})")
        file.seek(0)
        return _Unpickler(file).load()


def _checked(index: _Record, folder: Path) -> Metadata:
    """Rebuild the index with torch's own classes from plain values, and check it against the files."""
    tensors = {str(name): _tensor(str(name), entry) for name, entry in index.state["state_dict_metadata"].items()}
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    parts = dict(_part(key, place, sizes) for key, place in index.state["storage_data"].items())
    declared = sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in tensors.values())
    if declared > sum(sizes.values()):
        raise pickle.UnpicklingError(f"{folder} declares {declared:,} bytes of tensors, but has fewer")
    return Metadata(state_dict_metadata=tensors, planner_data={name: (name,) for name in tensors}, storage_data=parts)


def _tensor(name: str, entry: _Record) -> TensorStorageMetadata:
    if type(entry).__name__ != "TensorStorageMetadata":
        raise pickle.UnpicklingError(f"its entry {name} is not a tensor, and nothing else is read")
    size, dtype = _size(entry.state["size"]), entry.state["properties"].state[0]
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError(f"its entry {name} has no dtype")
    chunks = [ChunkStorageMetadata(_size(c.state["offsets"]), _size(c.state["sizes"])) for c in entry.state["chunks"]]
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size):
        raise pickle.UnpicklingError(f"parts of its entry {name} are missing")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)


def _part(key: _Record, place: _Record, sizes: dict[str, int]) -> tuple[MetadataIndex, _StorageInfo]:
    """Location of a tensor's part: a file in this folder, and the bytes in it."""
    fqn, offset, index = (key.state.get(name) for name in ("fqn", "offset", "index"))
    file, start, length = (place.state[name] for name in ("relative_path", "offset", "length"))
    if file not in sizes or not 0 <= start <= start + length <= sizes[file]:
        raise pickle.UnpicklingError(f"a part of {fqn} is outside the bytes of {file!r}")
    return MetadataIndex(str(fqn), _size(offset), index), _StorageInfo(file, start, length)


def _size(record: _Record) -> torch.Size:
    numbers = record.args[0]
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise pickle.UnpicklingError(f"{numbers!r} is not a tensor size")
    return torch.Size(numbers)
