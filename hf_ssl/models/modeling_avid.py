# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""AVID and AVID + CMA (https://huggingface.co/papers/2004.12943): tell the sound of a video from those of others.

The objective is noise-contrastive estimation against memories of all instances: two logistic terms with one constant
normaliser Z, not a softmax. CMA then also draws together instances that look and sound alike.

Deviations from the released code: negatives are drawn for the global batch, so that nothing depends on the number of
processes; memories are updated after the optimiser's step, with the embeddings from before it, so that accumulated
micro-batches see one memory; of several clips of one instance in a batch the last one is remembered. The released CMA
also scores cross-modal pairs where instances are to be discriminated within a modality; here `within_coeff` does what
it says.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_avid import AvidConfig
from .distributed_ssl import all_reduce_mean, at_least_float32, full_precision, gather_batch, rank, world_size
from .modeling_ssl import MLP, SSLForPreTrainingOutput, SSLPreTrainedModel
from .towers_avid import AudioTower, VideoTower


_REMEMBERED = [r"_memory$", r"^positive_set$", r"^normalizer$", r"^draw_seed$"]
_SIMILARITIES = 2**26  # held at once while positives are looked for
_UNREMEMBERED = 512  # batches of one optimiser step, at most
_FULL_PRODUCT = 32  # memories of so many times the scored rows are multiplied whole: cheaper than copying rows


def nce_loss(positive: torch.Tensor, negative: torch.Tensor, z: torch.Tensor | float) -> torch.Tensor:
    """Noise-contrastive estimation with uniform noise: mean over positives, sum over negatives, mean over the batch.

    -log(e^s / (e^s + K Z)) for positive scores s, -log(K Z / (e^s + K Z)) for negative ones, in a form that cannot
    overflow.

    Args:
        positive: (B, P) scores of the anchors, cosines over the temperature.
        negative: (B, K).
        z: the normaliser, constant over a run.
    """
    with full_precision(positive):
        positive, negative = at_least_float32(positive), at_least_float32(negative)
        z = torch.as_tensor(z, dtype=positive.dtype, device=positive.device)
        offset = z.log() + math.log(negative.shape[1])
        each = F.softplus(offset - positive).mean(1) + F.softplus(negative - offset).sum(1)
        return all_reduce_mean(each.mean())


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


@dataclass
class AvidOutput(ModelOutput):
    """Output of both towers; of one, when only its input was given.

    Args:
        video_embeds, audio_embeds (`torch.FloatTensor` of shape `(B, D)`): unit vectors that can be compared.
        video_pooler_output, audio_pooler_output (`torch.FloatTensor` of shape `(B, F)`): features for other tasks.
        video_last_hidden_state (`torch.FloatTensor` of shape `(B, F, t, h, w)`): map of the video tower.
        audio_last_hidden_state (`torch.FloatTensor` of shape `(B, F, h, w)`): map of the audio tower.
        video_hidden_states, audio_hidden_states (`tuple`, *optional*): maps of all stages.
    """

    video_embeds: torch.FloatTensor | None = None
    audio_embeds: torch.FloatTensor | None = None
    video_pooler_output: torch.FloatTensor | None = None
    audio_pooler_output: torch.FloatTensor | None = None
    video_last_hidden_state: torch.FloatTensor | None = None
    audio_last_hidden_state: torch.FloatTensor | None = None
    video_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    audio_hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class AvidForPreTrainingOutput(SSLForPreTrainingOutput):
    """Output of AVID: `embeddings` (B, 2, D) are video's and audio's, `features` (B, 1, F) the video tower's.

    Args:
        audio_features (`torch.FloatTensor` of shape `(B, 1, F)`): pooled features of the audio tower, detached.
    """

    audio_features: torch.FloatTensor | None = None


class AvidPreTrainedModel(SSLPreTrainedModel):
    """Base of AVID's models: layers start as torch's."""

    config: AvidConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ("video", "audio")
    auto_classes = {
        "AutoModel": "Model",
        "AutoModelForPreTraining": "ForPreTraining",
        "AutoModelForVideoClassification": "ForVideoClassification",
        "AutoModelForAudioClassification": "ForAudioClassification",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, _ConvNd):
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
        else:
            super()._init_weights(module)


