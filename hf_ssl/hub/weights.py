# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Find and read a method's weights in a run, a checkpoint or a repo folder, and open third-party encoders.

Nothing in a folder is executed, and `config.json` is checked against the size of the weight files before a network is
built.
"""

import logging
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init

from ..absent import absent, is_absent
from ..checkpoint_folder import CheckpointFolder
from ..data.images import images_of_timm
from ..files import read_json, refuse_compressed, weigh
from ..logs import without_bars, without_load_report
from ..models import METHODS, SSLConfig
from ..models.configuration_ssl import check_arguments
from ..recipe import RecipeError
from .shards import read_shards


logger = logging.getLogger(__name__)
_LARGEST = 10_000_000  # largest integer allowed in a third-party configuration
_SLACK = 10_000_000  # numbers that a network may have beyond twice those in its files, for a pooler or a new head

# A numpy schedule's learning rate is a numpy number. torch does not allow these by default; they execute nothing.
_NUMBERS: list = [np.dtype, *{type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)}]
_NUMBERS += [(np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


def find_weights(place: str | Path) -> Path:
    """Folder with the weights of a run (newest checkpoint, else exported model), a checkpoint, or a repo folder.

    Raises:
        RecipeError: there are none.
    """
    folder = Path(place).expanduser()
    run = folder.parent if folder.name == "model" else folder
    checkpoints = CheckpointFolder.complete(run / "checkpoints")[::-1]
    exported = [folder / "model" / "pretraining", folder / "pretraining", folder]
    if CheckpointFolder(folder).state.exists():
        if fault := CheckpointFolder(folder).verify()[2]:
            raise RecipeError(f"The checkpoint {folder} is damaged: {fault}; pass another one, or the run's folder.")
        return folder
    for found in checkpoints:
        if not (fault := CheckpointFolder(found).verify()[2]):
            return found
        logger.warning(f"The checkpoint {found} is damaged: {fault}. Using the previous one.")
    if checkpoints:
        raise RecipeError(f"All checkpoints of {run} are damaged; pass an exported model.")
    for found in exported:
        if (found / "config.json").exists():
            return found
    raise RecipeError(f"{place} has no weights; pass a run's folder, one of its checkpoints, or an exported model.")


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of the method in a folder from `find_weights`, unsharded, on the CPU.

    Raises:
        RecipeError: a file is missing, truncated or of another format.
    """
    try:
        checkpoint = CheckpointFolder(folder)
        if checkpoint.state.exists() and checkpoint.shards.exists():  # a repo folder never has shards
            return read_shards(checkpoint.shards)
        return {name: t for part in weight_files(folder) for name, t in load_file(part).items()}
    except Exception as error:  # truncated or foreign files may make safetensors and torch raise anything
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"The weights in {folder} cannot be read ({said}).") from error


def weight_files(folder: Path, name: str = "model.safetensors") -> list[Path]:
    """The file `name` of a folder, or the files listed in its index.

    Raises:
        RecipeError: the index is invalid, or names files outside its folder.
    """
    index = folder / f"{name}.index.json"
    if not index.exists():
        return [folder / name]
    names = read_json(index).get("weight_map")
    names = set(names.values()) if isinstance(names, dict) and all(map(_is_name, names.values())) else {""}
    if not names or not all((folder / name).is_file() for name in names):
        raise RecipeError(f"{index} must only name files in its own folder.")
    return [folder / name for name in sorted(names)]


