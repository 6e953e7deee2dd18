# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Streams of images, or of videos with sound: sharded, shuffled, read once per epoch, and resumable at any example.

The position of a reader is four numbers (`Cursor`). Files stay encoded here; the loader workers decode them. For the
order of examples, see `hf_ssl.data.stream_sampler`.
"""

import io
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset

from ..recipe import DataConfig, RecipeError
from .columns import encoded, name_of, record_of, wanted_columns
from .media import MEDIA, STORAGE
from .pixels import DEFAULT, Decoding, settled
from .places import FOLDER_SHARDS, open_place
from .sources import Source, check_source, decoding_of


logger = logging.getLogger(__name__)

_PARTITIONS = 16  # default; enough for the processes of one machine
_RETRIES, _BACK_OFF = 3, 0.5  # retries, and seconds before the first one; doubled each time
READERS = 8  # shards or blocks that a process reads in parallel
_LOOKED_AT = 100  # images whose pixel type is checked before a run


class Cursor(NamedTuple):
    """Position of a partition: its block begins at example `offset` of the `shard`-th shard in the order of `epoch`,
    and the next example is number `position` of the shuffled block.
    """

    epoch: int = 0
    shard: int = 0
    offset: int = 0
    position: int = 0


class StreamItem(NamedTuple):
    """A scheduled example; `record` is the encoded file or None, see `record_of`."""

    epoch: int
    shard: int
    offset: int
    record: dict[str, Any] | None


class UnreadableShard(Exception):
    """A shard could not be read to its end, even after retries."""


class ImageStream:
    """Images, or videos with sound, of a streamed `datasets.IterableDataset`, shard by shard.

    Args:
        wanted: names of the columns, see `find_columns`.
        partitions: parts of the shard list, at least as many as processes; by default 16, or fewer if there are fewer
            shards.
        num_examples: per epoch, if known.
        shard_lengths: examples per shard, if known; see `rows`.
        max_megapixels: larger images are not read.
        origin: the map-style dataset that was split into shards, if any.
        decoding: how images become 8-bit pixels.

    Raises:
        RecipeError: no such column, or fewer shards than partitions.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        wanted: dict[str, str | None],
        *,
        partitions: int | None = None,
        num_examples: int | None = None,
        shard_lengths: list[int] | None = None,
        max_megapixels: float = 50.0,
        decoding: Decoding = DEFAULT,
        name: str = "the stream",
        origin: Dataset | None = None,
    ):
        images, self.columns = encoded(dataset.with_format(None), wanted, name)
        self.origin = origin if origin is None else encoded(origin.with_format(None), wanted, name)[0]
        if partitions is not None and images.num_shards < partitions:
            images = images.reshard()  # Parquet: one shard per row group
        self._images, self.shard_lengths = images, shard_lengths
        self.name, self.max_megapixels, self.decoding = name, max_megapixels, decoding
        self.features, self.num_shards = images.features, images.num_shards
        self.partitions = partitions or min(_PARTITIONS, self.num_shards)
        if self.num_shards < self.partitions:
            raise RecipeError(
                f"{name} has {self.num_shards} shard(s), fewer than data.partitions={partitions}; lower it or split "
                "the data into more files."
            )
        self.num_examples = num_examples or self._count()

    def examples(self, shard: int, offset: int = 0) -> Iterator[dict[str, Any] | None]:
        """Records of a shard from `offset` on. A failed read is retried where it failed, with exponential backoff.

        Raises:
            UnreadableShard: all retries failed.
        """
        tries = 0
        while True:
            try:
                part = self._images.shard(num_shards=self.num_shards, index=shard)
                for example in part.skip(offset) if offset else part:
                    yield record_of(example, self.columns)
                    offset, tries = offset + 1, 0
                return
            except Exception as error:  # file systems, archives and networks raise many types
                if tries == _RETRIES:
                    first_line = (str(error).splitlines() or [""])[0]
                    reason = f"{type(error).__name__}: {first_line}"
                    raise UnreadableShard(f"given up after {offset} examples, {reason}") from error
                time.sleep(_BACK_OFF * 2**tries)
                tries += 1

    def rows(self, state: dict[str, Any] | None = None) -> np.ndarray:
        """First dataset row of each shard, (shards + 1,); the last entry is the total number of examples.

        Shards without metadata about their length are read once to count them, unless a checkpoint's `state` has it.
        """
        self.shard_lengths = (state or {}).get("shard_lengths", self.shard_lengths)
        if self.shard_lengths is None:
            files = [self.file_of(shard) or "" for shard in range(self.num_shards)]
            with ThreadPoolExecutor(READERS) as pool:
                if len(set(files)) == len(files) and all(file.endswith(".parquet") for file in files):
                    lengths = pool.map(_footer, files)
                else:
                    logger.info(f"Counting the examples in {len(files)} shards of {self.name}; this reads them once.")
                    lengths = pool.map(lambda shard: sum(1 for _ in self._readable(shard)), range(len(files)))
                self.shard_lengths = list(lengths)
        return np.cumsum([0, *self.shard_lengths])

    def shard_name(self, shard: int) -> str:
        """The file of a shard if `datasets` exposes it, else its number."""
        return self.file_of(shard) or f"shard {shard} of {self.name}"

    def item_name(self, item: StreamItem) -> str:
        """The name of an example in messages: its file, or its place in a shard."""
        return name_of(item.record, f"example {item.offset} of {self.shard_name(item.shard)}")

    def state_of(self, cursors: dict[int, Cursor]) -> dict[str, Any]:
        """Stream position as plain data, for a checkpoint."""
        plain = {str(number): list(cursor) for number, cursor in sorted(cursors.items())}
        kept = {"shards": self.num_shards, "partitions": self.partitions, "num_examples": self.num_examples}
        lengths = {} if self.shard_lengths is None else {"shard_lengths": self.shard_lengths}
        return {**kept, **lengths, "cursors": plain}

    def cursors_of(self, state: dict[str, Any] | None) -> dict[int, Cursor]:
        """The inverse of `state_of`; empty without a state. Restores the recorded shard lengths.

        Raises:
            RecipeError: the number of shards or partitions has changed.
        """
        if state is None:
            return {}
        for key, now in (("shards", self.num_shards), ("partitions", self.partitions)):
            if state[key] != now:
                raise RecipeError(
                    f"{self.name} has {now} {key}, but the checkpoint has {state[key]}; a stream can only continue on "
                    "the same shards. Restore them, or set another train.output_dir."
                )
        self.shard_lengths = state.get("shard_lengths", self.shard_lengths)
        return {int(number): Cursor(*cursor) for number, cursor in state["cursors"].items()}

    def head(self, count: int) -> Source:
        """The first readable examples, as a map-style source."""
        records = self._first(count)
        kinds = list(self.columns)
        columns = {kinds[0]: list(map(_stored, records))}
        columns |= {"audio": [record and record["audio"] for record in records]} if kinds[1:] else {}
        dataset = Dataset.from_dict(columns, features=Features(dict.fromkeys(kinds, STORAGE)))
        wanted: dict[str, str | None] = {kind: kind for kind in kinds}
        return Source(dataset, wanted, max_megapixels=self.max_megapixels, decoding=self.decoding)

    def settle(self) -> None:
        """Inspect the pixel types of the first images before a run starts.

        Raises:
            RecipeError: see `pixels.settled`.
        """
        records = enumerate(self._first(_LOOKED_AT))
        named = ((name_of(record, f"example {i} of {self.name}"), record) for i, record in records)
        self.decoding = settled(self.decoding, named, self.max_megapixels, self.name)

    def _first(self, count: int) -> list[dict[str, Any] | None]:
        return list(islice(chain.from_iterable(map(self._readable, range(self.num_shards))), count))

    def _readable(self, shard: int) -> Iterator[dict[str, Any] | None]:
        with suppress(UnreadableShard):
            yield from self.examples(shard)

    def file_of(self, shard: int) -> str | None:
        """Path or URL of a shard, if `datasets` exposes it."""
        part = self._images.shard(num_shards=self.num_shards, index=shard)._ex_iterable
        while hasattr(part, "ex_iterable") or len(getattr(part, "ex_iterables", ())) == 1:
            part = part.ex_iterable if hasattr(part, "ex_iterable") else part.ex_iterables[0]
        for value in getattr(part, "kwargs", {}).values():
            if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
                return value[0]
        return None

    def _count(self) -> int | None:
        """Examples per epoch, from the Hub's metadata or local Parquet footers; None if unknown."""
        info = self._images.info
        split = (info.splits or {}).get(str(self._images.split))
        if split is not None and split.num_examples:
            return split.num_examples
        first = self.file_of(0)
        if not first or not first.endswith(".parquet") or not Path(first).is_file():
            return None
        return sum(map(_footer, {self.file_of(shard) or "" for shard in range(self.num_shards)})) or None


