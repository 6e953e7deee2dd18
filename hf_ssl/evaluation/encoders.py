# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Encoders to evaluate, with their own preprocessing: runs, exported folders, Hub models and timm models."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import timm
import torch
import xxhash
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperModel,
)

from ..absent import is_absent
from ..data.modality import Modality, modality_of
from ..devices import channels_last
from ..disk import first_line
from ..errors import RecipeError
from ..hub.weights import open_encoder
from ..logs import without_bars
from ..models import METHODS  # also registers our classes with AutoModel
from ..recipe import nearest
from .features import Embed, Transform, encoder_embedding
from .images import ProcessorTransform, raw_pixel_embedding


TIMM = "timm:"
_PROJECTOR = "projector"
_LAYER = re.compile(rf"-?[0-9]+|{_PROJECTOR}(\.[0-9]+)?")


@dataclass
class Encoder:
    """A frozen encoder with its preprocessing of images or clips.

    Attributes:
        name: the name that the user passed.
        folder: folder of an exported model, where results are saved.
        embed: model inputs -> {name: vectors (B, D)}, see `encoder_embedding`.
        fresh: creates the same network with initial weights.
    """

    name: str
    model: nn.Module
    transform: Transform
    config: Any
    folder: Path | None
    embed: Embed
    fresh: Callable[[], nn.Module]
    layer: str | None = None

    @property
    def modality(self) -> Modality:
        return modality_of(self.config)

    def to(self, device: torch.device) -> "Encoder":
        channels_last(self.model.to(device))
        return self

    @cached_property
    def digest(self) -> str:
        """Digest of everything that affects the vectors: weights, layer and preprocessing."""
        state = xxhash.xxh3_128(repr((self.layer, type(self.model).__name__, _described(self.transform))).encode())
        for name, tensor in self.model.state_dict().items():
            state.update(name.encode())
            state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return state.hexdigest()

    def untrained(self, seed: int = 0) -> "Encoder":
        """The same network with initial weights, up to the chosen layer."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.fresh().eval().requires_grad_(False)
        known = getattr(self.config, "architecture", None) or type(model).__name__  # timm's name in its wrapper
        made = replace(self, name=f"untrained {known}", model=model, folder=None)
        made.embed = embedding_of(model, self.layer)
        return made

    def raw_pixels(self) -> "Encoder":
        """Baseline without a network."""
        nothing: dict[str, Any] = {"model": nn.Identity(), "folder": None, "layer": None}
        return replace(self, name="raw pixels", embed=raw_pixel_embedding, **nothing)

    def random_projection(self, seed: int = 0) -> "Encoder":
        """Raw pixels projected to the encoder's width by a Gaussian matrix."""
        with torch.no_grad():
            blank = self.transform.inputs(*self.transform.blank(None), device=torch.device("cpu"))  # type: ignore[arg-type]
            self.model.cpu()
            pixels, width = (one(blank)[""].shape[1] for one in (raw_pixel_embedding, self.embed))
        linear = nn.Linear(pixels, width, bias=False).requires_grad_(False)
        nn.init.normal_(linear.weight, std=width**-0.5, generator=torch.Generator().manual_seed(seed))

        def embed(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"": linear(raw_pixel_embedding(inputs)[""])}

        return replace(self, name="random projection", embed=embed, model=linear, folder=None, layer=None)


def open_model(name: str, num_clips: int = 1, layer: str | None = None, *, pooler: bool = True) -> Encoder:
    """Load an encoder in evaluation mode, with its own preprocessing.

    Args:
        name: a run's folder (uses its `model/`), an exported folder, a Hub id (of hf_ssl, timm, or any transformers
            vision model with an image processor), or "timm:NAME" for timm's pretrained weights.
        num_clips: clips per video or sound.
        layer: index of a hidden state (-2 is the second to last), averaged over positions; or "projector",
            "projector.0" .. of the pretraining method. Default: the pooled features.
        pooler: whether pooled features are needed, without `layer`.

    Raises:
        RecipeError: no model can be loaded, or it is not an encoder of images or clips.
    """
    if layer is not None and not _LAYER.fullmatch(layer):
        raise RecipeError(f"--layer must be a number, projector or projector.N, not {layer}.")
    if name.startswith(TIMM):
        return _timm(name, layer)
    inner = Path(name) / "model"
    location = str(inner) if inner.is_dir() else name
    folder = Path(location) if Path(location).is_dir() else None
    if layer is not None and layer.startswith(_PROJECTOR):
        return _with_projector(name, location, folder, layer)
    encoder = open_encoder(location, pooler=pooler and layer is None).requires_grad_(False)
    if layer is not None and len(modality_of(encoder.config).towers) > 1:
        raise RecipeError(f"{name} has two towers, which --layer does not support; remove it.")
    ours = encoder.config.model_type in METHODS or isinstance(encoder.config, TimmWrapperConfig)
    if ours:
        transform = modality_of(encoder.config).inference(encoder.config, num_clips)
    else:
        transform = processing_of(encoder, location)
    fresh, embed = partial(_new, encoder.config), embedding_of(encoder, layer)
    return _checked(Encoder(name, encoder, transform, encoder.config, folder, embed, fresh, layer))


