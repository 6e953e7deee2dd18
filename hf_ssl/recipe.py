# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A recipe: everything that decides a run, as dataclasses read from YAML and `a.b=c` overrides.

Validation happens here, before data or models are touched: a misspelt key, a wrong type or an impossible value is one
sentence (`RecipeError`) that names the key and the nearest valid one.
"""

import math
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from datetime import date
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

from .coerce import RecipeError, build, nearest
from .files import read_text, read_yaml


_CONFIGURATIONS = (Path(__file__).parent / "models").glob("configuration_*.py")  # importing them would take seconds
METHODS = tuple(sorted({file.stem.removeprefix("configuration_") for file in _CONFIGURATIONS} - {"ssl"}))

# Keys that may differ between a run and its continuation: they change what is written or how fast, never the weights.
FREE_ON_RESUME = (
    "data.num_workers",
    "data.path",
    "monitor",
    "name",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.keep",
    "train.keep_every",
    "train.log_every",
    "train.output_dir",
    "train.push_every",
    "train.push_private",
    "train.push_to_hub",
    "train.resume",
    "train.track",
)
# Keys that had another name once.
RENAMED = {"train.keep_checkpoints": "train.keep"}

# What a run did whose checkpoint is of a format below the number and does not know the key; it goes on doing so.
MEANT_BEFORE: dict[int, dict[str, Any]] = {
    2: {
        "data.exif": "ignore",
        "data.value_range": "full",
        "views.colors": "torchvision",
        "optim.cosine_over": "after_warmup",
        "model.first_shortcut": "identity",
    },
}

_DECIDED = (
    "backbone",
    "backbone_args",
    "stem",
    "padding",
    "first_shortcut",
    "num_channels",
    "image_mean",
    "image_std",
)

# Interval -> the keys that must lie in it; `views.*` stands for all, first, second and local.
_RANGES = {
    "[0, 1]": (
        *("data.max_failed_share", "optim.warmup_lr_fraction", "optim.final_lr_fraction", "clips.volume"),
        *(f"views.*.{key}" for key in ("flip", "jitter_prob", "grayscale", "blur", "solarize", "solarize_threshold")),
    ),
    "[0, 1)": ("optim.momentum", "optim.betas"),
    "(0, 1]": ("views.*.scale",),
    "[0, 64]": ("views.*.count",),
    "[0, 100]": ("views.*.jitter",),
    "(0, 100]": ("views.*.blur_sigma", "views.*.ratio"),
    "[0, 1024]": ("data.num_workers",),
    "[0, 3600]": ("clips.offset",),
    "[1, 8192]": ("views.*.size",),
    "[1, 65536]": ("data.partitions", "train.accumulation"),
    "(0, 100000]": ("data.max_megapixels", "monitor.temperature"),
    "[1, 1000000]": ("monitor.k", "monitor.batch_size", "data.shuffle_block"),
    "[0, 1000000]": ("optim.weight_decay", "optim.warmup_epochs", "optim.cooldown_epochs"),
    "(0, 1000000]": ("train.epochs", "optim.trust_coefficient"),
    "[0, 4294967295]": ("train.seed",),  # what numpy takes
    "[1, 1000000000]": ("train.batch_size", "optim.lr_per", "monitor.num_samples"),
    "[1, 1000000000000]": (
        *("train.steps", "train.log_every", "train.keep", "train.push_every", "data.max_examples"),
        *("data.num_examples", "monitor.max_bank", "monitor.max_queries"),
    ),
    "[0, 1000000000000]": ("optim.warmup_steps", "monitor.every"),
    "(0, 1000000000000]": ("train.checkpoint_every", "train.checkpoint_minutes", "train.keep_every"),
    "[0, inf)": ("optim.lr", "optim.lr_bias_and_norm"),
    "(0, inf)": ("optim.clip_grad_norm",),
}
_RANGE_OF = {key: interval for interval, keys in _RANGES.items() for key in keys}


def _under_home(path: str | None) -> str | None:
    """A path whose ~ is the home folder."""
    return path and os.path.expanduser(path)


@dataclass
class Place:
    """One of several places of `data.path`."""

    path: str = ""
    weight: float = 1.0  # how often its images are shown in an epoch; of 0.5 a half of them, chosen once, is shown

    def __post_init__(self):
        self.path = os.path.expanduser(self.path)
        if not self.path:
            raise RecipeError("data.path: each place of a list needs a path.")
        if not 0 < self.weight < inf:
            raise RecipeError(f"data.path: the weight of {self.path} must be greater than 0, not {self.weight}.")


class Places(tuple[Place, ...]):
    """Several places, which a message calls by their paths."""

    def __str__(self) -> str:
        return ", ".join(place.path for place in self)


@dataclass
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
    num_workers: int = 4  # loader processes per training process
    max_failed_share: float = 0.1  # the run stops when more than this share of the last 1,000 images cannot be read

    def __post_init__(self):
        if isinstance(self.path, str | os.PathLike):
            self.path = os.path.expanduser(self.path)
        elif self.path is not None:
            self.path = Places(place if isinstance(place, Place) else Place(place) for place in self.path)
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


@dataclass
class ViewOverride:
    """Changes to a preset's view; `None` keeps the preset's value. See `hf_ssl.data.views.View` for the meanings."""

    count: int | None = None
    size: int | None = None
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


@dataclass
class ViewsConfig:
    """What the network sees of an image: a preset, and changes to all of its views or to one."""

    preset: str | None = None  # of hf_ssl.data.views; default: the method's
    photometric: Literal["fast", "reference"] = "fast"  # batched on the device, or per image as published
    colors: Literal["torchvision", "deepmind"] | None = None  # arithmetic of all views' colors; default: the preset's
    all: ViewOverride = field(default_factory=ViewOverride)
    first: ViewOverride = field(default_factory=ViewOverride)
    second: ViewOverride = field(default_factory=ViewOverride)
    local: ViewOverride = field(default_factory=ViewOverride)


@dataclass
class ClipsConfig:
    """How a clip is cut out of a video with sound (AVID); its lengths and rates are the model's."""

    offset: float = 0.5  # seconds by which the frames may lie outside of the sound's window
    volume: float = 0.1  # the sound is multiplied by a factor of 1 - volume to 1 + volume


