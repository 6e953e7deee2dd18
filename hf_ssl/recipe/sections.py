# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A recipe: all settings of a run, as frozen dataclasses."""

import os
import re
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ..errors import RecipeError


# Numbers that may be `auto`; hf_ssl.training.choices replaces it before anything else reads the recipe.
AUTO = "auto"
WholeOrAuto = Annotated[int, AUTO]
NumberOrAuto = Annotated[float, AUTO]


def _set(section: Any, **values: Any) -> None:
    """Normalize values in the `__post_init__` of a frozen section."""
    for key, value in values.items():
        object.__setattr__(section, key, value)


def _under_home(path: str | None) -> str | None:
    """Expand ~ to the home folder."""
    return path and os.path.expanduser(path)


@dataclass(frozen=True)
class Place:
    """One entry of a list in `data.path`."""

    path: str = ""  # folder, Parquet or tar files, Hub id, URL
    weight: float = 1.0  # how often its images are shown per epoch; 0.5 shows a fixed random half of them

    def __post_init__(self):
        _set(self, path=os.path.expanduser(self.path))
        if not self.path:
            raise RecipeError("data.path: each entry of the list needs a path.")
        if not 0 < self.weight < inf:
            raise RecipeError(f"data.path: the weight of {self.path} must be greater than 0, not {self.weight}.")


class Places(tuple[Place, ...]):
    """Several places; printed as their paths."""

    def __str__(self) -> str:
        return ", ".join(place.path for place in self)


@dataclass(frozen=True)
class DataConfig:
    """Where the images or videos are. Pretraining never needs labels."""

    path: str | tuple[str | Place, ...] | None = None  # folder, Parquet or tar files, Hub id, URL; or a list of these
    name: str | None = None  # configuration of a Hub dataset
    revision: str | None = None  # revision of a Hub dataset
    split: str = "train"  # split to train on
    image_column: str | None = None  # default: found by type
    video_column: str | None = None  # files with sound, or frames only if there is an audio_column; default: by type
    audio_column: str | None = None  # if the video files have no sound; default: found by type
    label_column: str | None = None  # for the monitor; default: found by type
    max_examples: int | None = None  # use only the first n examples
    streaming: bool = False  # read shard by shard without an index, for data that does not fit on the disk
    num_examples: int | None = None  # examples per epoch of a stream; if unset, train.steps is one epoch
    partitions: int | None = None  # parts of a stream, a multiple of the number of processes; default: 16
    shuffle_block: int = 256  # examples that a partition reads and shuffles together
    max_megapixels: float = 50.0  # larger images are skipped
    value_range: Literal["full"] | tuple[float, float] | None = None  # black and white of files with over 8 bits
    exif: Literal["apply", "ignore"] = "apply"  # whether to rotate photos according to EXIF
    num_workers: WholeOrAuto = 4  # loader processes per training process
    max_failed_share: float = 0.1  # stop if more than this share of the last 1,000 images cannot be read

    def __post_init__(self):
        if isinstance(self.path, str | os.PathLike):
            _set(self, path=os.path.expanduser(self.path))
        elif self.path is not None:
            places = (place if isinstance(place, Place) else Place(place) for place in self.path)
            _set(self, path=Places(places))
            if not self.path:
                raise RecipeError("data.path is an empty list; name a folder, file or Hub dataset.")
        if isinstance(self.value_range, tuple) and not -inf < self.value_range[0] < self.value_range[1] < inf:
            raise RecipeError(f"data.value_range must be [low, high] with low < high, not {list(self.value_range)}.")

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else [place.path for place in self.places]

    @property
    def places(self) -> Places:
        """Entries if `path` is a list, otherwise empty."""
        return self.path if isinstance(self.path, Places) else Places()


@dataclass(frozen=True)
class ViewOverride:
    """Overrides for one view; `None` keeps the preset's value. See `hf_ssl.data.views.View` for the fields."""

    count: int | None = None  # number of such views per image
    size: WholeOrAuto | None = None
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None
    crop: Literal["retry", "clip"] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    flip: float | None = None
    jitter: tuple[float, float, float, float] | None = None
    jitter_prob: float | None = None
    brightness: Literal["multiply", "add"] | None = None
    grayscale: float | None = None
    blur: float | None = None
    blur_sigma: tuple[float, float] | None = None
    solarize: float | None = None
    solarize_threshold: float | None = None


