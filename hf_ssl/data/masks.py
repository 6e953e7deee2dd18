# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Images with segmentation masks: a dataset with two image columns, or folders `images` and `masks`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
from datasets import Dataset, Features
from PIL import Image

from ..coerce import listed
from ..disk import first_line
from ..recipe import DataConfig, MonitorConfig, RecipeError
from .columns import find_columns
from .folders import Contents, split_of, walk
from .labels import check_column
from .media import STORAGE
from .pixels import open_image, to_channels, upright_size
from .places import open_place
from .sources import Source, source_of


IGNORED = 255  # pixels of this class are excluded from loss and metrics
_MASKS = ("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentation_mask")
_MASK_FOLDERS = ("masks", "annotations")
_HELD_OUT = 5  # without an evaluation split, one in five images is held out
_FEW = 5  # names in a message


class NoMask(ValueError):
    """An image is not a valid mask of class numbers for its image."""


@dataclass(frozen=True)
class Masked:
    """Images and their masks.

    Attributes:
        source, masks: of the same examples, in the same order.
        ignored: additional class numbers to treat as `IGNORED`.
        part: display name of the examples.
    """

    source: Source
    masks: Source
    ignored: tuple[int, ...]
    part: str

    def __len__(self) -> int:
        return len(self.source)

    def select(self, indices: Sequence[int], part: str | None = None) -> "Masked":
        source, masks = self.source.select(indices), self.masks.select(indices)
        return Masked(source, masks, self.ignored, part or self.part)

    def record(self, index: int) -> dict[str, Any]:
        """The encoded files of an example, "image" and "mask"."""
        return {"image": self.source.record(index), "mask": self.masks.record(index)}

    def name(self, index: int) -> str:
        """The name of an example in messages."""
        return self.source.name(index)

    def image_of(self, record: dict[str, Any], channels: int) -> Image.Image:
        """Decode the image; raises OSError or ValueError if it cannot be read."""
        return to_channels(open_image(record["image"], self.source.max_megapixels), channels, self.source.decoding)

    def mask_of(self, record: dict[str, Any]) -> np.ndarray:
        """Class numbers uint8 (H, W), with `IGNORED` for excluded pixels.

        Raises:
            NoMask: the image holds colors, or numbers outside 0..255.
            OSError, ValueError: it cannot be read.
        """
        image = open_image(record["mask"], self.masks.max_megapixels)
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise NoMask(f"it contains colors ({image.mode}), not class numbers (mode L or P)")
        numbers = np.asarray(image).astype(np.int64)  # palette indices in mode P
        if numbers.min() < 0 or numbers.max() > IGNORED:
            raise NoMask(f"it contains numbers from {numbers.min()} to {numbers.max()}, but classes are 0 to 254")
        numbers[np.isin(numbers, self.ignored)] = IGNORED
        return numbers.astype(np.uint8)

    def classes_of(self, index: int) -> np.ndarray:
        """The class numbers in a mask, without `IGNORED`.

        Raises:
            NoMask, OSError, ValueError: see `mask_of`; also NoMask if mask and image differ in size.
        """
        record = self.record(index)
        mask = self.mask_of(record)
        image = open_image(record["image"], self.source.max_megapixels)
        size = upright_size(image, self.source.decoding)
        if size != mask.shape[::-1]:
            raise NoMask(f"it has {mask.shape[1]} x {mask.shape[0]} pixels, but its image has {size[0]} x {size[1]}")
        return np.setdiff1d(mask, [IGNORED])


@dataclass(frozen=True)
class MaskedCrops:
    """Training augmentation of an image and its mask in the worker: random resize, square crop, random flip.

    Args:
        scales: the short side is resized to `size` times a uniform number from this range.
        fill: padding color for images smaller than the crop; their masks are padded with `IGNORED`.
    """

    name: ClassVar[str] = "images"
    numbered: ClassVar[bool] = False
    size: int
    scales: tuple[float, float]
    fill: tuple[int, ...]

    def make(self, record: Any, key: tuple[int, ...], source: Masked):
        """Pixels uint8 (S, S, C), classes uint8 (S, S), and a seed for further random draws."""
        chance = np.random.default_rng(key)
        short = max(1, round(self.size * chance.uniform(*self.scales)))
        image, mask = source.image_of(record, len(self.fill)), Image.fromarray(source.mask_of(record))
        size = resized(image.size, short)
        image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
        left, top = (int(chance.integers(max(side - self.size, 0) + 1)) for side in size)
        box = (left, top, min(left + self.size, size[0]), min(top + self.size, size[1]))
        pixels, classes = self.blank()[:2]
        cut = np.asarray(image.crop(box)).reshape(box[3] - top, box[2] - left, -1)
        pixels[: cut.shape[0], : cut.shape[1]] = cut
        classes[: cut.shape[0], : cut.shape[1]] = np.asarray(mask.crop(box))
        if chance.random() < 0.5:
            pixels, classes = pixels[:, ::-1], classes[:, ::-1]
        return pixels, classes, int(chance.integers(2**31))

    def blank(self):
        pixels = np.full((self.size, self.size, len(self.fill)), self.fill, np.uint8)
        return pixels, np.full((self.size, self.size), IGNORED, np.uint8), 0

    def stack(self, made: Sequence[Any]) -> dict[str, np.ndarray]:
        pixels, classes, seeds = zip(*made, strict=True)
        return {"pixels": np.stack(pixels), "classes": np.stack(classes), "seeds": np.array(seeds)}


