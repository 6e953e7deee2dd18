# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Dense linear probe for segmentation: a linear layer on each position of a frozen encoder's last feature map.

Follows eval/segmentation of DINOv3 (https://huggingface.co/papers/2508.10104): BatchNorm, channel dropout and a 1x1
convolution, with logits upsampled to the crop; cross-entropy; AdamW with warmup and cosine decay; random scale, crop
and flip. Inference uses a sliding window with a stride of two thirds. Unlike there, no photometric distortion.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
import xxhash
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.loader import TrainLoader, steps_in_epoch
from ..data.masks import IGNORED, Masked, MaskedCrops, classes_in, masked_sources, resized
from ..data.workers import batches, share, start_worker
from ..devices import process_state
from ..disk import atomic_write, first_line
from ..errors import RecipeError
from ..evaluation.dense import FeatureMap, feature_map, figures, overlaps, patch_pixels, slide, winner
from ..evaluation.encoders import Encoder, open_model
from ..evaluation.protocols import Dense
from ..evaluation.store import key_of
from ..models.distributed_ssl import all_reduce_sum, world_size
from ..recipe import DataConfig, MonitorConfig, TrainConfig
from .accelerator import build_accelerator
from .classifiers import normalization_of, size_of
from .loop import Plan, train_steps


_SEED = 0


class DenseHead(nn.Module):
    """Features (B, D, h, w) and a channel dropout mask (B, D), 1 = keep -> logits (B, K, h, w)."""

    def __init__(self, width: int, num_classes: int, dropout: float):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm2d(width), nn.Conv2d(width, num_classes, 1)
        self.kept = 1 - dropout
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, stays: Tensor | None = None) -> Tensor:
        features = self.norm(features)
        if stays is not None:
            features = features * (stays / self.kept)[:, :, None, None]
        return self.linear(features)


