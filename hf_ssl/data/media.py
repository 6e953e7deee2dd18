# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Media a dataset can hold: their `datasets` feature types, and how their columns and files are found.

A modality names the medium it trains on (see `hf_ssl.data.modality`). To add a medium, add an entry to `MEDIA`.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import datasets
from datasets import Value

from ..errors import RecipeError


STORAGE = {"bytes": Value("binary"), "path": Value("string")}  # Arrow storage type of every medium


@dataclass(frozen=True)
class Medium:
    """One kind of media file.

    Args:
        feature: `datasets` feature type of its columns.
        extensions: of its files.
        beside: another medium for which an example can have a second column.
        structs: columns with only the storage type rank equal to typed ones; otherwise they are a fallback.
        raw: a column of plain bytes is the last fallback.
        paths: a string column of paths can be named in the recipe.
        once: each example must appear at most once per epoch.
        tabled: metadata tables in a folder list its files.
        plain: write it with the storage type, because its own type needs another package.
        pixels: decoding depends on the bit depth, see `hf_ssl.data.pixels`.
        reader: optional package needed to read it.
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
        """Feature type for storing its encoded files."""
        return STORAGE if self.plain else self.feature(decode=False)

    def choice(self, typed: list[str], structs: list[str], binary: list[str]) -> list[str]:
        """Candidate columns if the recipe names none."""
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
    "video": Medium(datasets.Video, tuple(_VIDEOS.split()), beside="audio", raw=True, reader="av"),
    "audio": Medium(datasets.Audio, tuple(_SOUNDS.split()), tabled=True, plain=True, reader="av"),
}


def require_reader(kind: str) -> None:
    """Raise RecipeError if the package that reads this medium is not installed."""
    reader = MEDIA[kind].reader
    if reader is not None and find_spec(reader) is None:
        remedy = 'pip install "hf_ssl[video]" (or pip install av)'
        raise RecipeError(f"Reading {kind} files needs PyAV, which is not installed; {remedy}.")


def instead(kind: str, other: str) -> str:
    """The remedy if the data hold another medium than the recipe needs."""
    recipes = {"image": "my_images", "video": "avid/my_clips"}
    ours = f", or a recipe for {other}s (hf-ssl pretrain {recipes[other]})" if other in recipes else ""
    return f"use {kind}s{ours}"
