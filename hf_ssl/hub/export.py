# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Write the repo folder of a trained model: the encoder at its root, the whole method in `pretraining/`.

If timm can rebuild the encoder from its name, it is saved in timm's format, so that `AutoModel` and
`timm.create_model` load it without trusting any code. Others (small stem, SAME padding) are saved with custom code.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from .. import models
from ..checkpoint_folder import CheckpointFolder
from ..coerce import listed
from ..data.modality import modality_of
from ..disk import first_line, flush, recover_folder, refused_write, replace_folder
from ..errors import UserError
from ..logs import without_bars
from ..methods import method_classes, shipped_code, without_memory
from ..models import METHODS, SSLConfig, backbone_kwargs, rebuildable_by_timm
from ..recipe import Recipe, RecipeError, continued, recipe_from_dict
from ..resolve import resolve
from .card import Results, render_card
from .refresh import kept_card_settings
from .weights import find_weights, read_weights


MAX_FILE_SIZE = 5_000_000_000  # bytes
MODELS = Path(models.__file__).parent


def export(
    model: PreTrainedModel, recipe: Recipe, folder: Path | str, *, tensors: dict[str, torch.Tensor], results: Results
) -> Path:
    """Write the repo folder of a trained `XForPreTraining`, with its recipe, results and card.

    Raises:
        UserError: the disk refused the write.
    """
    # Use the method's own classes, because FSDP replaces those of a sharded model.
    model = without_memory(METHODS[model.config.model_type][1], model.export_parts()[0])
    recover_folder(Path(folder))
    recipe, results = recipe.shareable(), replace(results, card=results.card or kept_card_settings(folder))
    files = {
        "recipe.yaml": recipe.to_yaml(),
        "results.json": results.to_json(),
        "README.md": render_card(model.config, recipe, results, sharded=in_several_files(tensors)),
    }
    return write_repo(folder, model, tensors, files)


def export_checkpoint(place: Path | str, folder: Path | str | None = None) -> Path:
    """Write the repo folder of a run's newest checkpoint, or of the checkpoint `place`, as at the end of a run.

    Args:
        folder: default: the run's `model/`.

    Raises:
        RecipeError: no checkpoint there, or one that cannot be read.
    """
    found = find_weights(place)
    checkpoint = CheckpointFolder(found)
    if not checkpoint.state.exists():
        raise RecipeError(f"{place} has no checkpoint to export; it is already an exported model.")
    try:
        state = checkpoint.read_state()
        recipe = continued(recipe_from_dict(state.recipe), state.recipe, state.format, state.began)
        config = resolve(recipe).config
        if state.num_instances is not None:
            config.num_instances = state.num_instances
        results = Results(**state.results)
        model = without_memory(method_classes(recipe.method)[1], config)
    except TypeError as error:
        raise RecipeError(f"{checkpoint.state} is incomplete ({error!r}); use an older checkpoint.") from error
    tensors = read_weights(found)
    described = model.state_dict()
    wrong = [name for name, own in described.items() if name not in tensors or tensors[name].shape != own.shape]
    if wrong:
        raise RecipeError(
            f"{found} does not match its state.json: {listed(wrong)} missing or of another size; use an older "
            "checkpoint."
        )
    folder = found.parent.parent / "model" if folder is None else folder
    return export(model, recipe, folder, tensors=tensors, results=results)