class AvidModel(AvidPreTrainedModel):
    """Both towers with their heads.

    Args:
        modalities: towers to build, of "video" and "audio".
        heads: with the projectors, whose outputs can be compared.
    """

    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", *_REMEMBERED]

    def __init__(self, config: AvidConfig, modalities: tuple[str, ...] = ("video", "audio"), heads: bool = True):
        super().__init__(config)
        for modality in modalities:
            tower = {"video": VideoTower, "audio": AudioTower}[modality](config)
            self.add_module(f"{modality}_tower", tower)
            if heads:
                norm = {"batch_norm": config.head_batch_norm, "hidden_bias": True, "output_bias": True}
                self.add_module(f"{modality}_projector", MLP(tower.num_features, config.projector_dims, **norm))
        self.post_init()

    def load_encoder(self, tensors: dict[str, torch.Tensor], source: str) -> None:
        """Give the video tower the tensors of a timm network, which sees single frames.

        Raises:
            ValueError: it is no timm network, or tensors are missing, left over or of another shape.
        """
        tower = getattr(self, "video_tower", None)
        if tower is None or tower.published:
            raise ValueError(f"{source} needs a video tower of timm; set video_backbone to its name.")
        tower.backbone.load_encoder(tensors, source)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> AvidOutput:
        """Frames (B, T, C, H, W) and log spectrograms (B, frames, bands), or one of them.

        Raises:
            ValueError: neither.
        """
        if pixel_values_videos is None and input_values is None:
            raise ValueError("AvidModel needs pixel_values_videos, input_values, or both.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        found = {}
        for modality, inputs in (("video", pixel_values_videos), ("audio", input_values)):
            if inputs is None:
                continue
            last, pooled, hidden = getattr(self, f"{modality}_tower")(inputs, output_hidden_states)
            found |= {
                f"{modality}_last_hidden_state": last,
                f"{modality}_pooler_output": pooled,
                f"{modality}_hidden_states": hidden,
            }
            projector = getattr(self, f"{modality}_projector", None)
            if projector is not None:
                found[f"{modality}_embeds"] = F.normalize(at_least_float32(projector(pooled)), dim=1)
        return AvidOutput(**found)


class AvidForPreTraining(AvidPreTrainedModel):
    """Both towers and a memory of every instance's embeddings in either modality.

    A training loop calls the hooks: CMA's positive sets are found before a step, the memories are updated after it.
    Everything remembered is a buffer, the same on every process.
    """

    title = "AVID"
    paper = "https://huggingface.co/papers/2004.12943"
    citation = "morgado2021avid"
    views = "avid"
    collapse = "The embeddings of all clips stay nearly the same, and video_to_audio_r1 stays at chance."

    _keys_to_ignore_on_load_missing = _REMEMBERED

    def __init__(self, config: AvidConfig):
        super().__init__(config)
        self.encoder = AvidModel(config)
        self._excluded = (config.num_positives if config.cma else 0) + (not config.cma or config.exclude_anchor)
        if config.num_instances:
            if config.num_instances <= self._excluded:
                raise ValueError(
                    f"num_instances={config.num_instances} leaves no negatives beside {self._excluded} that are not "
                    "drawn; use more clips, or a lower num_positives."
                )
            shape = (config.num_instances, config.projector_dims[-1])
            for name in ("video_memory", "audio_memory"):
                self.register_buffer(name, torch.zeros(shape, dtype=getattr(torch, config.memory_dtype)))
            self.register_buffer("normalizer", torch.full((3,), -1.0))  # of cross, video and audio scores
            self.register_buffer("draw_seed", torch.zeros((), dtype=torch.long))
            if config.cma:
                empty = torch.full((config.num_instances, config.num_positives), -1, dtype=torch.int32)
                self.register_buffer("positive_set", empty)
        self._step = self._micro = 0
        self._seed: int | None = None
        self._found = not config.cma  # the positive sets
        self._known: set[int] = set()  # normalisers that are no longer to be estimated
        self._seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._terms: dict[str, torch.Tensor] = {}
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        indices: torch.Tensor | None = None,
        **kwargs,
    ) -> AvidForPreTrainingOutput:
        """Frames (B, T, C, H, W), log spectrograms (B, frames, bands), and the numbers (B,) of their instances.

        Without `indices` there is no loss; with one modality, its embeddings and features only.

        Raises:
            ValueError: `indices` for a model without memories.
            RuntimeError: a loop without the hooks, in which the memories would never move.
        """
        output = self.encoder(pixel_values_videos, input_values)
        video, audio = output.video_embeds, output.audio_embeds
        loss = None
        if indices is not None:
            if not self.config.num_instances:
                raise ValueError("The loss needs memories; set num_instances to the number of clips in the data.")
            loss = self._loss(video, audio, indices)
            if self.training:
                if len(self._seen) == _UNREMEMBERED:
                    raise RuntimeError(
                        f"{_UNREMEMBERED} batches were seen and not remembered; call model.before_step and "
                        "model.after_step around every optimiser step, as hf_ssl's loop does."
                    )
                self._seen.append((video.detach(), audio.detach(), indices))
        pooled = [output.video_pooler_output, output.audio_pooler_output]
        features = [None if x is None else x.detach()[:, None] for x in pooled]
        embeddings = torch.stack([x for x in (video, audio) if x is not None], 1)
        return AvidForPreTrainingOutput(
            loss=loss, embeddings=embeddings, features=features[0], audio_features=features[1]
        )

    def _loss(self, video: torch.Tensor, audio: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """The weighted mean of the terms (section 3.2 and 4.2), each itself a mean over the modalities."""
        self._recall()
        if not self._found:
            raise ValueError("CMA has no positive sets yet; call before_step before every step, or find_positives.")
        config, own = self.config, indices[:, None]
        positives = self.positive_set[indices].long() if config.cma else None
        negatives = self._draw_negatives(own, positives)
        terms = [("cross", config.cross_coeff, own, negatives), ("within", config.within_coeff, own, negatives)]
        if config.cma:
            few = negatives[:, : config.num_negatives_within]
            terms.append(("cross_positive", config.cross_positive_coeff, positives, negatives))
            terms.append(("within_positive", config.within_positive_coeff, positives, few))
        total, weights = video.new_zeros(()), 0.0
        with full_precision(video):
            for name, coeff, rows, noise in terms:
                if coeff > 0:
                    crossed = name.startswith("cross")
                    pairs = [(video, self.audio_memory, 0), (audio, self.video_memory, 0)]
                    if not crossed:
                        pairs = [(video, self.video_memory, 1), (audio, self.audio_memory, 2)]
                    term = sum(self._term(z, memory, rows, noise, group) for z, memory, group in pairs) / 2
                    total, weights = total + coeff * term, weights + coeff
                    self._terms[name] = term.detach()
        return total / weights

    def _term(self, z, memory, positives, negatives, group: int) -> torch.Tensor:
        scores = memory_scores(z, memory, torch.cat([positives, negatives], 1), self.config.temperature)
        positive, negative = scores.split([positives.shape[1], negatives.shape[1]], 1)
        group = group if self.config.partition == "per_term" else 0
        return nce_loss(positive, negative, self._normalizer(group, negative))

    @torch.no_grad()
    def _normalizer(self, group: int, negative: torch.Tensor) -> torch.Tensor:
        """Z: the mean exponential score of the noise in the first batch that needs it; constant from then on."""
        if group not in self._known:
            z = all_reduce_mean(negative.exp().mean())
            if not self.training:
                return z
            self.normalizer[group] = z
            self._known.add(group)
        return self.normalizer[group]

    def _draw_negatives(self, own: torch.Tensor, positives: torch.Tensor | None) -> torch.Tensor:
        """(B, K) instances, uniform with replacement; drawn for the global batch, of which this process has a part."""
        excluded = own
        if positives is not None:
            excluded = torch.cat([positives, own], 1).sort(1).values if self.config.exclude_anchor else positives
        key = (self._seed * 1_000_003 + self._step) * 1_009 + self._micro
        self._micro += 1
        first = rank() * len(own) * self.config.num_negatives  # numbers of the global batch, in its order
        counters = torch.arange(first, first + len(own) * self.config.num_negatives, device=own.device)
        draws = random_numbers(counters, key, self.config.num_instances - excluded.shape[1])
        return negatives_of_draws(draws.view(len(own), -1), excluded)

    def _recall(self) -> None:
        """What is remembered in tensors and decides what happens; read once, since that waits for the device."""
        if self._seed is None:
            self._seed = int(self.draw_seed)
            self._known = {group for group, z in enumerate(self.normalizer.tolist()) if z >= 0}
            self._found = self._found or bool(self.positive_set[0, 0] >= 0)

    def before_simulation(self) -> None:
        self._seed, self._known, self._found = 0, {0, 1, 2}, True

    def before_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        """Finds CMA's positive sets when it is time."""
        self._step, self._micro = step, 0
        if self.config.cma:
            every = max(1, round(self.config.positives_every_epochs * steps_per_epoch))
            self._recall()
            if (step and step % every == 0) or not self._found:
                self.find_positives()

    @torch.no_grad()
    def find_positives(self) -> None:
        """CMA's positive sets by the present memories; every process looks for a part."""
        total = len(self.video_memory)
        share = -(-total // world_size())
        part = torch.arange(rank() * share, (rank() + 1) * share, device=self.video_memory.device).clamp(max=total - 1)
        config = self.config
        memories = (self.video_memory, self.audio_memory)
        found = cma_positives(*memories, config.num_positives, config.agreement, part)
        self.positive_set.copy_(gather_batch(found)[:total])
        self._found = True

    @torch.no_grad()
    def after_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        """row <- unit(m row + (1 - m) z) in either memory, for every instance of the global batch."""
        for video, audio, indices in self._seen:
            self.remember(video, audio, indices, self.config.memory_momentum)
        self._seen.clear()

    @torch.no_grad()
    def remember(self, video: torch.Tensor, audio: torch.Tensor, indices: torch.Tensor, momentum: float) -> None:
        """Move the rows of this batch's instances, on all processes, towards their embeddings."""
        indices = gather_batch(indices)
        order = torch.arange(len(indices), device=indices.device)
        # Of clips of one instance all become the last one: so nothing waits for the device, as `unique` would.
        last = order.new_zeros(len(self.video_memory)).scatter_reduce_(0, indices, order, "amax")[indices]
        for memory, z in ((self.video_memory, video), (self.audio_memory, audio)):
            z = at_least_float32(gather_batch(z)[last])
            rows = momentum * memory[indices].to(z.dtype) + (1 - momentum) * z
            memory[indices] = F.normalize(rows, dim=1).to(memory.dtype)

    def prepare(self, missing: set[str], batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """Memories that a warm start did not find become the present embeddings of all clips."""
        if missing & {"video_memory", "audio_memory"}:
            for batch in batches:
                embeddings = self(batch["pixel_values_videos"], batch["input_values"]).embeddings
                self.remember(*embeddings.unbind(1), batch["indices"], momentum=0.0)

    def metrics(self) -> dict[str, float]:
        """The terms of the last batch's loss, and the normalisers that are known."""
        names = ("z", "z_video", "z_audio")
        found = {f"loss_{name}": term.item() for name, term in self._terms.items()}
        return found | {names[group]: self.normalizer[group].item() for group in sorted(self._known)}

    def export_parts(self) -> tuple[AvidConfig, dict[str, torch.Tensor]]:
        """Memories are of use only beside the very clips, so an export has none."""
        config = copy.deepcopy(self.config)
        config.num_instances = 0
        memories = dict(self.named_buffers(recurse=False))
        return config, {name: tensor for name, tensor in self.state_dict().items() if name not in memories}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.config.num_instances:
            for memory in (self.video_memory, self.audio_memory):
                rows = torch.randn(memory.shape, device=memory.device)
                init.copy_(memory, F.normalize(rows, dim=1).to(memory.dtype))
            init.constant_(self.normalizer, -1.0)
            init.copy_(self.draw_seed, torch.randint(2**31, ()))
            if self.config.cma:
                init.constant_(self.positive_set, -1)


class _AvidClassifier(AvidPreTrainedModel):
    """One tower and a linear classifier behind dropout, as published for fine-tuning."""

    accepts_loss_kwargs = True
    modality: str
    dropout = 0.5
    _keys_to_ignore_on_load_unexpected = [r"_projector\.", *_REMEMBERED]

    def __init__(self, config: AvidConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.encoder = AvidModel(config, (self.modality,), heads=False)
        width = getattr(self.encoder, f"{self.modality}_tower").num_features
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def _classify(self, inputs: dict, labels, output_hidden_states, **kwargs) -> ImageClassifierOutputWithNoAttention:
        output = self.encoder(**inputs, output_hidden_states=output_hidden_states)
        pooled = F.dropout(output[f"{self.modality}_pooler_output"], self.dropout, self.training)
        logits = self.classifier(pooled)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        hidden = output.get(f"{self.modality}_hidden_states")
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=hidden)


class AvidForVideoClassification(_AvidClassifier):
    modality = "video"
    input_modalities = ("video",)
    _keys_to_ignore_on_load_unexpected = [r"audio_tower\.", *_AvidClassifier._keys_to_ignore_on_load_unexpected]

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        """Frames (B, T, C, H, W), labels (B,) -> `logits` (B, num_labels) and their loss."""
        return self._classify({"pixel_values_videos": pixel_values_videos}, labels, output_hidden_states, **kwargs)


class AvidForAudioClassification(_AvidClassifier):
    modality = "audio"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    _keys_to_ignore_on_load_unexpected = [r"video_tower\.", *_AvidClassifier._keys_to_ignore_on_load_unexpected]

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        """Log spectrograms (B, frames, bands), labels (B,) -> `logits` (B, num_labels) and their loss."""
        return self._classify({"input_values": input_values}, labels, output_hidden_states, **kwargs)