@dataclass
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
    clip_grad_norm: float | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    cosine_over: Literal["run", "after_warmup"] = "after_warmup"  # run: it has begun before the warm-up ends (VISSL)
    schedule_by: Literal["step", "epoch"] = "step"
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None  # instead of warmup_epochs
    warmup_lr_fraction: float = 0.0  # where the warm-up starts, as a fraction of the peak
    warmup_reaches_peak: bool = False  # the last warm-up step is already at the peak (SwAV)
    final_lr_fraction: float = 0.0  # where the cosine or the cool-down ends, as a fraction of the peak
    cooldown_epochs: float = 0.0  # at the end of a constant schedule the rate goes down in a line


@dataclass
class TrainConfig:
    """The run: how long, how large, how precise, and what is kept."""

    output_dir: str | None = None  # default: runs/<recipe name>
    init_from: str | None = None  # weights of the same method to start from: a run's folder, or an exported model
    epochs: float | None = None
    steps: int | None = None  # instead of epochs
    batch_size: int = 256  # images of one optimiser step over all processes
    accumulation: int = 1  # micro-batches per optimiser step
    seed: int = 0
    precision: Literal["no", "fp16", "bf16"] | None = None  # default: what `accelerate launch` says
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = True  # BatchNorm statistics over all processes
    gradient_checkpointing: bool = False
    log_every: int = 10  # steps
    checkpoint_every: float = 1.0  # epochs
    checkpoint_minutes: float | None = None  # and at least as often as this
    keep: int = 2  # newest checkpoints
    keep_every: float | None = None  # epochs: these checkpoints stay, and their models in milestones/
    resume: Literal["auto", "never"] = "auto"
    track: tuple[Literal["trackio", "tensorboard", "wandb"], ...] = ()
    push_to_hub: str | None = None  # "user/name": published while it trains and at the end; see `hf auth login`
    push_every: int = 1  # checkpoints
    push_private: bool | None = None  # default: as the account has it

    def __post_init__(self):
        self.output_dir, self.init_from = _under_home(self.output_dir), _under_home(self.init_from)

    @property
    def folder(self) -> Path:
        """Where the run is kept.

        Raises:
            RecipeError: the recipe does not say.
        """
        if self.output_dir is None:
            raise RecipeError("The recipe names no folder for the run; set train.output_dir.")
        return Path(self.output_dir)


