# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""AVID's memory bank of all instances, the source of negatives and of CMA's positives.

This file ships inside model repositories, so it imports from its siblings only.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_avid import AvidConfig
from .distributed_ssl import all_reduce_mean, at_least_float32, gather_batch, rank, world_size


REMEMBERED = [r"_memory$", r"^positive_set$", r"^normalizer$", r"^draw_seed$"]  # buffers of `Memory`
_SIMILARITIES = 2**26  # similarities held at once during the search for positives
_UNREMEMBERED = 512  # maximum batches per optimizer step
_FULL_PRODUCT = 32  # up to this many times the scored rows, one product with the whole memory beats copying rows


@torch.no_grad()
def cma_positives(
    video_memory: torch.Tensor,
    audio_memory: torch.Tensor,
    num_positives: int = 32,
    agreement: str = "consensus",
    queries: torch.Tensor | None = None,
) -> torch.Tensor:
    """Find the instances most similar to each query (section 4.2), without a matrix of all pairs.

    Args:
        video_memory, audio_memory: (N, D) unit rows.
        agreement: similarity in both modalities (`"consensus"`, their minimum), in either (`"union"`, their maximum),
            or in one of them (`"video"`, `"audio"`).
        queries: (Q,) instances to find positives for; all by default.

    Returns:
        (Q, num_positives) sorted indices; never the query itself.

    Raises:
        ValueError: no more than `num_positives` instances.
    """
    total = len(video_memory)
    if total <= num_positives:
        raise ValueError(f"num_positives={num_positives} needs more instances than {total}; lower it.")
    queries = torch.arange(total, device=video_memory.device) if queries is None else queries
    memories = {"video": video_memory, "audio": audio_memory}
    if agreement in memories:
        memories = {agreement: memories[agreement]}
    found = []
    for block in queries.split(max(1, _SIMILARITIES // total)):
        parts = [at_least_float32(memory[block]) @ at_least_float32(memory).T for memory in memories.values()]
        similarity = parts[0]
        if len(parts) == 2:
            similarity = torch.minimum(*parts) if agreement == "consensus" else torch.maximum(*parts)
        similarity.scatter_(1, block[:, None], -math.inf)
        found.append(similarity.topk(num_positives, dim=1).indices.sort(dim=1).values)
    return torch.cat(found)


def random_numbers(counters: torch.Tensor, key: int, limit: int) -> torch.Tensor:
    """Integers in [0, limit), each a function of its counter and the key only (SplitMix64), the same on any device."""
    key = (key * 0x9E3779B97F4A7C15 + 2**63) % 2**64 - 2**63  # int64 wraps around
    x = (counters + 1) * -0x61C8864680B583EB + key
    x = (x ^ (x >> 30 & 2**34 - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 2**37 - 1)) * -0x6B2FB644ECCEEE15
    return ((x ^ (x >> 31 & 2**33 - 1)) & 2**63 - 1) % limit


def negatives_of_draws(draws: torch.Tensor, excluded: torch.Tensor) -> torch.Tensor:
    """Map draws (B, K) from the N - E allowed instances to indices in 0..N-1, skipping sorted `excluded` (B, E)."""
    shifted = excluded - torch.arange(excluded.shape[1], device=excluded.device)
    return draws + torch.searchsorted(shifted.contiguous(), draws, right=True)


def memory_scores(z: torch.Tensor, memory: torch.Tensor, rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cosine over temperature between unit vectors (B, D) and `rows` (B, M) of a memory (N, D) -> (B, M)."""
    if len(memory) <= _FULL_PRODUCT * rows.shape[1]:
        return (z @ memory.to(z.dtype).T).gather(1, rows) / temperature
    return torch.einsum("bd,bmd->bm", z, memory[rows].to(z.dtype)) / temperature


class Memory:
    """Unit embeddings (N, D) of all instances in both modalities, with the state of the objective.

    All state is in buffers, the same on every process: `video_memory`, `audio_memory`, the `normalizer` of
    cross-modal, video and audio scores, the `draw_seed`, and CMA's `positive_set`. `module` holds the buffers, so that
    their names in its state dict have no prefix.

    Raises:
        ValueError: too few instances to draw negatives from.
    """

    def __init__(self, module: nn.Module, config: AvidConfig):
        excluded = (config.num_positives if config.cma else 0) + (not config.cma or config.exclude_anchor)
        if config.num_instances <= excluded:
            raise ValueError(
                f"num_instances={config.num_instances} leaves no negatives, since {excluded} are excluded; use "
                "more clips, or lower num_positives."
            )
        self.module, self.config = module, config
        shape = (config.num_instances, config.projector_dims[-1])
        for modality in ("video", "audio"):
            rows = torch.zeros(shape, dtype=getattr(torch, config.memory_dtype))
            module.register_buffer(f"{modality}_memory", rows)
        module.register_buffer("normalizer", torch.full((3,), -1.0))
        module.register_buffer("draw_seed", torch.zeros((), dtype=torch.long))
        if config.cma:
            empty = torch.full((config.num_instances, config.num_positives), -1, dtype=torch.int32)
            module.register_buffer("positive_set", empty)
        self.step = self.micro_batch = 0
        self.seed: int | None = None  # `draw_seed`, once read
        self.known: set[int] = set()  # estimated entries of `normalizer`
        self.has_positives = not config.cma
        self.seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # batches since the last update

    def __getitem__(self, modality: str) -> torch.Tensor:
        """Rows (N, D) of "video" or "audio"."""
        return self.module.get_buffer(f"{modality}_memory")

    @torch.no_grad()
    def initialize(self) -> None:
        """Random unit rows and a random seed; clear the normalizers and positive sets."""
        for modality in ("video", "audio"):
            rows = torch.randn(self[modality].shape, device=self[modality].device)
            init.copy_(self[modality], F.normalize(rows, dim=1).to(self[modality].dtype))
        init.constant_(self.module.normalizer, -1.0)
        init.copy_(self.module.draw_seed, torch.randint(2**31, ()))
        if self.config.cma:
            init.constant_(self.module.positive_set, -1)

    def read(self) -> None:
        """Cache the buffers' values that control the flow; only once, because reading them synchronizes the device."""
        if self.seed is None:
            self.seed = int(self.module.draw_seed)
            self.known = {entry for entry, z in enumerate(self.module.normalizer.tolist()) if z >= 0}
            self.has_positives = self.has_positives or bool(self.module.positive_set[0, 0] >= 0)

    def assume_read(self) -> None:
        """For tensors without values: assume that normalizers and positive sets are known."""
        self.seed, self.known, self.has_positives = 0, {0, 1, 2}, True

    def before_step(self, step: int, steps_per_epoch: int) -> None:
        """Update CMA's positive sets when due."""
        self.step, self.micro_batch = step, 0
        if self.config.cma:
            every = max(1, round(self.config.positives_every_epochs * steps_per_epoch))
            self.read()
            if (step and step % every == 0) or not self.has_positives:
                self.find_positives()

    @torch.no_grad()
    def find_positives(self) -> None:
        """Find CMA's positive sets from the current rows; each process searches a part."""
        total, config = self.config.num_instances, self.config
        share = -(-total // world_size())
        part = torch.arange(rank() * share, (rank() + 1) * share, device=self["video"].device).clamp(max=total - 1)
        found = cma_positives(self["video"], self["audio"], config.num_positives, config.agreement, part)
        self.module.positive_set.copy_(gather_batch(found)[:total])
        self.has_positives = True

    def positives(self, indices: torch.Tensor) -> torch.Tensor | None:
        """Positive sets (B, P) of instances (B,); None without CMA."""
        self.read()
        if not self.has_positives:
            raise ValueError("CMA has no positive sets yet; call before_step before every step.")
        return self.module.positive_set[indices].long() if self.config.cma else None

    def draw_negatives(self, own: torch.Tensor, positives: torch.Tensor | None) -> torch.Tensor:
        """(B, K) instances, uniform with replacement: this process's part of the draws for the global batch."""
        self.read()
        excluded = own
        if positives is not None:
            excluded = torch.cat([positives, own], 1).sort(1).values if self.config.exclude_anchor else positives
        key = (self.seed * 1_000_003 + self.step) * 1_009 + self.micro_batch
        self.micro_batch += 1
        first = rank() * len(own) * self.config.num_negatives  # position in the global batch's draws
        counters = torch.arange(first, first + len(own) * self.config.num_negatives, device=own.device)
        draws = random_numbers(counters, key, self.config.num_instances - excluded.shape[1])
        return negatives_of_draws(draws.view(len(own), -1), excluded)

    def scores(
        self, z: torch.Tensor, modality: str, positives: torch.Tensor, negatives: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B, P) and (B, K) of anchors (B, D) against rows of one modality."""
        rows = torch.cat([positives, negatives], 1)
        scores = memory_scores(z, self[modality], rows, self.config.temperature)
        positive, negative = scores.split([positives.shape[1], negatives.shape[1]], 1)
        return positive, negative

    @torch.no_grad()
    def normalizer(self, entry: int, negative: torch.Tensor) -> torch.Tensor:
        """Z: mean exponential score of the negatives in the first batch that needs it, then constant."""
        self.read()
        if entry not in self.known:
            z = all_reduce_mean(negative.exp().mean())
            if not self.module.training:
                return z
            self.module.normalizer[entry] = z
            self.known.add(entry)
        return self.module.normalizer[entry]

    def keep(self, video: torch.Tensor, audio: torch.Tensor, indices: torch.Tensor) -> None:
        """Store a batch's embeddings until `after_step`."""
        if len(self.seen) == _UNREMEMBERED:
            raise RuntimeError(
                f"{_UNREMEMBERED} batches did not update the memory; call model.before_step and model.after_step "
                "around every optimizer step, as hf_ssl's loop does."
            )
        self.seen.append((video.detach(), audio.detach(), indices))

    def after_step(self) -> None:
        for video, audio, indices in self.seen:
            self.update(video, audio, indices, self.config.memory_momentum)
        self.seen.clear()

    @torch.no_grad()
    def update(self, video: torch.Tensor, audio: torch.Tensor, indices: torch.Tensor, momentum: float) -> None:
        """row <- unit(m row + (1 - m) z) in both modalities, for every instance of the global batch."""
        indices = gather_batch(indices)
        order = torch.arange(len(indices), device=indices.device)
        # If an instance occurs more than once, its last clip wins; unlike `unique`, this needs no device sync.
        last = order.new_zeros(self.config.num_instances).scatter_reduce_(0, indices, order, "amax")[indices]
        for memory, z in ((self["video"], video), (self["audio"], audio)):
            z = at_least_float32(gather_batch(z)[last])
            rows = momentum * memory[indices].to(z.dtype) + (1 - momentum) * z
            memory[indices] = F.normalize(rows, dim=1).to(memory.dtype)
