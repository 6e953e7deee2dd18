# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Convert weights released by the methods' authors to repo folders, and back.

The architecture is detected from the tensors. Every tensor must be accounted for, and no code in a file is executed.
"""

import copy
import json
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ... import models
from ...data.modality import modality_of
from ...disk import whole_file
from ...files import read_json
from ...methods import without_memory
from ...models import METHODS
from ...recipe import RecipeError, nearest
from ..card import render_converted
from ..export import in_several_files, save_pretraining, write_repo
from ..weights import check_weight, read_file, read_weights
from .avid import avid
from .backbones import rename_backbone, timm_regnet, torchvision
from .barlow_twins import barlow_twins
from .byol import byol, read_pickle
from .common import Layout, Original, Tensors, account
from .simsiam import simsiam
from .swav import swav, swav_linear
from .vissl import vissl, vissl_grouped


logger = logging.getLogger(__name__)

# Name of a method or project -> our method.
ORIGINALS = {method: method for method in METHODS} | {"seer": "swav", "vissl": "swav"}
_LAYOUTS = (avid, barlow_twins, byol, simsiam, swav, swav_linear, timm_regnet, torchvision, vissl, vissl_grouped)
LAYOUTS = {layout.name: layout for layout in _LAYOUTS}


def convert(
    path: Path | str,
    method: str,
    output: Path | str | None = None,
    *,
    classifier: Path | str | None = None,
    statistics: Path | str | None = None,
) -> Path:
    """Convert an original checkpoint to a repo folder.

    Args:
        method: avid, barlow_twins, byol, simsiam or swav; "vissl" and "seer" mean swav.
        output: default: the file's name without its extensions.
        classifier: file of a linear evaluation, whose classifier is added.
        statistics: for AVID, the authors' file with mean and standard deviation of each spectrogram band.

    Raises:
        RecipeError: the file is of another method, has other tensors, or contains code.
    """
    path = Path(path).expanduser()
    folder = _output_folder(Path(output).expanduser() if output else Path(path.name.partition(".")[0]))
    if method not in ORIGINALS:
        raise RecipeError(f"Unknown method {method}{nearest(method, ORIGINALS)}")
    half = modality_of(METHODS[kind := ORIGINALS[method]][0]).half(__package__)
    if statistics is not None and half.WITHOUT_STATISTICS is None:
        raise RecipeError(f"--statistics is only for AVID's spectrograms; remove it for {method}.")
    normalization = {} if statistics is None else half.read_statistics(Path(statistics).expanduser())
    layout, found = _read(path, kind)
    if classifier is not None:
        found.tensors |= _head(_read(Path(classifier).expanduser(), kind)[1].tensors)
    try:
        fields = half.config_fields(found.tensors)
        config = METHODS[kind][0](**fields | found.fields | normalization)
        head = {name: found.tensors.pop(name) for name in _head(found.tensors)}
        model = without_memory(METHODS[kind][1], config)
        backbone = fields.get("backbone", "")
        expected = rename_backbone(model.export_parts()[1], backbone, back=True)
        heads = {name for name in expected if not name.startswith("encoder.")}
        encoder_only = bool(heads) and heads.isdisjoint(found.tensors)
        account(found, {n: t for n, t in expected.items() if not (encoder_only and n in heads)}, layout)
        labeled = _labeled(config, head, layout) if head or classifier else None
    except ValueError as error:  # a RecipeError, or a configuration's error on odd values
        raise RecipeError(f"{path}: {error}") from error

    tensors = _own(rename_backbone(found.tensors, backbone) | head)

    def add(partial: Path) -> None:
        if labeled is not None:
            save_pretraining(labeled, tensors, partial, "classification")
        if found.remainder:
            save_file(found.remainder, partial / "original.safetensors")

    facts = {"file": path.name, "layout": layout.name, "left_out": found.left_out, **found.facts}
    subfolders = ["pretraining"] * (not encoder_only) + ["classification"] * (labeled is not None)
    origin = _origin(path, method, statistics, layout)
    card = render_converted(config, origin, found.left_out, subfolders, sharded=in_several_files(tensors))
    logger.info("Not converted: %s.", ", ".join(found.left_out) or "nothing")
    if half.WITHOUT_STATISTICS and not normalization:
        logger.warning(half.WITHOUT_STATISTICS)
    files = {"README.md": card, "original.json": json.dumps(facts, indent=2)}
    return write_repo(folder, model, tensors, files, encoder_only=encoder_only, add=add)


def _head(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("classifier.")}


def _origin(path: Path, method: str, statistics: Path | str | None, layout: Layout) -> dict[str, str]:
    """Origin of a model, for its card."""
    command = f"hf-ssl convert {path.name} --method {method}"
    command += f" --statistics {Path(statistics).name}" if statistics is not None else ""
    return {"file": path.name, "project": layout.project, "license": layout.license, "command": command}


def _output_folder(folder: Path) -> Path:
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not (folder / "original.json").exists():
        raise RecipeError(f"{folder} exists and was not made by hf-ssl convert; choose another --output.")
    return folder


def convert_back(folder: Path | str, layout: str, output: Path | str) -> Path:
    """Write the original checkpoint of a repo folder, converted or trained by hf_ssl.

    Args:
        layout: one of `LAYOUTS`; "torchvision" is the bare ResNet.
        output: file to write, a torch checkpoint; for BYOL a pickle.

    Raises:
        RecipeError: unknown layout, or a network that it cannot represent.
    """
    if layout not in LAYOUTS:
        raise RecipeError(f"Unknown layout {layout}{nearest(layout, LAYOUTS)}")
    folder, output, chosen = Path(folder).expanduser(), Path(output).expanduser(), LAYOUTS[layout]
    folder = folder / "model" if (folder / "model").is_dir() else folder
    try:
        config, tensors = _weights(folder)
        facts, remainder = folder / "original.json", folder / "original.safetensors"
        known = read_json(facts) if facts.exists() else {}
        known["remainder"] = load_file(remainder) if remainder.exists() else {}
    except RecipeError:
        raise
    except Exception as error:  # foreign files may make the configuration and safetensors raise anything
        raise RecipeError(f"{folder} cannot be read as an exported model: {' '.join(str(error).split())}") from error
    if chosen.method != config.model_type and (chosen.method or not hasattr(config, "backbone")):
        raise RecipeError(f"{folder} is a {config.model_type} model, which the layout {layout} does not support.")
    try:
        content = chosen.write(rename_backbone(tensors, getattr(config, "backbone", ""), back=True), config, known)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise RecipeError(
            f"{folder} is incomplete, or its configuration is of another network ({error!r})."
        ) from error
    with whole_file(output) as partial:
        if chosen is byol:
            partial.write_bytes(pickle.dumps(content, protocol=4))
        else:
            torch.save(content, partial)
    return output


def _read(path: Path, method: str) -> tuple[Layout, Original]:
    if not path.is_file():  # reading a pipe would block
        raise RecipeError(f"There is no file {path}.")
    pickled = method == "byol" and path.suffix != ".safetensors" and not zipfile.is_zipfile(path)
    content = read_pickle(path) if pickled else read_file(path)
    check_weight(content, path)
    said = f"it does not have the layout of a {method} checkpoint."
    try:
        for layout in LAYOUTS.values():
            if layout.method in (method, "") and layout.recognizes(content):
                return layout, layout.read(content, path)
    except RecipeError as error:
        said = str(error)
    others = [layout.name for layout in _LAYOUTS if layout.method not in (method, "") and layout.recognizes(content)]
    raise RecipeError(f"{path}: {said}" + "".join(f" It has the layout of {name}." for name in others[:1]))


def _labeled(config: Any, head: Tensors, layout: Layout) -> Any:
    """An `XForImageClassification` on the meta device, with the shapes of the linear classifier `head`."""
    config = copy.deepcopy(config)
    config.num_labels = max((tensor.shape[0] for tensor in head.values() if tensor.dim()), default=1)
    model = without_memory(getattr(models, type(config).__name__.replace("Config", "ForImageClassification")), config)
    account(Original(head, {}), _head(model.state_dict()), layout)
    return model


def _own(tensors: Tensors) -> Tensors:
    """Give every tensor its own storage, because safetensors drops all but one of those that share it."""
    seen: set[int] = set()
    own: Tensors = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen and tensor.is_contiguous()
        own[name] = tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
    return own


def _weights(folder: Path) -> tuple[Any, Tensors]:
    """Configuration and weights of a repo folder, with the names of `XForPreTraining` and `classifier`."""
    whole = (folder / "pretraining" / "config.json").exists()
    place = folder / "pretraining" if whole else folder
    if not (place / "config.json").exists():
        raise RecipeError(f"{folder} is not an exported model: config.json is missing.")
    content = read_json(place / "config.json")
    kind = content.get("model_type") or content.get("pretrained_cfg", {}).get("tag")
    if not isinstance(kind, str) or kind not in METHODS:
        raise RecipeError(f"{folder} is not a model of an hf_ssl method.")
    prefix = "" if whole else "encoder." if "model_type" in content else "encoder.backbone."
    if "model_type" in content:
        config = METHODS[kind][0].from_pretrained(place)
    else:
        config = METHODS[kind][0](backbone=content["architecture"], backbone_args=content.get("model_args"))
    tensors = {prefix + name: tensor for name, tensor in read_weights(place).items()}
    if (folder / "classification").is_dir():
        tensors |= _head(read_weights(folder / "classification"))
    return config, tensors