def write_repo(
    folder: Path | str,
    model: PreTrainedModel,
    tensors: dict[str, torch.Tensor],
    files: dict[str, str],
    *,
    encoder_only: bool = False,
    add: Callable[[Path], None] = lambda partial: None,
) -> Path:
    """Write a repo folder; an existing one is replaced only when the new one is complete.

    Args:
        model: an `XForPreTraining`; only its configuration and the names of its tensors are used.
        tensors: its full state dict, since its own may be sharded or on the meta device.
        files: further text files, name -> content.
        encoder_only: leave out `pretraining/`, because the heads are unknown.
        add: called with the unfinished folder to add further files.

    Raises:
        UserError: the disk refused the write.
    """
    folder = Path(folder)
    partial = folder.with_name(f".partial_{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        if not encoder_only:
            save_pretraining(model, tensors, partial)
        save_encoder(model, tensors, partial)
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
        add(partial)
        _ship_own_code(model, partial)
        for path in partial.rglob("*"):
            flush(path)
        replace_folder(partial, folder)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        refusal = refused_write(error)
        if refusal is None:
            raise
        raise UserError(
            f"The model could not be written to {folder} ({first_line(refusal)}); free some space or make it "
            "writable, and run the same command again (existing checkpoints are kept)."
        ) from error
    return folder


def _ship_own_code(model: PreTrainedModel, folder: Path) -> None:
    """For a user's method: copy hf_ssl's files that its code imports, and make those imports relative."""
    own = Path(sys.modules[type(model).__module__].__file__)
    if own.parent == MODELS or not (folder / own.name).exists():
        return
    text, needed = shipped_code(own)
    (folder / own.name).write_text(text, encoding="utf-8")
    for file in needed:
        for one in [file, *map(Path, get_relative_import_files(file))]:
            shutil.copyfile(one, folder / one.name)


def in_several_files(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the encoder's weights need more than one file, which timm cannot read by itself."""
    encoder = _below(tensors, "encoder.").values()
    return sum(tensor.numel() * tensor.element_size() for tensor in encoder) > MAX_FILE_SIZE


def save_pretraining(
    model: PreTrainedModel, tensors: dict[str, torch.Tensor], folder: Path, name: str = "pretraining"
) -> None:
    """Write `folder/pretraining`: all weights of the method; its code goes to `folder`, as transformers expects."""
    subfolder = folder / name
    state = {name: tensors[name] for name in model.export_parts()[1]}
    with without_bars():
        model.save_pretrained(subfolder, state_dict=state, max_shard_size=MAX_FILE_SIZE)
    for file in subfolder.glob("*.py"):
        os.replace(file, folder / file.name)


def save_encoder(model: PreTrainedModel, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the encoder to the root of `folder`, in timm's format if timm can rebuild it.

    More than `MAX_FILE_SIZE` is split into several files, which `AutoModel` reads but timm by itself does not.
    """
    config = model.config
    if rebuildable_by_timm(config):
        backbone = model.encoder.backbone
        state = {name: _alone(tensor) for name, tensor in _below(tensors, "encoder.backbone.").items()}
        save_torch_state_dict(state, folder, max_shard_size=MAX_FILE_SIZE)
        (folder / "config.json").write_text(json.dumps(timm_config(backbone, config), indent=2))
        return
    with without_bars():
        model.encoder.save_pretrained(folder, state_dict=_below(tensors, "encoder."), max_shard_size=MAX_FILE_SIZE)
    modality_of(config).half(__package__).save_processor(config, folder)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """Move to the CPU, with own storage: a tensor gathered from uneven shards is a view of a larger one."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def timm_config(backbone, config: SSLConfig) -> dict[str, Any]:
    """timm's `config.json` for an encoder.

    `model_args` must not have `num_classes`: transformers' timm wrapper passes it itself and fails on a duplicate.
    """
    model_args = {key: value for key, value in backbone_kwargs(config).items() if key != "num_classes"}
    pretrained_cfg = {
        "tag": config.model_type,
        "custom_load": False,
        "input_size": [config.num_channels, config.image_size, config.image_size],
        "fixed_input_size": bool(backbone.pretrained_cfg.get("fixed_input_size", False)),
        "interpolation": config.interpolation,
        "crop_pct": config.crop_pct,
        "crop_mode": "center",
        "mean": list(config.image_mean),
        "std": list(config.image_std),
        "num_classes": 0,
        "first_conv": backbone.pretrained_cfg.get("first_conv"),
        "classifier": backbone.pretrained_cfg.get("classifier"),
    }
    content = {
        "architecture": timm.models.split_model_name_tag(config.backbone)[0],
        "num_classes": 0,
        "num_features": backbone.num_features,
        "pretrained_cfg": pretrained_cfg,
    }
    if model_args:
        content["model_args"] = model_args
    return content
