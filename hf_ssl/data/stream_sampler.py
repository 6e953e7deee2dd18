# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Order and batches of a stream.

Shards are dealt to a fixed number of partitions, and partitions to processes. In every epoch, a partition reads its
shards in a new order and in blocks, and shuffles each block. Its position is four numbers (`Cursor`). Every batch
carries the cursors after it, so that a checkpoint records what was trained on, not what was prefetched.

A process draws from its partitions in turn. So if the number of partitions is a multiple of the processes, and the
micro-batch a multiple of the partitions, the global batch does not depend on the number of processes. It never depends
on the number of workers.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from ..recipe import RecipeError
from .streams import READERS, Cursor, ImageStream, StreamItem, UnreadableShard


@dataclass
class StreamBatch:
    """Examples for a worker. Also, for the main process, the cursors after them and the abandoned shards."""

    items: list[StreamItem]
    cursors: dict[int, Cursor]
    failures: list[tuple[str, str]]


class BatchPlan(NamedTuple):
    """Defines the micro-batches of a process; see `TrainLoader`."""

    batch_size: int
    num_steps: int
    seed: int
    start_step: int
    accumulation: int
    rank: int
    world_size: int

    def micro_batches(self) -> range:
        return range(self.start_step * self.accumulation, self.num_steps * self.accumulation)

    def own_batch(self) -> int:
        return self.batch_size // self.accumulation // self.world_size


@dataclass
class _Block:
    """Examples read together, in shuffled order, and the cursor of the next block."""

    start: Cursor
    items: list[StreamItem]
    failures: list[tuple[str, str]]
    following: Cursor


class _Partition:
    """Endless reader of one part of the shard list, reshuffled every epoch; the next block is prefetched."""

    def __init__(self, stream: ImageStream, number: int, seed: int, block: int, cursor: Cursor, pool):
        self.stream, self.number, self.seed, self.block = stream, number, seed, block
        self._reader: tuple[int, int, int, Iterator] | None = None  # epoch, shard, offset, open iterator
        self._pool: ThreadPoolExecutor = pool
        self._position, self.cursor = cursor.position, cursor
        self._current: _Block | None = None
        self._next: Future[_Block] = pool.submit(self._read, cursor._replace(position=0))

    def draw(self, failures: list[tuple[str, str]]) -> StreamItem:
        """The next example. Shards that had to be abandoned on the way are appended to `failures`."""
        while self._current is None or self._position >= len(self._current.items):
            # On resume in the middle of a block, its read failures were already reported.
            begun = self._current is None and self._position > 0
            self._position = self._position if begun else 0
            self._current = self._next.result()
            self._next = self._pool.submit(self._read, self._current.following)
            failures += [] if begun else self._current.failures
        self._position += 1
        self.cursor = self._current.start._replace(position=self._position)
        return self._current.items[self._position - 1]

    def _order(self, epoch: int) -> list[int]:
        own = np.arange(self.number, self.stream.num_shards, self.stream.partitions)
        return np.random.default_rng((self.seed, epoch, self.number)).permutation(own).tolist()

    def _read(self, start: Cursor) -> _Block:
        """Read the block that begins at `start`. It does not cross an epoch boundary and is never empty."""
        epoch, shard, offset, _ = start
        items: list[StreamItem] = []
        failures: list[tuple[str, str]] = []
        while not items:
            order = self._order(epoch)
            while shard < len(order) and len(items) < self.block:
                try:
                    reader = self._open(epoch, order[shard], offset)
                    for record in reader:
                        items.append(StreamItem(epoch, order[shard], offset, record))
                        offset += 1
                        if len(items) == self.block:
                            self._reader = (epoch, order[shard], offset, reader)
                            break
                    else:
                        shard, offset = shard + 1, 0
                except UnreadableShard as error:
                    failures.append((self.stream.shard_name(order[shard]), str(error)))
                    shard, offset = shard + 1, 0
            if shard == len(order):
                if not items and epoch > start.epoch:
                    said = ": {} ({})".format(*failures[-1]) if failures else ", which are empty"
                    raise RecipeError(f"No shard of partition {self.number} could be read{said}.")
                epoch, shard, offset = epoch + 1, 0, 0
        shuffle = np.random.default_rng((self.seed, *start[:3], self.number)).permutation(len(items))
        return _Block(start, [items[i] for i in shuffle], failures, Cursor(epoch, shard, offset))

    def _open(self, epoch: int, shard: int, offset: int) -> Iterator:
        """Continue the iterator of the previous block if it fits, else open the shard at `offset`."""
        if self._reader is None or self._reader[:3] != (epoch, shard, offset):
            return self.stream.examples(shard, offset)
        return self._reader[3]


class StreamBatchSampler(Sampler):
    """`StreamBatch`es of a process, micro-batch by micro-batch.

    Args:
        cursors: by partition, from a checkpoint; missing partitions start at the beginning.
        block: number of examples that a partition shuffles together.

    Raises:
        RecipeError: fewer partitions than processes; while iterating, a partition has nothing readable.
    """

    def __init__(self, stream: ImageStream, plan: BatchPlan, block: int, cursors: dict[int, Cursor]):
        if stream.partitions < plan.world_size:
            raise RecipeError(
                f"{stream.name} has {stream.partitions} partition(s), fewer than the {plan.world_size} processes; "
                "set data.partitions to a multiple of that number."
            )
        self.stream, self.plan, self.block, self.cursors = stream, plan, block, cursors
        self.own = np.array_split(np.arange(stream.partitions), plan.world_size)[plan.rank].tolist()

    def __len__(self) -> int:
        return len(self.plan.micro_batches())

    def __iter__(self) -> Iterator[StreamBatch]:
        pool = ThreadPoolExecutor(min(READERS, len(self.own)), "stream")
        seed, batch = self.plan.seed, self.plan.own_batch()
        try:
            parts = [
                _Partition(self.stream, number, seed, self.block, self.cursors.get(number, Cursor()), pool)
                for number in self.own
            ]
            for micro in self.plan.micro_batches():
                # Grouped by partition, so that the processes' parts concatenate to the batch of a single process.
                drawn = sorted(turn % len(parts) for turn in range(micro * batch, (micro + 1) * batch))
                failures: list[tuple[str, str]] = []
                items = [parts[i].draw(failures) for i in drawn]
                yield StreamBatch(items, {self.own[i]: parts[i].cursor for i in set(drawn)}, failures)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