def resized(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Width and height after resizing the short side to `short`."""
    width, height = (max(short, round(side * short / min(size))) for side in size)
    return width, height


def masked_sources(
    data: DataConfig, monitor: MonitorConfig, mask_column: str | None = None, ignored: tuple[int, ...] = ()
) -> tuple[Masked, Masked]:
    """Training and evaluation data: `monitor.bank_split` and `monitor.query_split`.

    If the "test" split is missing, "validation" is used. Without either, a random fifth of the images is held out,
    with a fixed seed.

    Raises:
        RecipeError: there are no images with masks, or these splits do not exist.
    """
    found = _folders_of(Path(str(data.path)).expanduser()) or open_place(data, False)
    bank = _masked(found, monitor.bank_split, data, monitor, mask_column, ignored)
    names = [monitor.query_split, *(["validation"] if monitor.query_split == "test" else [])]
    for name in names:
        if name in found:
            return bank, _masked(found, name, data, monitor, mask_column, ignored)
    if monitor.query_split != "test":
        raise RecipeError(f"{data.path} has no split {monitor.query_split!r} for --query-split, only {listed(found)}.")
    if len(bank) < 2:
        raise RecipeError(f"{data.path} has only one image with a mask; add more, for training and for evaluation.")
    order, count = np.random.default_rng(0).permutation(len(bank)), max(1, len(bank) // _HELD_OUT)
    asked, learned = np.sort(order[:count]), np.sort(order[count:])
    return bank.select(learned.tolist(), f"80 % of {bank.part}"), bank.select(asked.tolist(), f"20 % of {bank.part}")


def _masked(
    found: dict[str, Dataset],
    split: str,
    data: DataConfig,
    monitor: MonitorConfig,
    mask_column: str | None,
    ignored: tuple[int, ...],
) -> Masked:
    if split not in found:
        raise RecipeError(f"{data.path} has no split {split!r}, only {listed(found)}; see --bank-split.")
    dataset = found[split]
    image, mask = _columns(dataset.features, monitor.image_column or data.image_column, mask_column, data.path)
    source = source_of(dataset.select_columns([image]), replace(data, image_column=image, label_column=None))
    masks = Source(dataset.select_columns([mask]), {"image": mask}, None, data.max_megapixels)
    return Masked(source, masks, ignored, split)


def _columns(features: Features, image: str | None, mask: str | None, where: object) -> tuple[str, str]:
    """The image column and the mask column.

    Raises:
        RecipeError: one is missing or ambiguous.
    """
    possible = [name for name, one in features.items() if isinstance(one, datasets.Image) or one == STORAGE]
    for name in filter(None, (image, mask)):
        check_column(name, features, possible, "images", where)
    masks = [mask] if mask else [name for name in possible if name.lower() in _MASKS and name != image]
    if len(masks) != 1:
        raise RecipeError(
            f"No column of {where} could be identified as the masks (image columns: {listed(possible) or 'none'}); "
            "set --mask-column."
        )
    rest = Features({name: features[name] for name in possible if name != masks[0]})
    if image is None and len(rest) != 1:
        raise RecipeError(f"{where} has several image columns ({listed(rest)}); set --image-column.")
    return find_columns(rest, {"image": image}, where)["image"], masks[0]


def _folders_of(root: Path) -> dict[str, Dataset] | None:
    """Split -> image and mask files, from sibling folders `images` and `masks` inside or above the split folders.

    Returns None if there are no such folders.

    Raises:
        RecipeError: an image has no mask of the same name, or the reverse.
    """
    if not root.is_dir():
        return None
    below: Contents = walk(root, "image")
    sides: dict[str, dict[tuple[str, ...], str]] = {"image": {}, "mask": {}}
    for file in below.media:
        *folders, name = os.path.relpath(file, root.absolute()).split(os.sep)
        for place, folder in enumerate(folders):
            side = "image" if folder.lower() == "images" else "mask" if folder.lower() in _MASK_FOLDERS else None
            if side:
                sides[side][(*folders[:place], *folders[place + 1 :], Path(name).stem)] = file
                break
    images, masks = sides["image"], sides["mask"]
    if not images or not masks:
        return None
    for one, others, lacks in ((images, masks, "mask"), (masks, images, "image")):
        if alone := sorted(file for key, file in one.items() if key not in others):
            raise RecipeError(
                f"{len(alone)} file(s) of {root} have no {lacks} of the same name, such as "
                f"{listed(alone[:_FEW])}; add or remove them."
            )
    parts: dict[str, list[tuple[str, ...]]] = {}
    for key in sorted(images):
        parts.setdefault(next(filter(None, map(split_of, key[:-1])), "train"), []).append(key)
    features = Features({"image": datasets.Image(), "mask": datasets.Image()})
    made = {}
    for split, keys in parts.items():
        files: dict[str, Any] = {"image": [images[key] for key in keys], "mask": [masks[key] for key in keys]}
        made[split] = Dataset.from_dict(files, features=features, split=datasets.NamedSplit(split))
    return made


def classes_in(masked: Masked, rank: int = 0, world_size: int = 1) -> tuple[set[int], list[int], list[str]]:
    """Scan every `world_size`-th example, starting at `rank`.

    Returns:
        The class numbers found, the indices of readable examples, and the names of unreadable ones.

    Raises:
        RecipeError: a mask is invalid (`NoMask`).
    """
    found: set[int] = set()
    good, failed = [], []
    for index in range(rank, len(masked), world_size):
        try:
            found |= set(masked.classes_of(index).tolist())
            good.append(index)
        except NoMask as error:
            raise RecipeError(f"The mask {masked.masks.name(index)} cannot be used: {error}.") from None
        except Exception as error:  # decoders raise many types; skip the file
            failed.append(f"{masked.source.name(index)} ({first_line(error)})")
    return found, good, failed