@dataclass(frozen=True)
class ViewsConfig:
    """Augmentations: a preset, with overrides for all views or for one."""

    preset: str | None = None  # see hf_ssl.data.views; default: the method's
    photometric: Literal["fast", "reference"] = "fast"  # fast: in batches; reference: per image, as published
    arithmetic: Literal["auto", "torch"] = "auto"  # of fast views; auto: OpenCV on a CPU, torch: the same as on a GPU
    colors: Literal["torchvision", "deepmind"] | None = None  # color arithmetic of all views; default: the preset's
    all: ViewOverride = field(default_factory=ViewOverride)  # changes to every view
    first: ViewOverride = field(default_factory=ViewOverride)  # changes to the first global view
    second: ViewOverride = field(default_factory=ViewOverride)  # changes to the second global view
    local: ViewOverride = field(default_factory=ViewOverride)  # changes to the small local crops


@dataclass(frozen=True)
class ClipsConfig:
    """How clips are cut from videos with sound (AVID); the model sets their lengths and rates."""

    offset: float = 0.5  # how far, in seconds, the frames may extend beyond the audio window
    volume: float = 0.1  # multiply the audio by a random factor from 1 - volume to 1 + volume


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule. Learning rates are per `lr_per` images of the global batch."""

    name: Literal["lars", "larc", "sgd", "adam", "adamw"] = "sgd"  # larc: SGD with LARC scaling
    lr: float = 0.05  # peak learning rate
    lr_per: int | None = 256  # batch size that `lr` is for; null: `lr` is absolute
    lr_bias_and_norm: float | None = None  # separate learning rate for one-dimensional tensors (Barlow Twins)
    weight_decay: float = 0.0  # decoupled for AdamW, an L2 penalty otherwise
    exclude_bias_and_norm: bool = False  # no weight decay and no LARS scaling for one-dimensional tensors
    fixed_predictor_lr: bool = False  # the predictor keeps the peak learning rate (SimSiam)
    momentum: float = 0.9  # SGD, LARS and LARC
    betas: tuple[float, float] = (0.9, 0.999)  # Adam and AdamW
    trust_coefficient: float = 0.001  # LARS and LARC
    layer_decay: float | None = None  # factor on the learning rate from each backbone layer to the one before it
    clip_grad_norm: float | None = None  # maximum norm of all gradients together; default: no clipping
    schedule: Literal["cosine", "constant"] = "cosine"  # learning rate after the warm-up
    cosine_over: Literal["run", "after_warmup"] = "after_warmup"  # run: it starts at step 0 (VISSL)
    schedule_by: Literal["step", "epoch"] = "step"  # how often the learning rate changes
    warmup_epochs: NumberOrAuto = 0.0  # length of the linear warm-up
    warmup_steps: int | None = None  # instead of warmup_epochs
    warmup_lr_fraction: float = 0.0  # learning rate at the start of the warm-up, as a fraction of the peak
    warmup_reaches_peak: bool = False  # the last warm-up step is already at the peak (SwAV)
    final_lr_fraction: float = 0.0  # learning rate at the end of the cosine or cool-down, as a fraction of the peak
    cooldown_epochs: float = 0.0  # linear decay at the end of a constant schedule


@dataclass(frozen=True)
class TrainConfig:
    """The run: length, batch size, precision, checkpoints."""

    output_dir: str | None = None  # default: runs/<recipe name>
    init_from: str | None = None  # start from weights of the same method: a run's folder or an exported model
    epochs: NumberOrAuto | None = None  # length of the run
    minutes: float = 15.0  # length of the run with epochs: auto and no GPU
    steps: int | None = None  # instead of epochs
    batch_size: WholeOrAuto = 256  # images per optimizer step over all processes
    accumulation: int = 1  # micro-batches per optimizer step
    seed: int = 0  # of weights, data order and views
    precision: Literal["auto", "no", "fp16", "bf16"] | None = "auto"  # null: from `accelerate launch`
    channels_last: bool = True  # memory format of images and convolutions, faster on most hardware
    compile: bool = False  # torch.compile
    sync_batchnorm: bool = True  # BatchNorm statistics over all processes
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: less memory, more time
    freeze_backbone_epochs: float = 0.0  # train only the heads for so many epochs at first
    log_every: int = 10  # steps between log lines
    checkpoint_every: NumberOrAuto = 1.0  # epochs between checkpoints
    checkpoint_minutes: float | None = None  # also checkpoint at least this often, in minutes
    keep: int = 2  # number of newest checkpoints to keep
    keep_every: float | None = None  # epochs between checkpoints kept for good, with their models in milestones/
    resume: Literal["auto", "never"] = "auto"  # continue from the newest checkpoint; never: refuse a used folder
    track: tuple[Literal["trackio", "tensorboard", "wandb"], ...] = ()  # experiment trackers to log to
    push_to_hub: str | None = None  # "user/name": publish during training and at the end; see `hf auth login`
    push_every: int = 1  # checkpoints between pushes
    push_private: bool | None = None  # default: the account's default

    def __post_init__(self):
        _set(self, output_dir=_under_home(self.output_dir), init_from=_under_home(self.init_from))

    @property
    def folder(self) -> Path:
        """Output folder of the run; RecipeError if the recipe does not set one."""
        if self.output_dir is None:
            raise RecipeError("The recipe has no output folder; set train.output_dir.")
        return Path(self.output_dir)


@dataclass(frozen=True)
class MonitorConfig:
    """Measurements during training; kNN needs a labeled dataset, the collapse diagnostics do not."""

    every: NumberOrAuto = 1.0  # epochs between measurements; 0: only before and after training
    path: str | None = None  # labeled dataset; default: data.path if it has labels
    name: str | None = None  # configuration of a Hub dataset
    bank_split: str = "train"  # split whose labels vote
    query_split: str = "test"  # split that is classified
    image_column: str | None = None  # default: found by type
    label_column: str | None = None  # default: found by type
    max_bank: int | None = None  # maximum number of examples from bank_split
    max_queries: int | None = None  # maximum number of examples from query_split
    k: int = 20  # nearest neighbors that vote
    temperature: float = 0.1  # of the votes' weights, exp(similarity / temperature)
    probe: bool = False  # images only: train a linear classifier on the features during pretraining
    num_samples: int = 2048  # images for the collapse diagnostics
    batch_size: int = 256  # images embedded at once

    def __post_init__(self):
        _set(self, path=_under_home(self.path))


@dataclass(frozen=True)
class Recipe:
    """All settings of a run. `model` holds fields of the method's config (see `hf_ssl.models`) and `init_from`, the
    pretrained weights of the encoder: "timm/resnet50.a1_in1k", a Hub id or a folder.
    """

    method: str  # avid, barlow_twins, byol, simsiam, swav, or `path/to/file.py:Class`, `package.module:Class`
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    model: dict[str, Any] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    name: str | None = None  # name of the shipped recipe that this one was read from, even if modified

    def __post_init__(self):
        if isinstance(self.model.get("init_from"), str):
            _set(self, model={**self.model, "init_from": os.path.expanduser(self.model["init_from"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict; `views` keeps only what differs from the preset."""
        plain = _plain(asdict(self))
        for key in ("all", "first", "second", "local"):
            plain["views"][key] = {k: v for k, v in plain["views"][key].items() if v is not None}
        return plain

    def shareable(self) -> "Recipe":
        """A copy without private folder names: local paths are cut to their last part, Hub ids stay."""
        data, monitor, train, model = self.data, self.monitor, self.train, dict(self.model)
        if isinstance(data.path, Places):
            places = tuple(replace(place, path=_without_folders(place.path)) for place in data.path)
            data = replace(data, path=places)
        elif isinstance(data.path, str):
            data = replace(data, path=_without_folders(data.path))
        if monitor.path is not None:
            monitor = replace(monitor, path=_without_folders(monitor.path))
        start = train.init_from and _without_folders(train.init_from)
        train = replace(train, output_dir=None, init_from=start)
        if isinstance(model.get("init_from"), str):
            model["init_from"] = _without_folders(model["init_from"])
        return replace(self, method=method_name(self.method), data=data, monitor=monitor, train=train, model=model)

    @property
    def start(self) -> str:
        """Whether the network is "pretrained" or "untrained" before training."""
        return "pretrained" if self.train.init_from or self.model.get("init_from") else "untrained"

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def flat_text(self) -> dict[str, str | int | float | bool]:
        """Flat dict from dotted key to value, for experiment trackers."""
        flat = flatten(self.to_dict())
        return {k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in flat.items()}

    def per_process_batch(self, world_size: int) -> int:
        """Images per forward pass and process; RecipeError if the global batch is not divisible."""
        parts = world_size * self.train.accumulation
        if self.train.batch_size % parts:
            lower = self.train.batch_size // parts * parts
            near = f"{lower} or {lower + parts}" if lower else str(parts)
            raise RecipeError(
                f"train.batch_size={self.train.batch_size} is not divisible by {world_size} process(es) x "
                f"train.accumulation={self.train.accumulation}; the nearest valid sizes are {near}."
            )
        return self.train.batch_size // parts


def method_name(method: str) -> str:
    """Name of a method without the folder of its file."""
    place, colon, class_name = method.rpartition(":")
    return f"{Path(place).name if place.endswith('.py') else place}{colon}{class_name}"


def _without_folders(place: str) -> str:
    """The part of a place to publish: a Hub id, or the last part of a path or URL."""
    if _is_hub_id(place):
        return place
    return Path(place.partition("?")[0] if "://" in place else place).expanduser().resolve().name


def _is_hub_id(place: str) -> bool:
    """Whether "user/name" is not a local path; runs/ is the default folder for runs."""
    match = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", place)
    return bool(match) and not place.startswith("runs/") and not os.path.exists(place)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, sub in value.items() for k, v in flatten(sub, f"{prefix}.{key}" if prefix else key).items()}
