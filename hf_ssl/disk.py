# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Durable file writes: fsync, atomic replacement, and digests to detect changes."""

import ctypes
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from .errors import UserError


DIGESTS = "digests.json"
_CHUNK = 1 << 22  # bytes
_EXCHANGE = 2  # RENAME_EXCHANGE on Linux
_HERE = -100  # AT_FDCWD: paths are relative to the working directory

# Messages of safetensors and torch when the system refuses a write; they do not raise OSError.
_REFUSED_WRITES = (
    *("no space left", "os error", "i/o error", "file write failed", "writing file", "unexpected pos"),
    *("file cannot be opened", "parent directory", "disk quota", "read-only file system"),
)


def flush(path: Path) -> None:
    """Flush a file, or a folder's entries if the platform supports it, to disk.

    safetensors keeps its files from all but their owner; they become as readable as their folder.
    """
    if path.suffix == ".safetensors":
        path.chmod(path.stat().st_mode | (path.parent.stat().st_mode & 0o444))
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, text: str) -> None:
    """Write a text file so that it is old or new, never partial, even if the process is killed."""
    partial = path.with_name(f".partial_{path.name}")
    try:
        partial.write_text(text, encoding="utf-8")
        flush(partial)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On success, that file and any others written next to it replace `path` and
    files of their names; on failure they are removed.

    Raises:
        UserError: the disk refused the write.
    """
    partial = path.with_name(f".partial_{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial / path.name
        for file in sorted(partial.iterdir(), reverse=True):  # `path` last, after files like `path`.data
            flush(file)
            os.replace(file, path.with_name(file.name))
    except Exception as error:
        refusal = refused_write(error)
        if refusal is None:
            raise
        raise UserError(f"{path} could not be written ({first_line(refusal)}); free some space.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(new: Path, old: Path) -> None:
    """Move the folder `new` to `old`, replacing it if it exists.

    Linux exchanges the two atomically. Elsewhere, or if the file system cannot, `old` is moved aside first; if the
    process is killed in between, `recover_folder` moves it back.
    """
    aside = _aside(old)
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        if _exchange(new, old):
            os.replace(new, aside)
        else:
            os.replace(old, aside)
    if not old.exists():
        os.replace(new, old)
    flush(old.parent)
    shutil.rmtree(aside, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Undo a `replace_folder` that was killed between its two renames."""
    if not folder.exists() and _aside(folder).is_dir():
        os.replace(_aside(folder), folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".previous_{folder.name}")


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths atomically; False if the system or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0


def digest(path: Path) -> str:
    """Digest of a file's content. It detects accidents, not forgery."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: digest(folder / name) for name in names}


def write_digests(folder: Path, digests: dict[str, str]) -> None:
    """Write a folder's digests, with a digest of the list itself."""
    listed = json.dumps(digests, sort_keys=True)
    content = {"files": digests, "self": xxhash.xxh3_128_hexdigest(listed.encode())}
    (folder / DIGESTS).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")


def files_below(folder: Path) -> list[str]:
    """Sorted relative names of all files in a folder, except the digests."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != DIGESTS)


def read_digests(folder: Path) -> dict[str, str] | None:
    """Map from file name to digest; None if the folder has no digests.

    Raises:
        ValueError: the list itself is damaged.
    """
    path = folder / DIGESTS
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, own = content["files"], content["self"]
        if own == xxhash.xxh3_128_hexdigest(json.dumps(found, sort_keys=True).encode()):
            return found
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ValueError(f"{DIGESTS} has been changed or truncated since it was written")


def first_damage(folder: Path, digests: dict[str, str]) -> str | None:
    """Describe the first missing or damaged file named in `digests`; None if there is none."""
    there = set(files_below(folder))  # do not follow names that point outside the folder
    for name, expected in sorted(digests.items()):
        if name not in there:
            return f"{name} is missing"
        try:
            found = digest(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error})"
        if found != expected:
            return f"{name} has been changed or truncated since it was written"
    return None


def refused_write(error: BaseException | None) -> OSError | None:
    """The OSError of a refused write behind an exception, since libraries wrap it in their own classes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError):
            return error
        if any(sign in str(error).lower() for sign in _REFUSED_WRITES):
            return OSError(first_line(error))
        error = error.__cause__ or error.__context__
    return None


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or its class name."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
