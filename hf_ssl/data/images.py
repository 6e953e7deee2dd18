# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Images, in two stages: the worker decodes, crops and flips; the device does the colors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import timm
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from ..recipe import Recipe, RecipeError
from .fits import check_fits, fit_sizes
from .modality import Modality
from .photometric import PARAMS, Photometric
from .pixels import DEFAULT, Decoding, open_image
from .sources import Source
from .views import View, eval_image, make_views


@dataclass(frozen=True)
class ImageViews:
    """Stage 1: an encoded image -> uint8 views, and random parameters for stage 2.

    Args:
        reference: do the colors here, per image, as published (see `make_views`).
        channels: 3 (RGB) or 1 (gray); any other number is a RecipeError.
    """

    name: ClassVar[str] = "images"
    numbered: ClassVar[bool] = False
    views: list[View]
    reference: bool = False
    channels: int = 3

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise RecipeError(
                f"model.num_channels={self.channels} is not supported for images; set 3 (RGB) or 1 (gray)."
            )

    def make(self, record: dict[str, Any] | None, key: tuple[int, ...], source: Any):
        """A list of views uint8 (S, S, C) and their rows of `PARAMS` (V, P); `source` holds the decoding options."""
        return self.of(open_image(record, source.max_megapixels), key, source.decoding)

    def of(self, image: Image.Image, key: tuple[int, ...], decoding: Decoding = DEFAULT):
        """The same for an image that is already open."""
        return make_views(image, self.views, key, reference=self.reference, channels=self.channels, decoding=decoding)

    def blank(self):
        blank = [np.zeros((view.size, view.size, self.channels), np.uint8) for view in self.views]
        return blank, np.zeros((len(self.views), len(PARAMS)), np.float32)

    def stack(self, made: Sequence[tuple[list[np.ndarray], np.ndarray]]) -> dict[str, np.ndarray]:
        """Stack B images into view-major arrays; small crops are separate from global views."""
        params = np.stack([rows for _, rows in made], 1)  # (V, B, P)
        batch = {}
        for prefix, local in (("", False), ("local_", True)):
            group = [v for v, view in enumerate(self.views) if view.local == local]
            if group:
                batch[f"{prefix}views"] = np.stack([[pixels[v] for pixels, _ in made] for v in group])
                batch[f"{prefix}params"] = params[group]
        return batch


@dataclass(frozen=True)
class LabeledViews(ImageViews):
    """Views whose batches carry the index of the example shown, also for substitutes: the probe needs its label."""

    numbered: ClassVar[bool] = True