@dataclass
class MonitorConfig:
    """What is measured while training; kNN needs a labelled dataset, the collapse diagnostics do not."""

    every: float = 1.0  # epochs; 0: only before and after training
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
    num_samples: int = 2048  # images for the collapse diagnostics
    batch_size: int = 256

    def __post_init__(self):
        self.path = _under_home(self.path)


@dataclass
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
            self.model["init_from"] = os.path.expanduser(self.model["init_from"])

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict; `views` keeps only what differs from the preset."""
        plain = _plain(asdict(self))
        for key in ("all", "first", "second", "local"):
            plain["views"][key] = {k: v for k, v in plain["views"][key].items() if v is not None}
        return plain

    def shareable(self) -> "Recipe":
        """A copy without the folders of whoever ran it: local paths become their last part, Hub ids stay."""
        copy = recipe_from_dict(self.to_dict() | {"method": method_name(self.method)})
        copy.train.output_dir = None
        sections = ((vars(copy.data), "path"), (vars(copy.monitor), "path"))
        for section, key in (*sections, (vars(copy.train), "init_from"), (copy.model, "init_from")):
            if section.get(key) and isinstance(section[key], str):
                section[key] = _without_folders(section[key])
        if isinstance(copy.data.path, Places):
            copy.data.path = Places(replace(place, path=_without_folders(place.path)) for place in copy.data.path)
        return copy

    @property
    def start(self) -> str:
        """What the network is before training, for a person."""
        return "pretrained" if self.train.init_from or self.model.get("init_from") else "untrained"

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def flat_text(self) -> dict[str, str | int | float | bool]:
        """Dotted key -> value, as trackers want it."""
        flat = _flatten(self.to_dict())
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
        if self.train.batch_size == parts and not self.train.sync_batchnorm and self.method != "avid":
            raise RecipeError(
                f"train.batch_size={self.train.batch_size} leaves each process one image to a forward, which has no "
                "statistics of a batch; raise it, or set train.sync_batchnorm=true."
            )
        return self.train.batch_size // parts


def load_recipe(source: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by path or by name ("quickstart", "swav/imagenet1k_resnet50"), with `a.b=c` overrides.

    Raises:
        RecipeError: no such recipe, bad YAML, unknown key, wrong type or impossible value.
    """
    path = find_recipe(source)
    content = read_yaml(read_text(path), str(path)) or {}
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must be a mapping of sections (method, data, model, train ...).")
    for override in overrides:
        _apply_override(content, override)
    recipe = recipe_from_dict(content)
    file, colon, class_name = recipe.method.rpartition(":")
    if colon:
        from .methods import load_method

        recipe.method = f"{_locate_data(file, path.parent)}:{class_name}"
        load_method(recipe.method)
    root = recipes_folder().resolve()
    if path.resolve().is_relative_to(root):
        recipe.name = str(path.resolve().relative_to(root).with_suffix(""))
    if isinstance(recipe.data.path, Places):
        located = (replace(place, path=_locate_data(place.path, path.parent)) for place in recipe.data.path)
        recipe.data.path = Places(located)
    elif isinstance(recipe.data.path, str):
        recipe.data.path = _locate_data(recipe.data.path, path.parent)
    if recipe.monitor.path is not None:
        recipe.monitor.path = _locate_data(recipe.monitor.path, path.parent)
    if recipe.train.output_dir is None:
        recipe.train.output_dir = str(Path("runs") / path.stem)
    return recipe


def recipe_from_dict(content: dict[str, Any]) -> Recipe:
    """Build and validate a recipe from nested plain dicts."""
    if not isinstance(content, dict) or "method" not in content:
        raise RecipeError(f"The recipe names no method; set method to one of {', '.join(METHODS)}.")
    recipe = build(Recipe, _with_new_names(content))
    _check_values(recipe)
    return recipe


def method_name(method: str) -> str:
    """A method without the folder of its file."""
    place, colon, class_name = method.rpartition(":")
    return f"{Path(place).name if place.endswith('.py') else place}{colon}{class_name}"


