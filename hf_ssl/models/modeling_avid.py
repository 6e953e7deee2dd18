# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""AVID and AVID + CMA (https://huggingface.co/papers/2004.12943): match each video with its audio among many others.

The objective is noise-contrastive estimation against a memory of all instances: two logistic terms with one constant
normalizer Z, not a softmax. CMA also pulls together instances that look and sound alike.

Deviations from the released code:
- Negatives are drawn for the global batch, so results do not depend on the number of processes.
- The memory is updated after the optimizer step, with embeddings from before it, so that all micro-batches of a step
  see the same memory. If a batch has several clips of an instance, the last one is stored.
- The released CMA uses cross-modal scores for `within_coeff`, too. Here it weights within-modal scores.
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
from transformers.utils.generic import can_return_tuple

from .configuration_avid import AvidConfig
from .distributed_ssl import all_reduce_mean, at_least_float32, full_precision
from .memory_avid import REMEMBERED, Memory
from .modeling_ssl import MLP, SSLForPreTrainingOutput, SSLPreTrainedModel
from .towers_avid import AudioTower, AvidOutput, VideoTower


# Score -> (modality of the anchor, modality of the memory, index of the normalizer).
SCORES = {
    "v2a": ("video", "audio", 0),
    "a2v": ("audio", "video", 0),
    "v2v": ("video", "video", 1),
    "a2a": ("audio", "audio", 2),
}


def nce_loss(positive: torch.Tensor, negative: torch.Tensor, z: torch.Tensor | float) -> torch.Tensor:
    """Noise-contrastive estimation with uniform noise: mean over positives, sum over negatives, mean over the batch.

    -log(e^s / (e^s + K Z)) for positive scores s, -log(K Z / (e^s + K Z)) for negative ones, in a form that cannot
    overflow.

    Args:
        positive: (B, P) scores of the anchors (cosine over temperature).
        negative: (B, K) scores of the anchors.
        z: the normalizer, constant over a run.
    """
    with full_precision(positive):
        positive, negative = at_least_float32(positive), at_least_float32(negative)
        z = torch.as_tensor(z, dtype=positive.dtype, device=positive.device)
        offset = z.log() + math.log(negative.shape[1])
        each = F.softplus(offset - positive).mean(1) + F.softplus(negative - offset).sum(1)
        return all_reduce_mean(each.mean())


@dataclass
class AvidForPreTrainingOutput(SSLForPreTrainingOutput):
    """Output of AVID: `embeddings` (B, 2, D) of video and audio, `features` (B, 1, F) of the video tower.

    Args:
        audio_features (`torch.FloatTensor` of shape `(B, 1, F)`): pooled features of the audio tower, detached.
    """

    audio_features: torch.FloatTensor | None = None


