# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Kinds of files that a dataset can hold: what `datasets` calls them, and how they are found.

A modality names the medium that it trains on (see `hf_ssl.data.modality`); another medium is another entry of `MEDIA`.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import datasets
from datasets import Value

from ..errors import RecipeError


STORAGE = {"bytes": Value("binary"), "path": Value("string")}  # of all media


@dataclass(frozen=True)
class Medium:
    """Args:
    feature: the type of its columns.
    extensions: of its files.
    beside: a medium whose column each example may have, too.
    structs: a column that has the storage's type only is as good as one of the type; else it is where there is none.
    raw: a column of plain bytes is, where there is nothing better.
    paths: a column of texts can be named.
    once: an example is needed once in an epoch.
    tabled: a folder's tables name its files.
    plain: it is written in the storage's type; one of its own takes another package.
    pixels: how deep its numbers are decides how they are read, see `hf_ssl.data.pixels`.
    reader: the package that reads it, where not everybody has it.
    """

    feature: Any
    extensions: tuple[str, ...]
    beside: str | None = None
    structs: bool = False
    raw: bool = False
    paths: bool = False
    once: bool = True
    tabled: bool = False
    plain: bool = False
    pixels: bool = False
    reader: str | None = None

    @property
    def written(self) -> Any:
        """The type in which its files are written, still encoded."""
        return STORAGE if self.plain else self.feature(decode=False)

    def choice(self, typed: list[str], structs: list[str], binary: list[str]) -> list[str]:
        """The columns that are meant where none is named."""
        if self.structs:
            return typed + structs
        return typed or structs or (binary if self.raw else [])


_IMAGES = (
    ".apng .avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpf .jpg .jpx .pbm .pgm .pjp .pjpeg .png .pnm .ppm .tif "
    ".tiff .webp"
)
_VIDEOS, _SOUNDS = ".avi .m4v .mkv .mov .mp4 .webm", ".flac .m4a .mp3 .ogg .opus .wav"
MEDIA = {
    "image": Medium(datasets.Image, tuple(_IMAGES.split()), structs=True, paths=True, once=False, pixels=True),
    "video": Medium(
        datasets.Video, (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"), beside="audio", raw=True, reader="av"
    ),
    "audio": Medium(
        datasets.Audio, (".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"), tabled=True, plain=True, reader="av"
    ),
}


def require_reader(kind: str) -> None:
    """Raises RecipeError where what reads a kind of files is not installed."""
    reader = MEDIA[kind].reader
    if reader is not None and find_spec(reader) is None:
        remedy = 'pip install "hf_ssl[video]" (or pip install av)'
        raise RecipeError(f"Reading {kind} files needs PyAV, which is not installed; {remedy}.")


def instead(kind: str, other: str) -> str:
    """What to do where data hold media of another kind than is wanted."""
    recipes = {"image": "my_images", "video": "avid/my_clips"}
    ours = f", or use a recipe for {other}s (hf-ssl pretrain {recipes[other]})" if other in recipes else ""
    return f"use {kind}s{ours}"
