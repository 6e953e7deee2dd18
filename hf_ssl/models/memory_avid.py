# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""AVID's memory of every instance: what negatives are drawn from and CMA's positives are found in.

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
_SIMILARITIES = 2**26  # held at once while positives are looked for
_UNREMEMBERED = 512  # batches of one optimizer step, at most
_FULL_PRODUCT = 32  # memories of up to so many times the scored rows are multiplied whole, cheaper than copying rows


@torch.no_grad()
def cma_positives(
    video_memory: torch.Tensor,
    audio_memory: torch.Tensor,
    num_positives: int = 32,
    agreement: str = "consensus",
    queries: torch.Tensor | None = None,
) -> torch.Tensor:
    """The instances most similar to each other one (section 4.2), never with a matrix of all pairs.

    Args:
        video_memory, audio_memory: (N, D) unit rows.
        agreement: similarity in both modalities (`"consensus"`, the smaller one), in either (`"union"`, the larger
            one), or in one of them (`"video"`, `"audio"`).
        queries: (Q,) instances whose positives are wanted; all by default.

    Returns:
        (Q, num_positives) indices, sorted; never the instance itself.

    Raises:
        ValueError: not more than `num_positives` other instances.
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
    """Whole numbers below `limit`, each a function of its counter and the key alone (SplitMix64), on any device."""
    key = (key * 0x9E3779B97F4A7C15 + 2**63) % 2**64 - 2**63  # int64 wraps around
    x = (counters + 1) * -0x61C8864680B583EB + key
    x = (x ^ (x >> 30 & 2**34 - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 2**37 - 1)) * -0x6B2FB644ECCEEE15
    return ((x ^ (x >> 31 & 2**33 - 1)) & 2**63 - 1) % limit


def negatives_of_draws(draws: torch.Tensor, excluded: torch.Tensor) -> torch.Tensor:
    """Numbers (B, K) among the N - E that are left -> instances among N, passing over `excluded` (B, E), sorted."""
    shifted = excluded - torch.arange(excluded.shape[1], device=excluded.device)
    return draws + torch.searchsorted(shifted.contiguous(), draws, right=True)


def memory_scores(z: torch.Tensor, memory: torch.Tensor, rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cosines over the temperature of unit vectors (B, D) with `rows` (B, M) of a memory (N, D) -> (B, M)."""
    if len(memory) <= _FULL_PRODUCT * rows.shape[1]:
        return (z @ memory.to(z.dtype).T).gather(1, rows) / temperature
    return torch.einsum("bd,bmd->bm", z, memory[rows].to(z.dtype)) / temperature