class AvidPreTrainedModel(SSLPreTrainedModel):
    """Base of AVID's models, with torch's default initialization."""

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
    """Both towers with their projectors.

    Args:
        modalities: towers to build, from "video" and "audio".
        heads: add the projectors, whose outputs are comparable across modalities.
    """

    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", *REMEMBERED]

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
        """Load a timm state dict into the video tower, which applies it to single frames.

        Raises:
            ValueError: the tower is not a timm model, or tensors are missing, unexpected or of the wrong shape.
        """
        tower = getattr(self, "video_tower", None)
        if tower is None or tower.published:
            raise ValueError(f"{source} needs a timm video tower; set video_backbone to its name.")
        tower.backbone.load_encoder(tensors, source)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> AvidOutput:
        """Frames (B, T, C, H, W), log spectrograms (B, frames, bands), or both."""
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
    """Both towers, and the objective against a memory of all instances.

    The training loop must call the hooks: they find CMA's positive sets before a step and update the memory after it.
    """

    title = "AVID"
    paper = "https://huggingface.co/papers/2004.12943"
    citation = "morgado2021avid"
    views = "avid"
    collapse = "The embeddings of all clips stay nearly the same, and video_to_audio_r1 stays at chance."

    _keys_to_ignore_on_load_missing = REMEMBERED

    def __init__(self, config: AvidConfig):
        super().__init__(config)
        self.encoder = AvidModel(config)
        self.memory = Memory(self, config) if config.num_instances else None
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
        """Frames (B, T, C, H, W), log spectrograms (B, frames, bands), and dataset indices (B,).

        Without `indices` there is no loss; with one modality, only its embeddings and features.

        Raises:
            ValueError: `indices` for a model without a memory.
            RuntimeError: the loop does not call the hooks, so the memory would never be updated.
        """
        output = self.encoder(pixel_values_videos, input_values)
        video, audio = output.video_embeds, output.audio_embeds
        loss = None
        if indices is not None:
            if self.memory is None:
                raise ValueError("The loss needs memories; set num_instances to the number of clips in the data.")
            loss = self.objective(video, audio, indices)
            if self.training:
                self.memory.keep(video, audio, indices)
        pooled = [output.video_pooler_output, output.audio_pooler_output]
        features = [None if x is None else x.detach()[:, None] for x in pooled]
        embeddings = torch.stack([x for x in (video, audio) if x is not None], 1)
        return AvidForPreTrainingOutput(
            loss=loss, embeddings=embeddings, features=features[0], audio_features=features[1]
        )

    def objective(self, video: torch.Tensor, audio: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Weighted mean of the terms (sections 3.2 and 4.2), each the mean of two scores' losses."""
        config, own, z = self.config, indices[:, None], {"video": video, "audio": audio}
        positives = self.memory.positives(indices)
        negatives = self.memory.draw_negatives(own, positives)
        cross, within = ("v2a", "a2v"), ("v2v", "a2a")
        terms = [
            ("cross", config.cross_coeff, cross, own, negatives),
            ("within", config.within_coeff, within, own, negatives),
        ]
        if positives is not None:
            few = negatives[:, : config.num_negatives_within]
            terms.append(("cross_positive", config.cross_positive_coeff, cross, positives, negatives))
            terms.append(("within_positive", config.within_positive_coeff, within, positives, few))
        total, weights = video.new_zeros(()), 0.0
        with full_precision(video):
            for name, coeff, scores, rows, noise in terms:
                if coeff > 0:
                    term = sum(self._score_loss(score, z, rows, noise) for score in scores) / 2
                    total, weights = total + coeff * term, weights + coeff
                    self._terms[name] = term.detach()
        return total / weights

    def _score_loss(
        self, score: str, z: dict[str, torch.Tensor], positives: torch.Tensor, negatives: torch.Tensor
    ) -> torch.Tensor:
        anchor, remembered, entry = SCORES[score]
        positive, negative = self.memory.scores(z[anchor], remembered, positives, negatives)
        entry = entry if self.config.partition == "per_term" else 0
        return nce_loss(positive, negative, self.memory.normalizer(entry, negative))

    def before_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        if self.memory is not None:
            self.memory.before_step(step, steps_per_epoch)

    def after_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        if self.memory is not None:
            self.memory.after_step()

    def before_simulation(self) -> None:
        if self.memory is not None:
            self.memory.assume_read()

    def prepare(self, missing: set[str], batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """Fill rows missing from a warm start with the current embeddings of all clips."""
        if missing & {"video_memory", "audio_memory"}:
            for batch in batches:
                embeddings = self(batch["pixel_values_videos"], batch["input_values"]).embeddings
                self.memory.update(*embeddings.unbind(1), batch["indices"], momentum=0.0)

    def metrics(self) -> dict[str, float]:
        """Terms of the last batch's loss, and the known normalizers."""
        found = {f"loss_{name}": term.item() for name, term in self._terms.items()}
        known = sorted(self.memory.known) if self.memory is not None else []
        names = ("z", "z_video", "z_audio")
        return found | {names[entry]: self.normalizer[entry].item() for entry in known}

    def export_parts(self) -> tuple[AvidConfig, dict[str, torch.Tensor]]:
        """Drop the memory, which is only useful with the same clips."""
        config = copy.deepcopy(self.config)
        config.num_instances = 0
        memory = dict(self.named_buffers(recurse=False))
        return config, {name: tensor for name, tensor in self.state_dict().items() if name not in memory}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.memory is not None:
            self.memory.initialize()


class _AvidClassifier(AvidPreTrainedModel):
    """One tower and a linear classifier after dropout, as published for fine-tuning."""

    accepts_loss_kwargs = True
    modality: str
    dropout = 0.5
    _keys_to_ignore_on_load_unexpected = [r"_projector\.", *REMEMBERED]

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
        """Frames (B, T, C, H, W), labels (B,) -> `logits` (B, num_labels) and `loss`."""
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
        """Log spectrograms (B, frames, bands), labels (B,) -> `logits` (B, num_labels) and `loss`."""
        return self._classify({"input_values": input_values}, labels, output_hidden_states, **kwargs)
