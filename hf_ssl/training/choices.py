# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Resolve `auto` in a recipe, once per run: the choices are logged, and kept in `recipe.yaml` and checkpoints.

No other module handles `auto`. `choose` depends only on the machine. `choose_for` also needs the images, and measures
memory and speed. `stand_in` fills in placeholders where there is no run (preview, plan).
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..checkpoint_folder import CheckpointFolder
from ..devices import best_precision, has_gpu, process_state
from ..logs import get_logger
from ..machine import free_memory, local_processes, most_workers, usable_cores
from ..recipe import AUTO, Recipe, RecipeError, flatten, with_values
from ..resolve import Resolved


logger = get_logger(__name__)

LARGEST_BATCH = 256  # images per step
LARGEST_SHARE = 8  # at least this many steps per epoch
SHARE_OF_MEMORY = {"cpu": 0.4, "cuda": 0.8}  # the rest is for other processes and fragmentation
IMAGES = 20_000_000  # images seen in a run on a GPU
EPOCHS = (100, 800)  # minimum and maximum on a GPU; the maximum also applies on a CPU
MOST_WORKERS = 16
TENTH = 10  # measure after every tenth of a run

_OTHERS = ("views.arithmetic", "train.resume")  # keys with a regular value "auto"

# Default networks. The small one is the quickstart's, which learns most within minutes. Objects look larger in crops
# than in whole images, so it trains on 48-pixel crops and extracts features at 64 pixels.
_LARGE = {"model.backbone": "resnet50", "views.all.size": 224}
_SMALL = {
    "model.backbone": "resnet10t",
    "model.backbone_args": {"channels": [32, 64, 128, 256], "stem_width": 16},
    "model.image_size": 64,
    "model.crop_pct": 1.0,
    "views.all.size": 48,
    "views.all.blur": 0.0,
}
_SIZE = 64  # image size for a named network without a GPU; divisible by the strides of all networks


def choose(recipe: Recipe) -> Recipe:
    """Fill in precision and network. A resumed run keeps all its earlier choices."""
    recipe = _without_backbone_of_weights(recipe)
    open_keys = _open_keys(recipe)
    if not open_keys:
        return recipe
    if kept := _kept_choices(recipe.train.folder / "checkpoints"):
        return with_values(recipe, _as_kept(recipe, kept))
    precision = {"train.precision": best_precision()} if "train.precision" in open_keys else {}
    return with_values(recipe, precision | _network(recipe))


def stand_in(recipe: Recipe) -> Recipe:
    """Replace every `auto` with a placeholder, without looking at images or a run; the batch is the largest one."""
    recipe = _without_backbone_of_weights(recipe)
    recipe = with_values(recipe, _network(recipe))
    epochs = None if recipe.train.steps is not None else EPOCHS[0]
    numbers = {"train.batch_size": LARGEST_BATCH, "train.epochs": epochs, "data.num_workers": 0}
    return _fill(recipe, numbers | _rhythm(recipe, EPOCHS[0]))


def choose_for(
    recipe: Recipe,
    resolved: Resolved,
    count: int | None,
    accelerator: Accelerator,
    images_per_second: Callable[[Recipe], float],
) -> tuple[Recipe, dict[str, str]]:
    """Fill in batch size, workers, epochs and everything that depends on them, the same on all processes.

    Args:
        count: number of images, or None if unknown.
        images_per_second: measures real training steps of a recipe, over all processes.

    Returns:
        The recipe, and a reason for each chosen key.

    Raises:
        RecipeError: `train.epochs=auto`, but the number of images is unknown.
    """
    reasons: dict[str, str] = {}
    open_keys, device = _open_keys(recipe), accelerator.device
    if "train.batch_size" in open_keys:
        batch, reasons["train.batch_size"] = _batch(recipe, resolved, count, accelerator)
        recipe = with_values(recipe, {"train.batch_size": batch})
    if "data.num_workers" in open_keys:
        workers, reasons["data.num_workers"] = _workers(recipe, resolved, accelerator)
        recipe = with_values(recipe, {"data.num_workers": workers})
    if "train.epochs" in open_keys and recipe.train.steps is None:
        epochs, reasons["train.epochs"] = _epochs(recipe, count, device, images_per_second)
        recipe = with_values(recipe, {"train.epochs": epochs})
    recipe = _fill(recipe, {"train.epochs": None})
    steps = recipe.train.steps or 0
    return _fill(
        recipe, _rhythm(recipe, recipe.train.epochs or steps * recipe.train.batch_size / (count or 1e9))
    ), reasons


def say(asked: Recipe, chosen: Recipe, reasons: dict[str, str]) -> None:
    """Log each chosen key and the reason."""
    process_state()  # the logger needs it to know which process this is
    new = flatten(chosen.to_dict())
    keys = [key for key in _open_keys(asked) if new.get(key) is not None]
    lines = [f"{key}={AUTO}: {new[key]}{f' ({reasons[key]})' if key in reasons else ''}" for key in keys]
    if lines:
        logger.info(
            "\n  ".join(["Automatic choices (set a key to override one):", *lines] if len(lines) > 1 else lines)
        )


def _open_keys(recipe: Recipe) -> list[str]:
    return [key for key, value in flatten(recipe.to_dict()).items() if value == AUTO and key not in _OTHERS]