class ImageTransform:
    """Stage 2: the loader's batches -> model inputs."""

    def __init__(self, mean, std, arithmetic: Literal["auto", "torch"] = "auto"):
        self.photometric = Photometric(mean, std, arithmetic)

    def __call__(self, batch: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """`views` uint8 (V, B, S, S, C) -> `pixel_values` (B, V, C, S, S) and, with small crops,
        `local_pixel_values`.

        The storage is view-major and channels-last, so `pixel_values[:, v]` needs no copy.
        """
        inputs = {}
        for prefix in ("", "local_"):
            if f"{prefix}views" in batch:
                views, params = batch[f"{prefix}views"], batch[f"{prefix}params"]
                made = self.photometric(views.flatten(0, 1), params.flatten(0, 1), device)  # (V*B, C, S, S)
                inputs[f"{prefix}pixel_values"] = made.unflatten(0, views.shape[:2]).transpose(0, 1)
        return inputs


class ViewCollator:
    """Examples of a `datasets.Dataset` -> model inputs, for `transformers.Trainer` and plain DataLoaders.

    Unlike `TrainLoader` it does not know epoch and step, so the views depend on torch's global random state, which
    Trainer seeds in every worker. Broken images raise.

    Args:
        views: see `resolve_views`.
        mean, std: per channel, from the model's config.
        reference: do the colors per image, as published.
        decoding: how images become 8-bit pixels.
    """

    def __init__(
        self,
        views: list[View],
        mean,
        std,
        *,
        image_column: str = "image",
        reference: bool = False,
        decoding: Decoding = DEFAULT,
    ):
        self.views, self.decoding = ImageViews(views, reference, len(mean)), decoding
        self.image_column, self.stage2 = image_column, ImageTransform(mean, std)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """[{image column: PIL image}, ...] -> `pixel_values` (B, V, C, S, S) and, with small crops,
        `local_pixel_values`.
        """
        keys = torch.randint(2**31, (len(examples), 2)).tolist()
        images = [example[self.image_column] for example in examples]
        made = [self.views.of(image, key, self.decoding) for image, key in zip(images, keys, strict=True)]
        return self.stage2({name: torch.from_numpy(array) for name, array in self.views.stack(made).items()})


@dataclass(frozen=True)
class ImageInference:
    """Inference preprocessing: resize the short side to `size / crop_pct`, center-crop `size` pixels, normalize."""

    num_clips: ClassVar[int] = 1
    size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config) -> "ImageInference":
        """The preprocessing in a model's `SSLConfig`, or in transformers' `TimmWrapperConfig`."""
        if hasattr(config, "pretrained_cfg"):
            look = images_of_timm(config.pretrained_cfg)
            mean, std = tuple(look["mean"]), tuple(look["std"])
            return cls(look["input_size"][-1], look["crop_pct"], look["interpolation"], mean, std)
        mean, std = tuple(config.image_mean), tuple(config.image_std)
        return cls(config.image_size, config.crop_pct, config.interpolation, mean, std)

    def read(self, source: Source, index: int) -> tuple[np.ndarray, ...]:
        """uint8 (1, S, S, C)."""
        image = open_image(source.record(index), source.max_megapixels)
        how = (self.size, self.crop_pct, self.interpolation, len(self.mean), source.decoding)
        return (eval_image(image, *how)[None],)

    def blank(self, source: Source) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(1, self.size, self.size, len(self.mean), dtype=torch.uint8),)

    def inputs(self, images: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        images = images.permute(0, 3, 1, 2).to(device, non_blocking=True)  # HWC storage = channels_last
        return {"pixel_values": TF.normalize(images.float() / 255, self.mean, self.std)}


def images_of_timm(pretrained_cfg: dict[str, Any] | None) -> dict[str, Any]:
    """Input size, mean, std, crop and interpolation, with timm's defaults for missing keys."""
    return timm.data.resolve_data_config(pretrained_cfg=pretrained_cfg or {"input_size": (3, 224, 224)})


class Images(Modality):
    name, medium = "images", "image"
    smallest_batch = 2

    def check_views(self, views: list[View]) -> None:
        if len(views) < 2 or all(view.local for view in views):
            raise RecipeError("At least two views are needed, one of them global; raise views.first.count.")

    def fit(self, views: list[View], config, pretrained: bool) -> None:
        fit_sizes(views, config, pretrained)

    def check(self, views: list[View], config) -> None:
        check_fits(views, config)

    def stage1(self, views: list[View], config, recipe: Recipe) -> ImageViews:
        made = LabeledViews if recipe.monitor.probe else ImageViews
        return made(views, recipe.views.photometric == "reference", config.num_channels)

    def stage2(self, config, recipe: Recipe) -> ImageTransform:
        return ImageTransform(config.image_mean, config.image_std, recipe.views.arithmetic)

    def inference(self, config, num_clips: int = 1) -> ImageInference:
        return ImageInference.of(config)

    def input_shapes(self, views: list[View], batch: int, config) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for name, local in (("pixel_values", False), ("local_pixel_values", True)):
            sizes = [view.size for view in views if view.local == local]
            if sizes:
                shapes[name] = ((batch, len(sizes), config.num_channels, sizes[0], sizes[0]), torch.float32)
        return shapes


MODALITY = Images()