class Memory:
    """Unit embeddings (N, D) of all instances in both modalities, and what belongs to them.

    Everything is a buffer, the same on every process: `video_memory`, `audio_memory`, the `normalizer` of cross-modal,
    video and audio scores, the `draw_seed`, and CMA's `positive_set`. `module` holds the buffers, so that their names
    in its state dict have no prefix.

    Raises:
        ValueError: too few instances to draw negatives from.
    """

    def __init__(self, module: nn.Module, config: AvidConfig):
        excluded = (config.num_positives if config.cma else 0) + (not config.cma or config.exclude_anchor)
        if config.num_instances <= excluded:
            raise ValueError(
                f"num_instances={config.num_instances} leaves no negatives beside {excluded} that are not drawn; use "
                "more clips, or a lower num_positives."
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
        self.seed: int | None = None  # `draw_seed`, once it has been read
        self.known: set[int] = set()  # entries of `normalizer` that are estimated
        self.has_positives = not config.cma
        self.seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # batches since the last update

    def __getitem__(self, modality: str) -> torch.Tensor:
        """The rows (N, D) of "video" or "audio"."""
        return self.module.get_buffer(f"{modality}_memory")

    @torch.no_grad()
    def initialize(self) -> None:
        """Random unit rows and a random seed; nothing estimated or found."""
        for modality in ("video", "audio"):
            rows = torch.randn(self[modality].shape, device=self[modality].device)
            init.copy_(self[modality], F.normalize(rows, dim=1).to(self[modality].dtype))
        init.constant_(self.module.normalizer, -1.0)
        init.copy_(self.module.draw_seed, torch.randint(2**31, ()))
        if self.config.cma:
            init.constant_(self.module.positive_set, -1)

    def read(self) -> None:
        """Read from the buffers what decides what happens; once, since that waits for the device."""
        if self.seed is None:
            self.seed = int(self.module.draw_seed)
            self.known = {entry for entry, z in enumerate(self.module.normalizer.tolist()) if z >= 0}
            self.has_positives = self.has_positives or bool(self.module.positive_set[0, 0] >= 0)

    def assume_read(self) -> None:
        """For tensors without values: everything is estimated and found."""
        self.seed, self.known, self.has_positives = 0, {0, 1, 2}, True

    def before_step(self, step: int, steps_per_epoch: int) -> None:
        """Find CMA's positive sets when it is time."""
        self.step, self.micro_batch = step, 0
        if self.config.cma:
            every = max(1, round(self.config.positives_every_epochs * steps_per_epoch))
            self.read()
            if (step and step % every == 0) or not self.has_positives:
                self.find_positives()

    @torch.no_grad()
    def find_positives(self) -> None:
        """CMA's positive sets by the present rows; every process looks for a part."""
        total, config = self.config.num_instances, self.config
        share = -(-total // world_size())
        part = torch.arange(rank() * share, (rank() + 1) * share, device=self["video"].device).clamp(max=total - 1)
        found = cma_positives(self["video"], self["audio"], config.num_positives, config.agreement, part)
        self.module.positive_set.copy_(gather_batch(found)[:total])
        self.has_positives = True

    def positives(self, indices: torch.Tensor) -> torch.Tensor | None:
        """The positive sets (B, P) of instances (B,); None without CMA."""
        self.read()
        if not self.has_positives:
            raise ValueError("CMA has no positive sets yet; call before_step before every step.")
        return self.module.positive_set[indices].long() if self.config.cma else None

    def draw_negatives(self, own: torch.Tensor, positives: torch.Tensor | None) -> torch.Tensor:
        """(B, K) instances, uniform with replacement; drawn for the global batch, of which this process has a part."""
        self.read()
        excluded = own
        if positives is not None:
            excluded = torch.cat([positives, own], 1).sort(1).values if self.config.exclude_anchor else positives
        key = (self.seed * 1_000_003 + self.step) * 1_009 + self.micro_batch
        self.micro_batch += 1
        first = rank() * len(own) * self.config.num_negatives  # numbers of the global batch, in its order
        counters = torch.arange(first, first + len(own) * self.config.num_negatives, device=own.device)
        draws = random_numbers(counters, key, self.config.num_instances - excluded.shape[1])
        return negatives_of_draws(draws.view(len(own), -1), excluded)

    def scores(
        self, z: torch.Tensor, modality: str, positives: torch.Tensor, negatives: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B, P) and (B, K) of anchors (B, D) with rows of one modality."""
        rows = torch.cat([positives, negatives], 1)
        scores = memory_scores(z, self[modality], rows, self.config.temperature)
        positive, negative = scores.split([positives.shape[1], negatives.shape[1]], 1)
        return positive, negative

    @torch.no_grad()
    def normalizer(self, entry: int, negative: torch.Tensor) -> torch.Tensor:
        """Z: the mean exponential score of the noise in the first batch that needs it; constant from then on."""
        self.read()
        if entry not in self.known:
            z = all_reduce_mean(negative.exp().mean())
            if not self.module.training:
                return z
            self.module.normalizer[entry] = z
            self.known.add(entry)
        return self.module.normalizer[entry]

    def keep(self, video: torch.Tensor, audio: torch.Tensor, indices: torch.Tensor) -> None:
        """Keep the embeddings of a batch until `after_step`."""
        if len(self.seen) == _UNREMEMBERED:
            raise RuntimeError(
                f"{_UNREMEMBERED} batches were seen and not remembered; call model.before_step and model.after_step "
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
        # Of clips of one instance all become the last one: so nothing waits for the device, as `unique` would.
        last = order.new_zeros(self.config.num_instances).scatter_reduce_(0, indices, order, "amax")[indices]
        for memory, z in ((self["video"], video), (self["audio"], audio)):
            z = at_least_float32(gather_batch(z)[last])
            rows = momentum * memory[indices].to(z.dtype) + (1 - momentum) * z
            memory[indices] = F.normalize(rows, dim=1).to(memory.dtype)
