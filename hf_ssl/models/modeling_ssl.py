# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Shared by the models of all methods: encoder, MLP, classifier, hooks.

This file ships inside model repositories, so it imports from its siblings only.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutputWithNoAttention
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbones_ssl import backbone_blocks, create_backbone, load_backbone, timm_fields, use_checkpointing
from .configuration_ssl import SSLConfig
from .initialization_ssl import init_as_timm, init_as_torchvision, init_linear_as_torch, init_norm, init_remaining


@dataclass
class SSLForPreTrainingOutput(ModelOutput):
    """Output of every method.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): loss of the global batch; `None` for a single view.
        embeddings (`torch.FloatTensor` of shape `(B, V, D)`): the vectors that the loss compares.
        features (`torch.FloatTensor` of shape `(B, V, F)`): pooled backbone features, detached.
    """

    loss: torch.FloatTensor | None = None
    embeddings: torch.FloatTensor | None = None
    features: torch.FloatTensor | None = None


class MLP(nn.Sequential):
    """Linear layers with BatchNorm and ReLU between them; (N, in_dim) -> (N, dims[-1]).

    Args:
        batch_norm: use BatchNorm in the hidden layers.
        hidden_bias, output_bias: use a bias in the hidden layers, in the last layer.
    """

    def __init__(
        self,
        in_dim: int,
        dims: list[int] | tuple[int, ...],
        *,
        batch_norm: bool = True,
        hidden_bias: bool = False,
        output_bias: bool = False,
    ):
        layers: list[nn.Module] = []
        for dim in dims[:-1]:
            layers.append(nn.Linear(in_dim, dim, bias=hidden_bias))
            if batch_norm:
                layers.append(nn.BatchNorm1d(dim))
            layers.append(nn.ReLU(inplace=True))
            in_dim = dim
        layers.append(nn.Linear(in_dim, dims[-1], bias=output_bias))
        super().__init__(*layers)