@dataclass
class Probe:
    """A dense head, and the frozen encoder that computes its feature maps."""

    encoder: Encoder
    features: FeatureMap
    head: Any
    settings: Dense
    size: int
    classes: list[int]
    accelerator: Accelerator

    def inputs(self, pixels: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> normalized input of the encoder (B, C, H, W)."""
        pixels = pixels.permute(0, 3, 1, 2).to(self.accelerator.device, non_blocking=True)
        return TF.normalize(pixels.float() / 255, *normalization_of(self.encoder))

    def maps(self, inputs: Tensor) -> Tensor:
        with torch.no_grad(), self.accelerator.autocast():
            return self.features(inputs).float()

    def numbers(self, masks: Tensor) -> Tensor:
        """Map mask values to class numbers 0..K-1; `IGNORED` stays."""
        table = torch.full((IGNORED + 1,), IGNORED)
        table[torch.tensor(self.classes)] = torch.arange(len(self.classes))
        return table[masks.long()].to(self.accelerator.device)


def dense(
    model: str,
    data: DataConfig,
    monitor: MonitorConfig,
    settings: Dense,
    *,
    folder: Path,
    mask_column: str | None = None,
    ignored: tuple[int, ...] = (),
    baselines: bool = False,
    train: TrainConfig | None = None,
) -> dict[str, Any]:
    """Train and evaluate a dense probe; every process must call it.

    Args:
        model: see `open_model`.
        folder: for checkpoints, so that a killed run resumes, and for finished results.
        mask_column, ignored: see `masked_sources`.
        baselines: also evaluate an untrained network of the same architecture, and raw patch pixels.

    Returns:
        As `hf_ssl.evaluation.evaluate.evaluate`: "miou", "pixel_accuracy", and the IoU of each class in `classes`.

    Raises:
        RecipeError: the model or the data are unsuitable.
        Interrupted: stopped by a signal.
    """
    state = process_state()
    encoder = open_model(model, pooler=False)
    if (towers := encoder.modality.towers) != ("",):
        raise RecipeError(
            f"{model} has the towers {' and '.join(towers)}, but dense evaluation needs an image encoder."
        )
    size = settings.size or size_of(encoder)
    shape = _shape_of(encoder, size)
    with state.main_process_first():  # one process fills the cache of `datasets`
        bank, queries = masked_sources(data, monitor, mask_column, ignored)
    bank, here, broken = _checked(bank)
    queries, there, broken_queries = _checked(queries)
    classes = sorted(here | there)
    if len(here) < 2 or not there:
        raise RecipeError(
            f"The masks of {data.path} have fewer than two classes (not counting {IGNORED}, which is ignored)."
        )
    train = replace(train or TrainConfig(), batch_size=settings.batch_size, seed=_SEED)

    def measure(one: Encoder, features: FeatureMap) -> dict[str, Any]:
        how = (settings, (size, *shape), classes, data.num_workers)
        found = _measured(one, features, bank, queries, how, folder=folder, train=train)
        return found | {"failed": broken + broken_queries + found["failed"]}

    result = measure(encoder, feature_map(encoder))
    if baselines:
        untrained, pixels = encoder.untrained(), encoder.raw_pixels()
        result["baselines"] = {
            untrained.name: measure(untrained, feature_map(untrained)),
            "raw pixels": measure(pixels, patch_pixels(shape)),
        }
    measured: dict[str, Any] = {"bank": bank.part, "num_bank": len(bank), "queries": queries.part}
    measured |= {"num_queries": len(queries), "num_classes": len(classes), "notes": []}
    if unknown := sorted(there - here):
        measured["notes"].append(f"The classes {unknown} have no training pixels; their IoU is 0.")
    about = {"protocol": "dense", "settings": asdict(settings), "measured": measured, "said": settings.said()}
    return result | about


def _shape_of(encoder: Encoder, size: int) -> tuple[int, int]:
    """Size (h, w) of the encoder's feature map for an image of `size` pixels.

    Raises:
        RecipeError: it does not accept this image size, or has no feature map.
    """
    blank = torch.zeros(1, len(normalization_of(encoder)[0]), size, size)
    try:
        with torch.no_grad():
            found = feature_map(encoder)(blank)
    except RecipeError:
        raise
    except Exception as error:  # networks raise many types
        raise RecipeError(
            f"{encoder.name} does not support images of {size} x {size} pixels ({first_line(error)}); use --protocol "
            "small, which uses the encoder's own size."
        ) from error
    return found.shape[-2], found.shape[-1]


def _checked(masked: Masked) -> tuple[Masked, set[int], list[str]]:
    """The readable examples, their classes, and the names of unreadable ones.

    Raises:
        RecipeError: a mask does not fit its image, or nothing is readable.
    """
    state = process_state()
    said: str | None = None
    own: tuple[set[int], list[int], list[str]] = (set(), [], [])
    try:
        own = classes_in(masked, state.process_index, state.num_processes)
    except RecipeError as error:  # raised on all processes below, so that none waits forever
        said = str(error)
    if any(faults := gather_object([said])):
        raise RecipeError(next(filter(None, faults)))
    parts = gather_object([own])
    good = sorted(index for part in parts for index in part[1])
    failed = sorted(name for part in parts for name in part[2])
    if not good:
        raise RecipeError(f"None of the {len(failed)} images with masks could be read, the first is {failed[0]}.")
    return masked.select(good) if failed else masked, set().union(*(part[0] for part in parts)), failed


def _measured(
    encoder: Encoder,
    features: FeatureMap,
    bank: Masked,
    queries: Masked,
    how: tuple[Dense, tuple[int, int, int], list[int], int],
    *,
    folder: Path,
    train: TrainConfig,
) -> dict[str, Any]:
    """Results for one encoder, read from `folder` if already finished."""
    settings, sizes, classes, num_workers = how
    about: list[Any] = [encoder.name, asdict(settings), sizes, classes, bank.ignored]
    sources = (bank.source, bank.masks, queries.source, queries.masks)
    about += [key_of(encoder, source, train.precision or "") for source in sources]
    folder = folder / xxhash.xxh3_64_hexdigest(json.dumps(about, sort_keys=True).encode())
    done = folder / "figures.json"
    if gather_object([done.exists()])[0]:
        return json.loads(done.read_text())
    accelerator = build_accelerator(replace(train, output_dir=str(folder)))
    set_seed(_SEED)
    encoder.to(accelerator.device)
    probe = Probe(encoder, features, None, settings, sizes[0], classes, accelerator)
    failed = _train(probe, bank, folder, train, num_workers)
    counts, missed = _judged(probe, queries, num_workers)
    found = figures(counts, classes) | {"failed": failed + missed, "bank": len(bank), "queries": len(counts)}
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(done, json.dumps(found))
    accelerator.wait_for_everyone()
    return found


def _train(probe: Probe, bank: Masked, folder: Path, train: TrainConfig, num_workers: int) -> list[str]:
    """Train the head; returns the names of unreadable files."""
    settings, size, device = probe.settings, probe.size, probe.accelerator.device
    if len(bank) < settings.batch_size:
        raise RecipeError(
            f"The batch size {settings.batch_size} exceeds the {len(bank)} training images; lower --train-batch-size."
        )
    per_epoch = steps_in_epoch(len(bank), settings.batch_size)
    steps = settings.steps if settings.epochs is None else max(1, round(settings.epochs * per_epoch))
    mean = normalization_of(probe.encoder)[0]
    crops = MaskedCrops(size, settings.scales, tuple(round(255 * one) for one in mean))
    width = probe.maps(probe.inputs(torch.zeros(1, size, size, len(mean), dtype=torch.uint8))).shape[1]
    head = DenseHead(width, len(probe.classes), settings.dropout).to(device)
    groups = [{"params": list(head.parameters()), "lr": settings.lr[0], "peak_lr": settings.lr[0]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)

    def loader(start: int) -> TrainLoader:
        return TrainLoader(
            bank,  # type: ignore[arg-type]  # has all that the loader needs from a source
            crops,
            batch_size=settings.batch_size,
            num_steps=steps,
            seed=_SEED,
            start_step=start,
            rank=probe.accelerator.process_index,
            world_size=probe.accelerator.num_processes,
            num_workers=num_workers,
        )

    def loss(network: nn.Module, batch: dict[str, Any]) -> Tensor:
        stays = torch.stack([_stay(seed, width, settings.dropout) for seed in batch["seeds"].tolist()]).to(device)
        scores = network(probe.maps(probe.inputs(batch["pixels"])), stays).float()
        scores = F.interpolate(scores, (size, size), mode="bilinear", align_corners=False)
        asked = probe.numbers(batch["classes"])
        count = all_reduce_sum((asked != IGNORED).sum().float()).clamp(min=1)  # global; DDP averages: * world_size()
        return F.cross_entropy(scores, asked, ignore_index=IGNORED, reduction="sum") * world_size() / count

    about = {"dense": asdict(settings)}
    plan = Plan(steps, per_epoch, loader, loss, lambda step: rate(settings, step, steps), about, settings.clip)
    probe.head, failed = train_steps(plan, head, optimizer, folder=folder, train=train, accelerator=probe.accelerator)
    return failed


def _stay(seed: int, width: int, dropout: float) -> Tensor:
    """Channel dropout mask of an example, seeded so that it does not depend on the number of processes."""
    return (torch.rand(width, generator=torch.Generator().manual_seed(seed)) >= dropout).float()


def rate(settings: Dense, step: int, num_steps: int) -> float:
    """Learning rate at a step (from 0) as a fraction of the peak: linear warmup, then cosine decay to 0."""
    warmup = round(settings.warmup * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(num_steps - warmup, 1))) / 2


class _Whole(Dataset):
    """Whole images uint8 (H, W, C) with short side `size`, and their masks; or the name of an unreadable one."""

    def __init__(self, masked: Masked, indices: range, size: int, channels: int):
        self.masked, self.indices, self.size, self.channels = masked, indices, size, channels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor | None, Tensor | None, str]:
        index = self.indices[i]
        try:
            record = self.masked.record(index)
            image = self.masked.image_of(record, self.channels)
            image = image.resize(resized(image.size, self.size), Image.Resampling.BILINEAR)
            pixels = np.asarray(image).reshape(image.height, image.width, -1).copy()
            return torch.from_numpy(pixels), torch.from_numpy(self.masked.mask_of(record)), ""
        except Exception as error:  # decoders raise many types; skip the file
            return None, None, f"{self.masked.name(index)} ({first_line(error)})"


@torch.no_grad()
def _judged(probe: Probe, queries: Masked, num_workers: int) -> tuple[Tensor, list[str]]:
    """Pixel counts (N, 3, K) of all readable images, in dataset order, and the names of unreadable ones."""
    accelerator, size = probe.accelerator, probe.size
    head = probe.head.eval()
    rank, world = accelerator.process_index, accelerator.num_processes
    examples = _Whole(queries, range(rank, len(queries), world), size, len(normalization_of(probe.encoder)[0]))
    loader = DataLoader(
        examples,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=share,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # do not advance the global random state
    )

    def predict(windows: Tensor) -> Tensor:
        scores = head(probe.maps(windows)).float()
        return F.interpolate(scores, (size, size), mode="bilinear", align_corners=False)

    counts, failed = [], []
    for number, (pixels, mask, broken) in enumerate(batches(loader)):
        if broken:
            failed.append(broken)
            continue
        scores = slide(predict, probe.inputs(pixels[None])[0], size, round(size * 2 / 3))
        told = winner(scores, tuple(mask.shape))
        place = examples.indices[number]
        counts.append((place, overlaps(told, probe.numbers(mask), len(probe.classes)).cpu()))
    every = sorted(gather_object(counts), key=lambda one: one[0])
    if not every:
        raise RecipeError(f"None of the {len(queries)} query images could be read.")
    return torch.stack([one for _, one in every]), sorted(gather_object(failed))