def recipes_folder() -> Path:
    """The recipes that ship with the package: beside it in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name ("swav/imagenet1k_resnet50") -> file of every training recipe that ships with the package."""
    root = recipes_folder()
    found = {str(p.relative_to(root).with_suffix("")): p for p in sorted(root.rglob("*.yaml"))}
    return {name: path for name, path in found.items() if not name.startswith("accelerate/")}


def recipe_header(path: Path) -> dict[str, str]:
    """Facts of a recipe's comment header: its title, and its `# Key: value` lines (Published, Source, Hardware)."""
    comments = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    title, *lines = [line.lstrip("# ").rstrip() for line in comments] or [path.stem]
    matches = [re.match(r"([A-Z][a-z]+): (.+)", line) for line in lines]
    return {"Title": title} | {match[1]: match[2] for match in matches if match}


def find_recipe(source: str | Path) -> Path:
    """Path of a recipe given as a file or by the name of a shipped one.

    Raises:
        RecipeError: neither; the message has the nearest names.
    """
    path = Path(source)
    with suppress(OSError):  # a name that is too long to be one
        if path.is_file():
            return path
    shipped = shipped_recipes()
    name = str(source).removesuffix(".yaml").removeprefix("recipes/")
    if name in shipped:
        return shipped[name]
    raise RecipeError(
        f"There is no recipe {str(source)!r}{nearest(name, shipped)} `hf-ssl recipes` lists them, or give a file."
    )


def continued(recipe: Recipe, kept: dict[str, Any], format: int) -> Recipe:
    """The recipe with which a run goes on whose checkpoint has the recipe `kept`: where that does not know a key, and
    `recipe` has its default or what the shipped recipe of its name says today, the run keeps what it did before. And
    what the weights of `model.init_from` decided, which are not read again, stays decided.
    """
    old, new = _flatten(kept), recipe.to_dict()
    if "init_from" in recipe.model:
        decided = {k: v for k, v in kept.get("model", {}).items() if k.removeprefix("video_") in _DECIDED}
        new["model"] = decided | new["model"]
    flat, defaults = _flatten(new), _flatten(Recipe(recipe.method).to_dict())
    shipped = _flatten(load_recipe(recipe.name).to_dict()) if recipe.name in shipped_recipes() else {}
    for key, value in _meant_before(format).items():
        if key in flat and key not in old and flat[key] in (defaults.get(key), shipped.get(key)):
            *sections, last = key.split(".")
            place = new
            for section in sections:
                place = place[section]
            place[last] = value
    return recipe_from_dict(new)


def changed_keys(old: dict[str, Any], new: dict[str, Any], format: float = math.inf) -> list[str]:
    """Dotted keys whose values differ between two recipes and that decide the weights (see FREE_ON_RESUME).

    A key that an older version did not know has had its default, or what MEANT_BEFORE says of the checkpoint's format.
    """
    defaults = _flatten(Recipe(METHODS[0]).to_dict())
    old, new = ({**one, "method": method_name(one.get("method", ""))} for one in (old, new))
    b = defaults | _flatten(new)
    a = defaults | {k: v for k, v in _meant_before(format).items() if k in b} | _flatten(_with_new_names(old))
    keys = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    return [k for k in keys if not any(k == free or k.startswith(f"{free}.") for free in FREE_ON_RESUME)]


def _meant_before(format: float) -> dict[str, Any]:
    return {key: value for number, keys in MEANT_BEFORE.items() if format < number for key, value in keys.items()}