def read_file(path: Path) -> Any:
    """Load a torch or safetensors file without executing anything.

    Raises:
        RecipeError: the file is missing, truncated, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise RecipeError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            refuse_compressed(path, path.stat().st_size)
        with torch.serialization.safe_globals(_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # broken or hostile files may raise anything
        wanted = re.search(r"(?:GLOBAL|class|function) `?([\w.]+)", str(error))
        if wanted and isinstance(error, pickle.UnpicklingError):
            raise RecipeError(
                f"{path} contains more than tensors and plain values ({wanted[1]}); loading that would execute code, "
                "which hf-ssl never does. If you trust the file, save only its weights to a new one."
            ) from error
        raise unreadable(path, error) from error
    check_weight(content, path)
    return content


def unreadable(path: Path, error: Exception) -> RecipeError:
    said = f"{path} cannot be read as a checkpoint ({type(error).__name__})"
    return RecipeError(f"{said}; it may be truncated or of another kind: download it again, or check --method.")


def check_weight(content: Any, path: Path) -> None:
    """Raise RecipeError if values read from a file need much more memory than the file: tensors that repeat a few
    numbers (stride 0) or have no data (meta), lists that contain each other.
    """
    try:
        heavy = weigh(content, _parts, _bytes) > 4 * path.stat().st_size + 2**20
    except ValueError as error:
        raise RecipeError(f"{path} is not a checkpoint: {error}.") from None
    if heavy:
        raise RecipeError(f"{path} expands to far more data than its size, which no saved checkpoint does.")


def _parts(value: Any) -> list:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list | tuple | set | frozenset) else []


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return value.numel() * value.element_size()
    return value.nbytes if isinstance(value, np.ndarray) else 1


def open_encoder(place: str | Path, *, pooler: bool = True) -> PreTrainedModel:
    """Load an encoder from a folder or the Hub with `AutoModel`, in evaluation mode, without its custom code.

    Args:
        pooler: whether the pooled features are used; otherwise the files may lack the pooler's weights.

    Raises:
        RecipeError: there is no encoder, it needs custom code, or weights are missing.
    """
    try:
        if here := Path(place).is_dir():
            _check_folder(Path(place))
        with without_load_report(), without_bars() if here else nullcontext():
            model, found = AutoModel.from_pretrained(place, trust_remote_code=False, output_loading_info=True)
        _check_missing(type(model).__name__, sorted(found["missing_keys"]), pooler)
        return model.eval()
    except Exception as error:  # foreign files may make timm, transformers and safetensors raise anything
        if not os.path.exists(place) and is_absent(error):
            said = f"No encoder {str(place)!r} (a run, its model folder or a Hub id)"
            raise RecipeError(f"{said}: {absent(str(place), error, 'model')}") from error
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"{str(place)!r} could not be loaded as an encoder: {said}") from error


def _check_missing(kind: str, names: list[str], pooler: bool) -> None:
    """Raise ValueError if transformers initialized missing weights at random."""
    names = [name for name in names if not name.endswith(("mask_token", "num_batches_tracked"))]
    body = [name for name in names if "pooler" not in name]
    if body:
        raise ValueError(
            f"its files lack {len(body)} tensor(s) of {kind}, such as {body[0]}, which would be random; download "
            "them again."
        )
    if names and pooler:
        raise ValueError(
            f"its files lack the pooler of {kind}, which would be random; use a hidden state instead, as with "
            "`hf-ssl evaluate --layer -1`."
        )


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _check_folder(folder: Path) -> None:
    """Raise ValueError if there is no encoder yet, or one that is larger than its files."""
    if (folder / "checkpoints").is_dir() and not (folder / "config.json").exists():
        raise ValueError(f"its run has not ended; `hf-ssl export {folder}` writes the model of the newest checkpoint")
    content = read_json(folder / "config.json")
    if content.get("model_type") not in METHODS:
        _check_numbers(content, "config.json")
    if "model_type" not in content:
        _check_timm(content)
    shapes = _shapes(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with (
        _at_most_parameters(4 * len(shapes) + 1000),
        torch.device("meta"),
        init.meta_device_safe_creation_ops(),
        init.no_init_weights(),
    ):
        model = AutoModel.from_config(config, trust_remote_code=False)
    held, needed = sum(map(math.prod, shapes)), sum(tensor.numel() for tensor in model.state_dict().values())
    if needed > 2 * held + _SLACK:
        raise ValueError(f"config.json describes a network of {needed:,} numbers, but its files hold {held:,}.")


def _shapes(folder: Path) -> list[tuple[int, ...]]:
    """Shapes of all tensors in a folder; safetensors files are not loaded."""
    if not any((folder / f"model.safetensors{end}").exists() for end in ("", ".index.json")):
        files = map(read_file, weight_files(folder, "pytorch_model.bin"))
        return [tuple(t.shape) for content in files for t in content.values() if isinstance(t, torch.Tensor)]
    shapes = []
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            shapes += [tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
    return shapes


def _check_numbers(value: Any, key: str) -> None:
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_numbers(part, f"{key}, {name}")
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{key} is {str(value)[:30]}, more than any network uses.")


def _check_timm(content: dict[str, Any]) -> None:
    """Check timm's `config.json`: architecture, model arguments, and image input."""
    if not timm.is_model(str(content.get("architecture"))):
        raise ValueError(f"config.json does not name a timm network (architecture: {content.get('architecture')!r}).")
    check_arguments(content.get("model_args"), "model_args")
    images = images_of_timm(content.get("pretrained_cfg"))
    size = images["input_size"]
    if len(size) != 3 or not all(isinstance(number, int) and 1 <= number <= 8192 for number in size):
        raise ValueError(f"input_size must be three numbers from 1 to 8192, not {size!r}.")
    look = {"image_mean": tuple(images["mean"]), "image_std": tuple(images["std"]), "crop_pct": images["crop_pct"]}
    try:
        SSLConfig(num_channels=size[0], **look)
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from None


@contextmanager
def _at_most_parameters(most: int) -> Iterator[None]:
    """Abort the construction of a network with more tensors, which would take a long time."""
    count = 0

    def hook(module: torch.nn.Module, name: str, parameter: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ValueError(f"config.json describes more than {most:,} tensors, but its files have fewer.")

    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()
