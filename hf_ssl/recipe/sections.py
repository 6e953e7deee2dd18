# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A recipe: everything that decides a run, as frozen dataclasses."""

import os
import re
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ..errors import RecipeError


# Of a number that a recipe may leave open: hf_ssl.training.choices replaces `auto` before anything else reads it.
AUTO = "auto"
WholeOrAuto = Annotated[int, AUTO]
NumberOrAuto = Annotated[float, AUTO]


def _set(section: Any, **values: Any) -> None:
    """Give a frozen section, while it is made, a value in its usual form."""
    for key, value in values.items():
        object.__setattr__(section, key, value)


def _under_home(path: str | None) -> str | None:
    """A path whose ~ is the home folder."""
    return path and os.path.expanduser(path)


@dataclass(frozen=True)
class Place:
    """One of several places of `data.path`."""

    path: str = ""
    weight: float = 1.0  # how often its images are shown in an epoch; of 0.5 a half of them, chosen once, is shown

    def __post_init__(self):
        _set(self, path=os.path.expanduser(self.path))
        if not self.path:
            raise RecipeError("data.path: each place of a list needs a path.")
        if not 0 < self.weight < inf:
            raise RecipeError(f"data.path: the weight of {self.path} must be greater than 0, not {self.weight}.")


class Places(tuple[Place, ...]):
    """Several places, which a message calls by their paths."""

    def __str__(self) -> str:
        return ", ".join(place.path for place in self)


@dataclass(frozen=True)
class DataConfig:
    """Where the images, or videos with sound, are. Labels are never needed to pretrain."""

    path: str | tuple[str | Place, ...] | None = None  # folder, Parquet or tar files, Hub id, URL; or a list of these
    name: str | None = None  # configuration of a Hub dataset
    revision: str | None = None  # revision of a Hub dataset
    split: str = "train"
    image_column: str | None = None  # found by its type when there is one
    video_column: str | None = None  # files with sound, or frames alone beside an audio_column; found by its type
    audio_column: str | None = None  # where the sound is not in the video's file; found by its type
    label_column: str | None = None  # for the monitor; found by its type
    max_examples: int | None = None  # only the first n examples
    streaming: bool = False  # read shard by shard instead of being indexed first: for what does not fit the disk
    num_examples: int | None = None  # of an epoch of a stream; without it train.steps is one epoch
    partitions: int | None = None  # parts of a stream that processes share out, a multiple of them; default: 16
    shuffle_block: int = 256  # examples that a partition reads and permutes together
    max_megapixels: float = 50.0  # larger images are skipped
    value_range: Literal["full"] | tuple[float, float] | None = None  # black and white of files deeper than 8 bits
    exif: Literal["apply", "ignore"] = "apply"  # whether photos are turned upright
    num_workers: WholeOrAuto = 4  # loader processes per training process
    max_failed_share: float = 0.1  # the run stops when more than this share of the last 1,000 images cannot be read

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
        """The places of a list; none where `path` is a single one."""
        return self.path if isinstance(self.path, Places) else Places()


@dataclass(frozen=True)
class ViewOverride:
    """Changes to a preset's view; `None` keeps the preset's value. See `hf_ssl.data.views.View` for the meanings."""

    count: int | None = None
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
    """What the network sees of an image: a preset, and changes to all of its views or to one."""

    preset: str | None = None  # of hf_ssl.data.views; default: the method's
    photometric: Literal["fast", "reference"] = "fast"  # or per image, as published
    arithmetic: Literal["auto", "torch"] = "auto"  # of fast ones: OpenCV on a CPU; or that of a GPU there, too
    colors: Literal["torchvision", "deepmind"] | None = None  # arithmetic of all views' colors; default: the preset's
    all: ViewOverride = field(default_factory=ViewOverride)
    first: ViewOverride = field(default_factory=ViewOverride)
    second: ViewOverride = field(default_factory=ViewOverride)
    local: ViewOverride = field(default_factory=ViewOverride)