def _with_new_names(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe of an older version, in today's names."""
    for old, new in RENAMED.items():
        section, key = old.split(".")
        part = content.get(section)
        if isinstance(part, dict) and key in part:
            part = {**part}
            part.setdefault(new.split(".")[1], part.pop(key))
            content = {**content, section: part}
    return content


def model_config(recipe: Recipe, image_size: int):
    """The method's `SSLConfig` of a recipe; `image_size` (pixels) stands in where the recipe sets none.

    Raises:
        RecipeError: an unknown or ill-typed field under `model`, or an unknown backbone.
    """
    from .methods import method_classes
    from .models import check_backbone

    config_class = method_classes(recipe.method)[0]
    names = [f.name for f in fields(config_class) if not f.name.startswith("_")]
    settings = {key: value for key, value in recipe.model.items() if key != "init_from"}
    for key in settings:
        if key not in names:
            raise RecipeError(f"There is no key model.{key} for {recipe.method}{nearest(key, names, 'model.')}")
    try:
        config = config_class(**{"image_size": image_size, **settings})
        for backbone in config.timm_backbones:
            check_backbone(backbone)
    except Exception as error:  # huggingface_hub's validators raise their own classes with multi-line texts
        raise RecipeError(f"model: {' '.join(str(error).split())}") from None
    _check_views(recipe, config)
    return config


def _check_views(recipe: Recipe, config) -> None:
    """What a method makes of its views and batches; wrong ones would end the run at a step, or never be looked at."""
    from .data.views import resolve_views
    from .methods import default_views

    views = resolve_views(recipe.views, default_views(recipe.method))
    num_global = sum(not view.local for view in views)
    try:
        config.check_views(num_global, len(views) - num_global, recipe.train.batch_size // recipe.train.accumulation)
    except ValueError as error:
        raise RecipeError(f"{method_name(recipe.method)}: {error}") from None


def _apply_override(content: dict, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"{override!r} is not an override; write key=value, for example train.batch_size=512.")
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise RecipeError(f"{key!r} cannot be set: {section!r} is not a section.")
    value = read_yaml(text, f"The value of {key}")
    # A folder may be called 2024, 007 or 2024-05-01.
    content[last] = text.strip() if _is_number(value) and _is_text(key) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | date) and not isinstance(value, bool)


def _is_text(key: str) -> bool:
    """Whether a dotted key holds a text, so that what YAML reads as a number or a date is one, too."""
    hint: Any = Recipe
    for name in key.split("."):
        hint = get_type_hints(hint).get(name) if is_dataclass(hint) else None
    choices = get_args(hint) or (hint,)
    return str in choices or key == "model.init_from"


def _check_values(recipe: Recipe) -> None:
    train, optim, data = recipe.train, recipe.optim, recipe.data
    if recipe.method not in METHODS and not re.fullmatch(r"[^:]+:[A-Za-z_]\w*", recipe.method):
        raise RecipeError(
            f"method must be one of {', '.join(METHODS)}, or path/to/file.py:Class; not {recipe.method!r}"
            f"{nearest(recipe.method, METHODS)}"
        )
    if (train.epochs is None) == (train.steps is None):
        raise RecipeError("Set train.epochs or train.steps, and only one of them.")
    for key, value in _flatten(recipe.to_dict()).items():
        interval = _RANGE_OF.get(re.sub(r"^views\.[a-z]+\.", "views.*.", key))
        for number in value if isinstance(value, list) else [value]:
            if interval and number is not None and not _lies_in(number, interval):
                raise RecipeError(f"{key} must be in {interval}, not {number}.")
    if not isinstance(recipe.model.get("init_from", ""), str | None):
        raise RecipeError("model.init_from must be a text: timm/NAME, a Hub id or a folder.")
    if recipe.method != "avid" and train.batch_size < 2 * train.accumulation:
        raise RecipeError(
            f"train.batch_size={train.batch_size} with train.accumulation={train.accumulation} leaves one image to a "
            f"forward, of which BatchNorm has no statistics; set train.batch_size to {2 * train.accumulation} or more."
        )
    if optim.warmup_steps is not None and optim.warmup_epochs:
        raise RecipeError("Set optim.warmup_epochs or optim.warmup_steps, and only one of them.")
    if optim.cooldown_epochs and optim.schedule != "constant":
        raise RecipeError("optim.cooldown_epochs is for optim.schedule=constant; a cosine goes down by itself.")
    if data.streaming and data.max_examples is not None:
        raise RecipeError("data.max_examples needs data.streaming=false; a stream is read whole.")


def _lies_in(number: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


def _locate_data(path: str, folder: Path) -> str:
    """A path relative to the recipe's own folder is found there when the working folder has none of that name."""
    if not os.path.exists(path) and os.path.exists(folder / path):
        return str(folder / path)
    return path


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


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, sub in value.items() for k, v in _flatten(sub, f"{prefix}.{key}" if prefix else key).items()}
