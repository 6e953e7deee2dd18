# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Tar shards in WebDataset format: consecutive members with the same key form an example.

The reader of `datasets` infers the columns from the first five examples and stops a shard at the first member that
does not fit. Real shards mix jpg and png, or have dots in their names. Also, tarfile treats an unreadable header as
the end of the archive, which would silently drop the rest.
"""

import logging
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import fsspec
from datasets import Features, Value

from ..recipe import DataConfig
from .folders import media_kind
from .media import MEDIA


logger = logging.getLogger(__name__)

_LOOKED_AT = 100  # members of a shard from which the naming scheme is inferred


@dataclass(frozen=True)
class TarLayout:
    """How member names map to keys and columns.

    Args:
        kinds: (column, "image" | "video" | "audio") pairs. A column named like its kind is the example's only member
            of that kind, with any extension. Otherwise, the column name is the extension.
        label: extension of the member with the label, if any.
        dotted: split the name at the last dot, because keys contain dots; else at the first, as WebDataset does.
        versions: of the shards, so that a changed shard invalidates the cache.
    """

    kinds: tuple[tuple[str, str], ...]
    label: str | None
    dotted: bool
    versions: tuple[str, ...] = ()

    @property
    def features(self) -> Features:
        media = {name: MEDIA[kind].written for name, kind in self.kinds}
        label = {self.label: Value("int64" if self.label == "cls" else "string")} if self.label else {}
        return Features(media | label)


def tar_layout(files: list[str], data: DataConfig) -> TarLayout:
    """The layout of the first readable shard.

    Raises:
        OSError, tarfile.ReadError: none of the first 20 shards can be read.
    """
    for file in files[:20]:
        with suppress(Exception):  # corrupt; a stream skips it
            return _layout_of(_first_names(file), data)
    return _layout_of(_first_names(files[0]), data)


def _first_names(file: str) -> list[str]:
    names = []
    with fsspec.open(file, "rb") as opened, tarfile.open(fileobj=opened, mode="r|*") as tar:
        try:
            for member in tar:
                if _counts(member):
                    names.append(member.name)
                if len(names) == _LOOKED_AT:
                    break
        except Exception:  # truncated; reported when it is read
            if not names:
                raise
    return names


def _counts(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file with an extension and not hidden (macOS adds ._photo.jpg)."""
    name = member.name.rpartition("/")[2]
    return member.isfile() and not name.startswith(".") and "." in name


def _layout_of(names: list[str], data: DataConfig) -> TarLayout:
    media = [name for name in names if media_kind(name)]
    dotted = len({_key(name, False)[1] for name in media}) > max(1, len({_key(name, False)[0] for name in media}))
    members: dict[tuple[str, str | None], list[str]] = {}  # (key, kind) -> extensions
    for key, extension in (_key(name, dotted) for name in media):
        members.setdefault((key, media_kind(f"_.{extension}")), []).append(extension)
    kinds = {}
    for kind in MEDIA:
        groups = [extensions for (_, k), extensions in members.items() if k == kind]
        named, all_of = getattr(data, f"{kind}_column"), {one for group in groups for one in group}
        if named in all_of:
            kinds[named] = kind
        elif any(len(group) > 1 for group in groups):
            kinds |= dict.fromkeys(sorted(all_of), kind)
        elif groups:
            kinds[kind] = kind
    wanted = data.label_column or "cls"
    label = wanted if any(_key(name, dotted)[1] == wanted for name in names) else None
    return TarLayout(tuple(kinds.items()), label, dotted)


def _key(name: str, dotted: bool) -> tuple[str, str]:
    """Key and extension of a member."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.rpartition(".") if dotted else file.partition(".")
    return folder + slash + key, extension.lower()


class _Header(tarfile.TarInfo):
    """A TarInfo that treats a damaged header as an error, not as the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Header":
        at = tar.offset
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            raise  # the two blocks of zeros that every tar ends with
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            if at:
                _warn(f"{tar.name!s} has no end marker, so it may be truncated after {at:,} bytes.")
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the member at byte {at:,} is damaged ({error})") from None


@cache
def _warn(message: str) -> None:
    """Warn once, not every epoch."""
    logger.warning(message)


def read_tars(files: list[str], layout: TarLayout) -> Iterator[dict[str, Any]]:
    """Examples of shards. Members of other kinds are skipped, and so are keys that have no others.

    Raises:
        tarfile.ReadError: a shard is damaged; raised after the examples before the damage.
    """
    for file in files:
        try:
            yield from _read_tar(file, layout)
        except (tarfile.ReadError, zlib.error, lzma.LZMAError, EOFError) as error:
            raise tarfile.ReadError(f"{file}: {error}") from error


def _read_tar(file: str, layout: TarLayout) -> Iterator[dict[str, Any]]:
    with fsspec.open(file, "rb") as opened, tarfile.open(file, fileobj=opened, mode="r|*", tarinfo=_Header) as tar:
        last: str | None = None
        example: dict[str, Any] = {}
        for member in filter(_counts, tar):
            key, extension = _key(member.name, layout.dotted)
            if key != last:
                yield from _finished(example, layout)
                last, example = key, {}
            column = _column(extension, layout, example)
            if column is not None:
                example[column] = _value(tar, member, column == layout.label)
        yield from _finished(example, layout)


def _column(extension: str, layout: TarLayout, example: dict[str, Any]) -> str | None:
    if extension == layout.label or extension in dict(layout.kinds):
        return extension
    kind = media_kind(f"_.{extension}")
    return kind if kind is not None and (kind, kind) in layout.kinds and kind not in example else None


def _value(tar: tarfile.TarFile, member: tarfile.TarInfo, is_label: bool) -> Any:
    content = tar.extractfile(member).read()  # type: ignore[union-attr]  # `_counts` only accepts files
    if not is_label:
        return {"bytes": content, "path": member.name}
    text = content.decode(errors="replace").strip()
    if not member.name.lower().endswith("cls"):
        return text
    with suppress(ValueError):
        return int(text)
    return None


def _finished(example: dict[str, Any], layout: TarLayout) -> Iterator[dict[str, Any]]:
    if any(column in example for column, _ in layout.kinds):
        columns = [column for column, _ in layout.kinds] + ([layout.label] if layout.label else [])
        yield {column: example.get(column) for column in columns}