@dataclass(frozen=True)
class ClipsConfig:
    """How a clip is cut out of a video with sound (AVID); its lengths and rates are the model's."""

    offset: float = 0.5  # seconds by which the frames may lie outside of the sound's window
    volume: float = 0.1  # the sound is multiplied by a factor of 1 - volume to 1 + volume


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule. Learning rates are per `lr_per` images of the global batch."""

    name: Literal["lars", "larc", "sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.05
    lr_per: int | None = 256  # null: `lr` is absolute
    lr_bias_and_norm: float | None = None  # own learning rate for one-dimensional tensors (Barlow Twins)
    weight_decay: float = 0.0
    exclude_bias_and_norm: bool = False  # one-dimensional tensors get neither decay nor LARS adaptation
    fixed_predictor_lr: bool = False  # the predictor keeps the peak learning rate (SimSiam)
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    trust_coefficient: float = 0.001  # LARS and LARC
    layer_decay: float | None = None  # each layer of the backbone learns so much slower than the one behind it
    clip_grad_norm: float | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    cosine_over: Literal["run", "after_warmup"] = "after_warmup"  # run: it has begun before the warm-up ends (VISSL)
    schedule_by: Literal["step", "epoch"] = "step"
    warmup_epochs: NumberOrAuto = 0.0
    warmup_steps: int | None = None  # instead of warmup_epochs
    warmup_lr_fraction: float = 0.0  # where the warm-up starts, as a fraction of the peak
    warmup_reaches_peak: bool = False  # the last warm-up step is already at the peak (SwAV)
    final_lr_fraction: float = 0.0  # where the cosine or the cool-down ends, as a fraction of the peak
    cooldown_epochs: float = 0.0  # at the end of a constant schedule the rate goes down in a line


@dataclass(frozen=True)
class TrainConfig:
    """The run: how long, how large, how precise, and what is kept."""

    output_dir: str | None = None  # default: runs/<recipe name>
    init_from: str | None = None  # weights of the same method to start from: a run's folder, or an exported model
    epochs: NumberOrAuto | None = None
    minutes: float = 15.0  # that `epochs: auto` takes where there is no GPU
    steps: int | None = None  # instead of epochs
    batch_size: WholeOrAuto = 256  # images of one optimiser step over all processes
    accumulation: int = 1  # micro-batches per optimiser step
    seed: int = 0
    precision: Literal["auto", "no", "fp16", "bf16"] | None = "auto"  # null: what `accelerate launch` says
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = True  # BatchNorm statistics over all processes
    gradient_checkpointing: bool = False
    freeze_backbone_epochs: float = 0.0  # at first only the heads learn
    log_every: int = 10  # steps
    checkpoint_every: NumberOrAuto = 1.0  # epochs
    checkpoint_minutes: float | None = None  # and at least as often as this
    keep: int = 2  # newest checkpoints
    keep_every: float | None = None  # epochs: these checkpoints stay, and their models in milestones/
    resume: Literal["auto", "never"] = "auto"
    track: tuple[Literal["trackio", "tensorboard", "wandb"], ...] = ()
    push_to_hub: str | None = None  # "user/name": published while it trains and at the end; see `hf auth login`
    push_every: int = 1  # checkpoints
    push_private: bool | None = None  # default: as the account has it

    def __post_init__(self):
        _set(self, output_dir=_under_home(self.output_dir), init_from=_under_home(self.init_from))

    @property
    def folder(self) -> Path:
        """Where the run is kept.

        Raises:
            RecipeError: the recipe does not say.
        """
        if self.output_dir is None:
            raise RecipeError("The recipe names no folder for the run; set train.output_dir.")
        return Path(self.output_dir)


@dataclass(frozen=True)
class MonitorConfig:
    """What is measured while training; kNN needs a labelled dataset, the collapse diagnostics do not."""

    every: NumberOrAuto = 1.0  # epochs; 0: only before and after training
    path: str | None = None  # labelled dataset; default: data.path when it has labels
    name: str | None = None
    bank_split: str = "train"
    query_split: str = "test"
    image_column: str | None = None
    label_column: str | None = None
    max_bank: int | None = None
    max_queries: int | None = None
    k: int = 20
    temperature: float = 0.1
    probe: bool = False  # of images: a linear classifier that learns from the features while they are trained
    num_samples: int = 2048  # images for the collapse diagnostics
    batch_size: int = 256

    def __post_init__(self):
        _set(self, path=_under_home(self.path))


@dataclass(frozen=True)
class Recipe:
    """A whole run. `model` holds fields of the method's config (see `hf_ssl.models`), and `init_from`: pretrained
    weights of the encoder, "timm/resnet50.a1_in1k", a Hub id or a folder.
    """

    method: str  # one of METHODS, or "path/to/file.py:Class" or "package.module:Class", see hf_ssl.methods
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    model: dict[str, Any] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    name: str | None = None  # of the shipped recipe that it was read from, whatever was changed since

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
        """A copy without the folders of whoever ran it: local paths become their last part, Hub ids stay."""
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
        """What the network is before training, for a person."""
        return "pretrained" if self.train.init_from or self.model.get("init_from") else "untrained"

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def flat_text(self) -> dict[str, str | int | float | bool]:
        """Dotted key -> value, as trackers want it."""
        flat = flatten(self.to_dict())
        return {k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in flat.items()}

    def per_process_batch(self, world_size: int) -> int:
        """Images of one forward on one process.

        Raises:
            RecipeError: the global batch does not divide by processes x accumulation.
        """
        parts = world_size * self.train.accumulation
        if self.train.batch_size % parts:
            lower = self.train.batch_size // parts * parts
            near = f"{lower} or {lower + parts}" if lower else str(parts)
            raise RecipeError(
                f"train.batch_size={self.train.batch_size} does not divide by {world_size} process(es) x "
                f"train.accumulation={self.train.accumulation}; the nearest that do are {near}."
            )
        return self.train.batch_size // parts


def method_name(method: str) -> str:
    """A method without the folder of its file."""
    place, colon, class_name = method.rpartition(":")
    return f"{Path(place).name if place.endswith('.py') else place}{colon}{class_name}"


def _without_folders(place: str) -> str:
    """What others may know of a place: a Hub id, a URL, or the last part of a path."""
    if _is_hub_id(place):
        return place
    return Path(place.partition("?")[0] if "://" in place else place).expanduser().resolve().name


def _is_hub_id(place: str) -> bool:
    """Whether "user/name" cannot be a path here; runs/ is where runs are by default."""
    match = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", place)
    return bool(match) and not place.startswith("runs/") and not os.path.exists(place)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of nested dicts."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, sub in value.items() for k, v in flatten(sub, f"{prefix}.{key}" if prefix else key).items()}
