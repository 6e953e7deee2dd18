# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Training batches of images or clips, split over processes and workers, starting at any step.

Step s of epoch e takes permutation(seed, e)[s B : (s + 1) B] for the global batch B. Micro-batch a is the a-th part of
it, and process r takes the r-th part of that. So the global batch does not depend on the number of processes, and
resuming at a step is arithmetic. For the order of streams, see `stream_sampler`.
"""

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..recipe import RecipeError
from .images import ImageViews
from .modality import Stage1
from .sources import Source
from .stream_sampler import BatchPlan, StreamBatch, StreamBatchSampler
from .streams import Cursor, ImageStream, StreamItem
from .views import View
from .workers import batches, share, start_worker


_ATTEMPTS = 10  # an unreadable image and its substitutes
_WINDOW = 1000  # images over which the failure rate is computed


class TrainLoader:
    """Micro-batches of image views or clips, from `start_step` to `num_steps`.

    Image batches are dicts: `views` uint8 (V, B, S, S, C) and `params` (V, B, P) of the global views, `local_views`
    and `local_params` of the small crops, `index` (B,) of the scheduled examples, and `skipped`, a list of (name,
    reason) of unreadable ones. Each of those is replaced by another random example. For streams, `index` is
    shard * 2^32 + offset in the shard, and `skipped` also lists abandoned shards.

    Clip batches have `frames` uint8 (B, T, S, S, C), `params` (B, P), `waveforms` (B, samples), `skipped`, and `index`
    (B,): the dataset row of each clip in the batch, including substitutes; for streams, see `ImageStream.rows`.

    Args:
        stage1: the worker's processing, see `Modality.stage1`; a list of views stands for `ImageViews` of them.
        batch_size: images per optimizer step, over all processes and micro-batches; must be divisible by both.
        max_failed_share: of the last 1,000 images of this process; checked after the first 100.
        shuffle_block: number of stream examples shuffled together.
        state: where a stream resumes, merged from `state()` of all processes.

    Raises:
        RecipeError: fewer images than a batch; while iterating, too many unreadable images.
        WorkerError: while iterating, a worker was killed.
    """

    def __init__(
        self,
        source: Source | ImageStream,
        stage1: Stage1 | list[View],
        *,
        batch_size: int,
        num_steps: int,
        seed: int = 0,
        start_step: int = 0,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        max_failed_share: float = 0.1,
        shuffle_block: int = 256,
        state: dict[str, Any] | None = None,
    ):
        stage1 = ImageViews(stage1) if isinstance(stage1, list) else stage1
        self.max_failed_share, self.num_workers, self._name = max_failed_share, num_workers, stage1.name
        self._cursors: dict[int, Cursor] = {}
        self._stream = source if isinstance(source, ImageStream) else None
        plan = BatchPlan(batch_size, num_steps, seed, start_step, accumulation, rank, world_size)
        sampler: Sampler
        examples: Dataset
        if isinstance(source, ImageStream):
            sampler = StreamBatchSampler(source, plan, shuffle_block, source.cursors_of(state))
            self._cursors = {number: sampler.cursors[number] for number in sampler.own if number in sampler.cursors}
            examples = _StreamViews(source, stage1, seed)
        else:
            sampler = _BatchSampler(len(source), plan)
            examples = _ViewBatches(source, stage1, seed)
        self._loader = DataLoader(
            examples,
            batch_sampler=sampler,
            collate_fn=_hand_over,
            worker_init_fn=start_worker,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # do not advance the global random state
        )

    def __iter__(self) -> Generator[dict[str, Any], None, None]:
        window: deque[tuple[int, int]] = deque()  # (images tried, failures) of recent batches
        for batch in batches(self._loader):
            window.append((len(batch["index"]) + len(batch["skipped"]), len(batch["skipped"])))
            while sum(n for n, _ in window) - window[0][0] >= _WINDOW:
                window.popleft()
            tried, failed = (sum(column) for column in zip(*window, strict=True))
            if batch.pop("exhausted") or (tried >= 100 and failed > self.max_failed_share * tried):
                name, reason = batch["skipped"][-1]
                raise RecipeError(
                    f"{failed} of the last {tried} {self._name} could not be read, most recently {name} ({reason}); "
                    "fix the data or raise data.max_failed_share."
                )
            self._cursors.update(batch.pop("cursors", {}))
            yield batch

    def state(self) -> dict[str, Any] | None:
        """Stream position of this process after the last batch; None for map-style data."""
        return None if self._stream is None else self._stream.state_of(self._cursors)


def steps_in_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches per epoch; the remainder is dropped.

    Raises:
        RecipeError: the dataset is smaller than a batch.
    """
    if num_examples < batch_size:
        raise RecipeError(
            f"train.batch_size={batch_size} exceeds the {num_examples} examples of the dataset; lower it."
        )
    return num_examples // batch_size


