# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""lightly (https://github.com/lightly-ai/lightly) beside hf_ssl: its transforms, heads and losses, in the sizes of a
recipe, on the same images, backbone, batch and precision. It is looked for, and never needed.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from ..data.views import View
from ..errors import RecipeError
from ..models.backbones_ssl import create_backbone
from ..optim import build_optimizer
from ..training.run import Run


class Lightly:
    """The same method as lightly has it, see `hf_ssl.bench.Side`."""

    def __init__(self, run: Run, inputs: dict[str, torch.Tensor]):
        method = run.recipe.method
        if method not in MODELS or run.accelerator.num_processes > 1 or run.examples.streamed:
            raise RecipeError(
                f"--against lightly compares {', '.join(MODELS)} on indexed images in one process, not this recipe."
            )
        try:
            import lightly.transforms  # noqa: F401
        except ImportError:
            raise RecipeError("--against lightly needs that package: pip install lightly.") from None
        self.accelerator = run.accelerator
        torch.manual_seed(run.recipe.train.seed)
        self.model: Any = MODELS[method](run.config).to(self.accelerator.device)
        if run.recipe.train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, run.recipe.optim, run.recipe.train.batch_size)
        views = [inputs["pixel_values"], inputs.get("local_pixel_values")]
        self.fixed = [part[:, v] for part in views if part is not None for v in range(part.shape[1])]
        workers = run.loader.num_workers
        examples = Images(run.examples.source, transform_of(method, run.views))
        self.loader = DataLoader(
            examples,
            batch_size=run.recipe.train.batch_size,
            sampler=RandomSampler(examples, replacement=True, num_samples=10**9),
            num_workers=workers,
            drop_last=True,
        )
        self.batches: Iterator[list[torch.Tensor]] = iter(self.loader)
        self.ahead = 2 * workers

    def data(self, count: int) -> None:
        for _ in range(count):
            self._next()

    def step(self, count: int) -> None:
        for _ in range(count):
            self._step(self.fixed)

    def whole(self, count: int) -> None:
        for _ in range(count):
            self._step(self._next())

    def _next(self) -> list[torch.Tensor]:
        return [view.to(self.accelerator.device, non_blocking=True) for view in next(self.batches)]

    def _step(self, views: list[torch.Tensor]) -> None:
        with self.accelerator.autocast():
            loss = self.model(views)
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Images(Dataset):
    """All views of each image of a source, as a transform of lightly makes them."""

    def __init__(self, source: Any, transform: Callable[..., list[torch.Tensor]]):
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self.transform(self.source.image(index).convert("RGB"))


def transform_of(method: str, views: list[View]) -> Callable[..., list[torch.Tensor]]:
    """lightly's transform of the method with a recipe's sizes, probabilities and strengths."""
    from lightly import transforms

    if method == "swav":
        local = [view for view in views if view.local]
        first, last = views[0], local[0] if local else views[0]
        return transforms.SwaVTransform(
            crop_sizes=(first.size, last.size),
            crop_counts=(len(views) - len(local), len(local)),
            crop_min_scales=(first.scale[0], last.scale[0]),
            crop_max_scales=(first.scale[1], last.scale[1]),
            **_colors(first),
        )
    if method == "simsiam":
        view = views[0]
        return transforms.SimSiamTransform(input_size=view.size, min_scale=view.scale[0], **_colors(view))
    kinds = (transforms.BYOLView1Transform, transforms.BYOLView2Transform)
    made = [
        kind(input_size=v.size, min_scale=v.scale[0], solarization_prob=v.solarize, **_colors(v))
        for kind, v in zip(kinds, views, strict=True)
    ]
    return transforms.BYOLTransform(*made)


def _colors(view: View) -> dict[str, Any]:
    names = ("cj_bright", "cj_contrast", "cj_sat", "cj_hue")
    colors: dict[str, Any] = dict(zip(names, view.jitter, strict=True))
    probabilities = {"cj_prob": view.jitter_prob, "random_gray_scale": view.grayscale, "gaussian_blur": view.blur}
    return colors | probabilities | {"cj_strength": 1.0, "hf_prob": view.flip, "sigmas": view.blur_sigma}


class _BarlowTwins(nn.Module):
    def __init__(self, config: Any):
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules.heads import ProjectionHead

        super().__init__()
        self.encoder: Any = create_backbone(config)
        dims = [self.encoder.num_features, *config.projector_dims]
        blocks = [(i, o, nn.BatchNorm1d(o), nn.ReLU()) for i, o in zip(dims[:-2], dims[1:-1], strict=True)]
        self.head = ProjectionHead([*blocks, (*dims[-2:], None, None)])
        self.loss = BarlowTwinsLoss(lambda_param=config.lambd)

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        return self.loss(*(self.head(self.encoder(view)) for view in views))


class _Byol(nn.Module):
    def __init__(self, config: Any):
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

        super().__init__()
        self.encoder: Any = create_backbone(config)
        out = config.projector_dim
        projector = BYOLProjectionHead(self.encoder.num_features, config.projector_hidden, out)
        self.online = nn.Sequential(self.encoder, projector)
        self.predictor = BYOLPredictionHead(out, config.predictor_hidden, out)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.loss, self.momentum = NegativeCosineSimilarity(), config.tau_base

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        from lightly.models.utils import update_momentum

        update_momentum(self.online, self.target, m=self.momentum)
        p1, p2 = (self.predictor(self.online(view)) for view in views)
        with torch.no_grad():
            z1, z2 = (self.target(view) for view in views)
        return 0.5 * (self.loss(p1, z2) + self.loss(p2, z1))


class _SimSiam(nn.Module):
    def __init__(self, config: Any):
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import ProjectionHead, SimSiamPredictionHead

        super().__init__()
        encoder: Any = create_backbone(config)
        self.encoder, width, out = encoder, encoder.num_features, config.projector_dim
        dims = [width, *[config.projector_hidden or width] * (config.projector_layers - 1)]
        blocks = [(i, o, nn.BatchNorm1d(o), nn.ReLU()) for i, o in zip(dims[:-1], dims[1:], strict=True)]
        last = (dims[-1], out, nn.BatchNorm1d(out, affine=config.output_affine), None)
        self.projector = ProjectionHead([*blocks, last])
        self.predictor = SimSiamPredictionHead(out, config.predictor_hidden, out)
        self.loss = NegativeCosineSimilarity()

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        z1, z2 = (self.projector(self.encoder(view)) for view in views)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return 0.5 * (self.loss(p1, z2.detach()) + self.loss(p2, z1.detach()))


class _Swav(nn.Module):
    def __init__(self, config: Any):
        from lightly.loss import SwaVLoss
        from lightly.models.modules.heads import SwaVProjectionHead, SwaVPrototypes

        super().__init__()
        self.encoder: Any = create_backbone(config)
        hidden, out = config.projector_dims[0], config.projector_dims[-1]
        self.head = SwaVProjectionHead(self.encoder.num_features, hidden, out)
        self.prototypes = SwaVPrototypes(out, config.num_prototypes)
        self.loss = SwaVLoss(config.temperature, config.sinkhorn_iterations, config.epsilon)

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        self.prototypes.normalize()
        scores = [self.prototypes(nn.functional.normalize(self.head(self.encoder(view)), dim=1)) for view in views]
        return self.loss(scores[:2], scores[2:])


MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "barlow_twins": _BarlowTwins,
    "byol": _Byol,
    "simsiam": _SimSiam,
    "swav": _Swav,
}