class SSLPreTrainedModel(PreTrainedModel):
    """Base of all models. To write a new method, read this first.

    A method is a configuration and an `XForPreTraining`, whose `forward` returns an `SSLForPreTrainingOutput`. Its
    `encoder` is an `SSLModel`. All state kept between steps must be parameters or buffers, so that checkpoints are
    complete.

    Class attributes describe the method: `title`, its name in model cards; `paper`, a URL; `citation`, BibTeX (ours
    are keys of `model_cards/citations.bib`); `views`, its default views preset; `collapse`, one sentence on how to
    recognize a collapsed run.

    A method may override seven hooks. `step` counts optimizer steps from 0.

    - `before_step(step, num_steps, steps_per_epoch)`: before the first forward pass of a step.
    - `before_optimizer_step(step, num_steps, steps_per_epoch)`: after the backward pass, when gradients are those of
      the global batch; for instance, to drop some of them.
    - `after_step(step, num_steps, steps_per_epoch)`: after the optimizer step; for instance, to update targets.
    - `metrics()`: scalars of the last step to log.
    - `prepare(missing, batches)`: once before the first step of a new run, in evaluation mode, without gradients.
      `missing` names the buffers that the weights of `train.init_from` lacked; `batches` iterates over the inputs of
      all examples and loads them lazily.
    - `export_parts()`: the configuration and state dict to publish, without training-only parts.
    - `before_simulation()`: `hf-ssl plan` runs a step on tensors without values. Set here what the first step would
      compute from values.

    A module named `target_x` is the target network of module `x`. It starts as a copy, gets no gradient, and is
    updated by `update_targets(tau)` or `copy_to_targets()`. Other parameters frozen in `__init__` stay frozen, too.
    """

    title = ""
    paper = ""
    citation = ""
    views = ""
    collapse = ""
    config: SSLConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    auto_classes = {
        "AutoModel": "Model",
        "AutoModelForPreTraining": "ForPreTraining",
        "AutoModelForImageClassification": "ForImageClassification",
    }
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a batch mean, so Trainer must divide it by the accumulation steps
    _supports_sdpa = True  # timm chooses its own attention
    _checkpointing = False

    def get_input_embeddings(self):
        return None

    def before_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None: ...

    def before_optimizer_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None: ...

    def after_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}

    def prepare(self, missing: set[str], batches: Iterable[dict[str, torch.Tensor]]) -> None: ...

    def export_parts(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        return self.config, self.state_dict()

    def before_simulation(self) -> None: ...

    def post_init(self) -> None:
        """Initialize and freeze targets, and record all frozen parameters so that loading can freeze them again."""
        super().post_init()
        self.copy_to_targets()
        self.freeze_targets()
        self._frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]

    def target_pairs(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Map from each target parameter's name to (online, target).

        Buffers are not paired: a target normalizes by its own batches and keeps its own running statistics.
        """
        own = dict(self.named_parameters())
        names = {name: name.removeprefix("target_") for name in own if name.startswith("target_")}
        if alone := set(names.values()) - own.keys():
            raise ValueError(f"target_{min(alone)} has no online parameter {min(alone)} to follow; rename its module.")
        return {name: (own[online], own[name]) for name, online in names.items()}

    @torch.no_grad()
    def update_targets(self, tau: float) -> None:
        """target <- tau target + (1 - tau) online."""
        online, target = zip(*self.target_pairs().values(), strict=True)
        torch._foreach_lerp_(list(target), list(online), 1 - tau)

    @torch.no_grad()
    def copy_to_targets(self, names: set[str] | None = None) -> None:
        """target <- online, for the target parameters in `names`, or for all if None."""
        for name, (online, target) in self.target_pairs().items():
            if names is None or name in names:
                target.copy_(online)

    def freeze_targets(self) -> None:
        """Freeze target parameters."""
        for _, target in self.target_pairs().values():
            target.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model.copy_to_targets(set(info["missing_keys"]))
        for name in model._frozen:  # loading resets requires_grad
            model.get_parameter(name).requires_grad_(False)
        return (model, info) if output_loading_info else model

    @classmethod
    def from_timm(cls, name: str, config: SSLConfig | None = None, **changes):
        """A model whose encoder has pretrained timm weights; heads, if any, are new.

        Args:
            name: "regnety_320.seer", "hf-hub:user/name", or "local-dir:folder" in timm's format.
            config: configuration with the same backbone, such as `SwavConfig.seer("regnety_320")`. The default is the
                method's, with the backbone, image size and normalization of the weights.
            changes: fields of that default to override.

        Raises:
            ValueError: tensors are missing, unexpected or of the wrong shape; the message names them.
        """
        source = timm.create_model(name, pretrained=True, num_classes=0)
        if config is None:
            fields = timm_fields(name, source)
            named = {cls.config_class.encoder_field(field): value for field, value in fields.items()}
            config = cls.config_class(**named | changes)
        model = cls(config)
        model.load_encoder(source.state_dict(), name)
        return model

    def load_encoder(self, tensors: dict[str, torch.Tensor], source: str) -> None:
        """Load a timm state dict into the encoder and its target, if any; `source` names the weights in errors."""
        self.encoder.load_encoder(tensors, source)
        self.copy_to_targets()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass; set by `gradient_checkpointing_enable()`."""
        return self._checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        blocks = backbone_blocks(self)
        if enable and not blocks:
            names = " and ".join(self.config.timm_backbones)
            raise ValueError(f"{names} has no blocks to checkpoint; disable gradient_checkpointing.")
        use_checkpointing(blocks, enable)
        self._checkpointing = enable

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, and copy the code of all classes of the method into the folder."""
        config, prefix = type(self.config), type(self.config).__name__.removesuffix("Config")
        file = type(self).__module__.rpartition(".")[2]
        classes = {auto: f"{file}.{prefix}{suffix}" for auto, suffix in self.auto_classes.items()}
        self.config.auto_map = {"AutoConfig": f"{config.__module__.rpartition('.')[2]}.{config.__name__}", **classes}
        super().save_pretrained(save_directory, **kwargs)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """transformers skips modules without own tensors if the model is custom code. Ours need `_init_weights`: it
        zeroes residual branches and fills the encoder's remaining tensors. `init` leaves loaded tensors alone.
        """
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init_linear_as_torch(module)
        elif isinstance(module, _BatchNorm):
            init_norm(module)


class SSLModel(SSLPreTrainedModel):
    """The encoder: a bare timm backbone.

    Networks with BatchNorm are initialized as in torchvision (He et al., fan-out), others (ViT, ConvNeXt) as in timm
    (truncated normal, std 0.02).
    """

    def __init__(self, config: SSLConfig):
        super().__init__(config)
        self.backbone = create_backbone(config)
        self.has_batch_norm = any(isinstance(m, nn.BatchNorm2d) for m in self.backbone.modules())
        self.post_init()

    @property
    def num_features(self) -> int:
        """Width of `pooler_output`."""
        return self.backbone.head_hidden_size

    def load_encoder(self, tensors: dict[str, torch.Tensor], source: str) -> None:
        load_backbone(self.backbone, tensors, source)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """(B, C, H, W) -> `last_hidden_state` (B, D, h, w) or tokens (B, N, D), `pooler_output` (B, D)."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = None
        if output_hidden_states:
            last, hidden_states = self.backbone.forward_intermediates(pixel_values)
            hidden_states = tuple(hidden_states)
        else:
            last = self.backbone.forward_features(pixel_values)
        pooled = self.backbone.forward_head(last)
        return BaseModelOutputWithPooling(
            last_hidden_state=last, pooler_output=pooled.flatten(1), hidden_states=hidden_states
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            self._init_convolution(module)
        elif isinstance(module, nn.Linear):
            init_as_timm(module)
        elif isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm):
            init_norm(module)
        elif module is self:
            init_remaining(self.backbone, lambda: create_backbone(self.config))
        if self.config.zero_init_residual and "zero_init_last" in dir(module):
            module.zero_init_last()

    def _init_convolution(self, module: nn.Conv2d) -> None:
        if self.has_batch_norm:
            init_as_torchvision(module)
        else:
            init_as_timm(module)


class SSLForImageClassification(SSLPreTrainedModel):
    """Encoder and linear classifier, initialized as in the papers' linear evaluations (normal, std 0.01; bias 0)."""

    model_class: type[SSLModel]
    accepts_loss_kwargs = True

    def __init__(self, config: SSLConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.encoder = self.model_class(config)
        self.classifier = nn.Linear(self.encoder.num_features, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        """(B, C, H, W), labels (B,) -> `logits` (B, num_labels) and `loss`, according to `config.problem_type`."""
        output = self.encoder(pixel_values, output_hidden_states=output_hidden_states)
        logits = self.classifier(output.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=output.hidden_states)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.01)
            init.zeros_(module.bias)


def split_views(pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """(B, V, C, H, W), or (B, C, H, W) for a single view -> V tensors (B, C, H, W)."""
    return [pixel_values] if pixel_values.dim() == 4 else list(pixel_values.unbind(1))


def two_views(pixel_values: torch.Tensor, method: str) -> list[torch.Tensor]:
    """The one or two views for a method that compares pairs; ValueError for more."""
    views = split_views(pixel_values)
    if len(views) > 2:
        raise ValueError(f"{method} compares two views of an image, not {len(views)}; set views.first.count.")
    return views