def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of all examples in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


class _BatchSampler(Sampler):
    """(epoch, example) pairs of a process's micro-batches."""

    def __init__(self, n: int, plan: BatchPlan):
        self.n, self.plan = n, plan
        self.per_epoch = steps_in_epoch(n, plan.batch_size) * plan.accumulation

    def __len__(self) -> int:
        return len(self.plan.micro_batches())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        own, micro_batch = self.plan.own_batch(), self.plan.batch_size // self.plan.accumulation
        epoch_of_order, order = -1, np.empty(0)
        for micro in self.plan.micro_batches():
            epoch, position = divmod(micro, self.per_epoch)
            if epoch != epoch_of_order:
                epoch_of_order, order = epoch, epoch_order(self.n, self.plan.seed, epoch)
            first = position * micro_batch + self.plan.rank * own
            yield [(epoch, int(index)) for index in order[first : first + own]]


class _ViewBatches(Dataset):
    """A list of (epoch, example) pairs -> arrays of their views."""

    def __init__(self, source: Source, stage1: Stage1, seed: int):
        self.source, self.stage1, self.seed = source, stage1, seed

    def __getitems__(self, items: list[tuple[int, int]]) -> dict[str, Any]:
        batch: dict[str, Any] = {"skipped": [], "exhausted": False}
        made, chosen = zip(*[self._example(epoch, index, batch) for epoch, index in items], strict=True)
        index = chosen if self.stage1.numbered else [index for _, index in items]
        return {**batch, "index": np.array(index), **self.stage1.stack(made)}

    def _example(self, epoch: int, index: int, batch: dict[str, Any]):
        """Views of an example, or of a random substitute if it is unreadable, and the index of the one used."""
        key: tuple[int, ...] = (self.seed, epoch, index)
        chosen = index
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self.stage1.make(self.source.record(chosen), key, self.source), chosen
            except Exception as error:  # decoders raise many types; skip the image
                batch["skipped"].append((self.source.name(chosen), _reason(error)))
            key = (self.seed, epoch, index, attempt)
            chosen = int(np.random.default_rng(key).integers(len(self.source)))
        batch["exhausted"] = True
        return self.stage1.blank(), index


class _StreamViews(Dataset):
    """A `StreamBatch` -> arrays of its views; unreadable examples are replaced by readable ones of the same batch."""

    def __init__(self, source: ImageStream, stage1: Stage1, seed: int):
        self.source, self.stage1, self.seed = source, stage1, seed

    def __getitems__(self, batch: StreamBatch) -> dict[str, Any]:
        skipped = list(batch.failures)
        keys = [(self.seed, item.epoch, item.shard, item.offset) for item in batch.items]
        made = [self._try(item, key, skipped) for item, key in zip(batch.items, keys, strict=True)]
        good = [item for item, views in zip(batch.items, made, strict=True) if views is not None]
        shown = list(batch.items)
        for i, key in enumerate(keys):
            if made[i] is None and good:
                shown[i] = good[int(np.random.default_rng((*key, 1)).integers(len(good)))]
                made[i] = self._try(shown[i], (*key, 1), skipped)
        return {
            "skipped": skipped,
            "exhausted": any(views is None for views in made),
            "cursors": batch.cursors,
            "index": np.array(self._rows(shown) if self.stage1.numbered else list(map(_place, batch.items))),
            **self.stage1.stack([views or self.stage1.blank() for views in made]),
        }

    def _rows(self, items: list[StreamItem]) -> list[int]:
        """Dataset rows of items. Examples added to a shard after it was counted have no row and share its last one."""
        starts = self.source.rows()
        return [max(0, min(starts[item.shard] + item.offset, starts[item.shard + 1] - 1)) for item in items]

    def _try(self, item: StreamItem, key: tuple[int, ...], skipped: list[tuple[str, str]]):
        """Views of an item, or None when it cannot be read."""
        try:
            return self.stage1.make(item.record, key, self.source)
        except Exception as error:  # decoders raise many types
            skipped.append((self.source.item_name(item), _reason(error)))
            return None


def _place(item: StreamItem) -> int:
    return item.shard << 32 | item.offset


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _hand_over(batch: Any) -> dict[str, Any]:
    return share(as_tensors(batch))


def as_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in batch.items()}