def _stored(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """The record with an image created in Python replaced by its encoded file."""
    if record is None or "image" not in record:
        return record
    image, content = record["image"], io.BytesIO()
    image.save(content, "PNG" if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "TIFF")
    return {"bytes": content.getvalue(), "path": record["path"]}


def _footer(file: str) -> int:
    """Number of rows of a local or remote Parquet file; 0 if corrupt."""
    with suppress(Exception), fsspec.open(file, "rb") as opened:
        return pq.read_metadata(opened).num_rows
    return 0


def open_stream(data: DataConfig, dataset: IterableDataset | None = None, kind: str = "image") -> ImageStream:
    """The stream of a recipe's `data` section, or of `dataset`. `kind` is "image", or "video" for clips.

    Raises:
        RecipeError: see `check_source` and `ImageStream`.
    """
    name = str(data.path or "the dataset")
    wanted = wanted_columns(data, kind)
    number, lengths, origin = data.num_examples, None, None
    if dataset is None:
        check_source(data, kind=kind)
        dataset = open_place(data, True, kind, only_media=True)[data.split]
        if not isinstance(data.path, str):
            wanted = dict.fromkeys(wanted)
            number = number or _count_places(data, kind)
    if isinstance(dataset, Dataset):  # a plain folder of files, or a dataset written by `save_to_disk`
        origin = dataset
        number = number or len(dataset)
        shards = min(len(dataset), max(FOLDER_SHARDS, data.partitions or 0))
        lengths = [len(part) for part in np.array_split(np.arange(len(dataset)), shards)]
        dataset = dataset.to_iterable_dataset(num_shards=shards)
    stream = ImageStream(
        dataset,
        wanted,
        partitions=data.partitions,
        num_examples=number,
        shard_lengths=lengths,
        max_megapixels=data.max_megapixels,
        decoding=decoding_of(data),
        name=name,
        origin=origin,
    )
    if MEDIA[kind].pixels:
        stream.settle()
    if MEDIA[kind].once:
        stream.num_examples = int(stream.rows()[-1])
    return stream


def _count_places(data: DataConfig, kind: str) -> int | None:
    """Weighted number of examples per epoch of a list of paths, if all are known."""
    streams = [open_stream(replace(data, path=place.path, partitions=None), kind=kind) for place in data.places]
    counts = [stream.num_examples for stream in streams if stream.num_examples is not None]
    if len(counts) < len(streams):
        return None
    return round(sum(count * place.weight for count, place in zip(counts, data.places, strict=True)))


def merge_states(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge the stream states of all processes."""
    merged = {number: cursor for state in states for number, cursor in state["cursors"].items()}
    return {**states[0], "cursors": merged}