def _fill(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """Set those of the values that are `auto` in the recipe."""
    open_keys = _open_keys(recipe)
    return with_values(recipe, {key: value for key, value in values.items() if key in open_keys})


def _without_backbone_of_weights(recipe: Recipe) -> Recipe:
    """Drop `model.backbone=auto` if `model.init_from` is set, because the weights determine the network."""
    model = {key: value for key, value in recipe.model.items() if key != "backbone" or value != AUTO}
    return replace(recipe, model=model) if "init_from" in recipe.model else recipe


def _network(recipe: Recipe) -> dict[str, Any]:
    """Backbone and image sizes, where they are `auto`."""
    open_keys, content = _open_keys(recipe), recipe.to_dict()
    found: dict[str, Any] = {}
    usual = _LARGE if has_gpu() else _SMALL
    if "model.backbone" in open_keys:
        found |= {key: usual[key] for key in ("model.backbone", "model.backbone_args") if key in usual}
    if "views.all.size" in open_keys:
        named = usual is _SMALL and "model.backbone" not in open_keys
        own = {"views.all.size": _SIZE, "model.image_size": _SIZE, "views.all.blur": 0.0}
        sizes = own if named else usual
        found |= {key: value for key, value in sizes.items() if not key.startswith("model.backbone")}
    found = {key: value for key, value in found.items() if _value(content, key) in (AUTO, None)}
    if "views.local.size" in open_keys:
        found["views.local.size"] = (found.get("views.all.size") or _value(content, "views.all.size") or 224) // 2
    return found


def _value(content: Any, key: str) -> Any:
    """The value of a dotted key; None if not set."""
    for name in key.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _batch(recipe: Recipe, resolved: Resolved, count: int | None, accelerator: Accelerator) -> tuple[int, str]:
    """Batch size, a power of two per process and micro-batch, and the reason for its limit."""
    parts = accelerator.num_processes * recipe.train.accumulation
    if accelerator.is_fsdp2:
        raise RecipeError(
            "train.batch_size=auto does not support FSDP; set a number (`hf-ssl plan` estimates the largest)."
        )
    from ..plan import largest_batch  # circular import

    share = SHARE_OF_MEMORY.get(accelerator.device.type, SHARE_OF_MEMORY["cpu"])
    memory = min(gather_object([share * free_memory(accelerator.device)]))
    tried = _fill(replace(recipe, data=replace(recipe.data, num_examples=count)), {"train.batch_size": 64})
    fits = largest_batch(stand_in(tried), memory)
    bounds = {
        f"at most {LARGEST_BATCH}": LARGEST_BATCH / parts,
        f"largest that fits {memory / 2**30:.1f} GiB": fits,
        f"an eighth of {count or 0:,} {resolved.modality.name}": (count or math.inf) / LARGEST_SHARE / parts,
    }
    why = min(bounds, key=lambda reason: bounds[reason])
    each = max(resolved.modality.smallest_batch, 2 ** math.floor(math.log2(max(1, bounds[why]))))
    return gather_object([(each * parts, why)])[0]


def _workers(recipe: Recipe, resolved: Resolved, accelerator: Accelerator) -> tuple[int, str]:
    """Number of workers. A GPU must not wait for data; on a CPU, a quarter of the cores is enough for loading."""
    cores = usable_cores() / local_processes()
    wanted = min(MOST_WORKERS, math.floor(cores) - 1) if accelerator.device.type != "cpu" else math.ceil(cores / 4)
    batch = recipe.per_process_batch(accelerator.num_processes)
    shapes = resolved.modality.input_shapes(resolved.views, batch, resolved.config).values()
    possible = math.floor(min(wanted if cores >= 2 else 0, most_workers(sum(math.prod(shape) for shape, _ in shapes))))
    return gather_object([(max(0, possible), f"{cores:g} cores per process")])[0]


def _epochs(
    recipe: Recipe, count: int | None, device: torch.device, images_per_second: Callable[[Recipe], float]
) -> tuple[float, str]:
    if count is None:
        raise RecipeError(
            "train.epochs=auto needs the number of images, which is unknown for a stream; set data.num_examples, or "
            "train.steps."
        )
    if device.type != "cpu":
        epochs = min(max(EPOCHS[0], round(IMAGES / count)), EPOCHS[1])
        return float(epochs), f"{IMAGES:,} images, within {EPOCHS[0]} to {EPOCHS[1]} epochs"
    rate = gather_object([images_per_second(recipe)])[0]
    epochs = min(max(1, math.floor(recipe.train.minutes * 60 * rate / count)), EPOCHS[1])
    return float(epochs), f"{recipe.train.minutes:g} minutes at {rate:,.0f} images/s, at most {EPOCHS[1]}"


def _rhythm(recipe: Recipe, epochs: float) -> dict[str, float]:
    """Settings that scale with the length of the run: warmup, monitoring, checkpoints."""
    tenth = round(epochs / TENTH, 2)
    found = {"optim.warmup_epochs": 0 if recipe.optim.warmup_steps is not None else min(10.0, tenth)}
    return found | {"monitor.every": max(1.0, tenth), "train.checkpoint_every": max(1.0, tenth)}


def _as_kept(recipe: Recipe, kept: dict[str, Any]) -> dict[str, Any]:
    """Values from a checkpoint's recipe for the keys that are `auto` in `recipe`, and for those set with them."""
    open_keys, content = _open_keys(recipe), recipe.to_dict()
    network = {"model.backbone", "views.all.size"} & set(open_keys)
    brought = [key for key in _SMALL if network and _value(content, key) is None]
    found = {key: _value(kept, key) for key in [*open_keys, *brought]}
    return {
        key: value for key, value in found.items() if value is not None or key in ("train.precision", "train.epochs")
    }


def _kept_choices(checkpoints: Path) -> dict[str, Any] | None:
    """The recipe of the newest readable checkpoint."""
    for path in reversed(CheckpointFolder.complete(checkpoints)):
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            kept = CheckpointFolder(path).read_state().recipe
            if isinstance(kept.get("train"), dict):
                return {**kept, "train": {"precision": None, **kept["train"]}}
    return None