def _new(config: Any) -> PreTrainedModel:
    """An untrained network; transformers' wrapper would replace timm's initialization."""
    model = AutoModel.from_config(config)
    if isinstance(config, TimmWrapperConfig):
        new = timm.create_model(config.architecture, num_classes=0, **(config.model_args or {}))
        model.timm_model.load_state_dict(new.state_dict())
    return model


def _timm(name: str, layer: str | None) -> Encoder:
    """A timm model with pretrained weights, in transformers' wrapper."""
    if layer is not None and layer.startswith(_PROJECTOR):
        raise RecipeError(f"{name} has no {layer}: timm models have no projector.")
    try:
        source: Any = timm.create_model(name.removeprefix(TIMM), pretrained=True, num_classes=0)
        described = source.pretrained_cfg
        about = {"architecture": described["architecture"], "pretrained_cfg": described, "num_classes": 0}
        config = TimmWrapperConfig.from_dict(about)
        model = TimmWrapperModel(config).eval().requires_grad_(False)
        model.timm_model.load_state_dict(source.state_dict())
    except Exception as error:  # timm and the Hub may raise anything
        if is_absent(error):
            said = "its weights are not cached and the Hub could not be reached"
            raise RecipeError(f"No encoder {name!r}: {said}{' (HF_HUB_OFFLINE=1)' * HF_HUB_OFFLINE}.") from error
        if isinstance(error, RuntimeError) and "Unknown model" in str(error):
            raise RecipeError(
                f"timm has no model {name!r}{nearest(name.removeprefix(TIMM), timm.list_models())}"
            ) from None
        raise RecipeError(f"{name!r} could not be loaded as an encoder: {first_line(error)}") from error
    transform = modality_of(config).inference(config)
    fresh = partial(_new, config)
    return _checked(Encoder(name, model, transform, config, None, embedding_of(model, layer), fresh, layer))


def _with_projector(name: str, location: str, folder: Path | None, layer: str) -> Encoder:
    """An encoder followed by the first layers of its projector."""
    try:
        if folder is not None:
            with without_bars():
                model = AutoModelForPreTraining.from_pretrained(folder / "pretraining")
        else:
            model = AutoModelForPreTraining.from_pretrained(location, subfolder="pretraining")
        model = model.eval().requires_grad_(False)
        embed = embedding_of(model, layer)
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"{name} has no {layer}: {first_line(error)}") from error
    transform = modality_of(model.config).inference(model.config)
    fresh = partial(AutoModelForPreTraining.from_config, model.config)
    return _checked(Encoder(name, model, transform, model.config, folder, embed, fresh, layer))


def embedding_of(model: nn.Module, layer: str | None) -> Embed:
    """Embedding function for a layer, see `open_model`.

    Raises:
        RecipeError: there is no such layer.
    """
    if layer is None:
        return encoder_embedding(model)
    if layer.startswith(_PROJECTOR):
        projector: Any = model.get_submodule(_PROJECTOR)
        _, _, last = layer.partition(".")
        parts = list(projector.children()) if last else [projector]
        if last and int(last) >= len(parts):
            raise RecipeError(f"--layer {layer} does not exist; the last one is {_PROJECTOR}.{len(parts) - 1}.")
        chosen = nn.Sequential(*parts[: int(last) + 1 if last else None])
        encoder: Any = model.get_submodule("encoder")
        return lambda inputs: {"": chosen(encoder(**inputs).pooler_output.flatten(1))}

    def embed(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states = model(**inputs, output_hidden_states=True).hidden_states
        if states is None or not -len(states) <= int(layer) < len(states):
            raise RecipeError(f"--layer {layer} does not exist; the network has {len(states or ())} hidden states.")
        state = states[int(layer)]
        return {"": state.flatten(2).mean(2) if state.ndim == 4 else state.mean(1)}  # feature map or tokens

    return embed


def processing_of(encoder: PreTrainedModel, location: str) -> ProcessorTransform:
    """Preprocessing of a transformers encoder.

    Raises:
        RecipeError: it does not take images, or has no image processor.
    """
    kind = type(encoder).__name__
    if encoder.main_input_name != "pixel_values":
        raise RecipeError(f"{location} is not an image encoder: its {kind} expects {encoder.main_input_name}.")
    try:
        return ProcessorTransform(AutoImageProcessor.from_pretrained(location))
    except Exception:
        raise RecipeError(
            f"{location} has no image processor for its {kind}; save one (preprocessor_config.json) in the same "
            "folder."
        ) from None


def _checked(encoder: Encoder) -> Encoder:
    """Return the encoder; encoders of other projects are tried on a black image first.

    Raises:
        RecipeError: it fails on its processor's output, or has no pooled features.
    """
    if encoder.config.__class__ in {config for config, _ in METHODS.values()} and encoder.layer is None:
        return encoder
    kind = type(encoder.model).__name__
    try:
        with torch.no_grad():
            blank = encoder.transform.blank(None)  # type: ignore[arg-type]  # images need no source
            found = encoder.embed(encoder.transform.inputs(*blank, device=torch.device("cpu")))
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(
            f"{encoder.name}: its {kind} fails on an image from its own processor: {first_line(error)}"
        ) from error
    if "" not in found:
        raise RecipeError(f"{encoder.name}: its {kind} returns no pooled features (pooler_output); choose a --layer.")
    return encoder


def _described(transform: Transform) -> str:
    """Everything that affects the output of a preprocessing, as text."""
    if isinstance(transform, ProcessorTransform):
        return str(transform.processor.to_json_string())
    return repr(transform)
