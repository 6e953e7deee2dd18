# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Configuration of SimSiam (https://huggingface.co/papers/2011.10566)."""

from huggingface_hub.dataclasses import strict

from .configuration_ssl import WIDEST, SSLConfig, check_choices, check_ranges


@strict
class SimSiamConfig(SSLConfig):
    """The defaults are the published ImageNet configuration.

    Args:
        projector_dim (`int`, *optional*, defaults to 2048): width of projections and predictions.
        projector_hidden (`int`, *optional*): hidden width of the projector; the backbone's by default.
        projector_layers (`int`, *optional*, defaults to 3): 2 for the paper's CIFAR-10 experiments.
        predictor_hidden (`int`, *optional*, defaults to 512): the predictor's bottleneck.
        output_affine (`bool`, *optional*, defaults to `False`): scale and offset in the projector's last BatchNorm.
        target_update (`str`, *optional*, defaults to `"step"`): `"epoch"` compares with a copy of the network made at
            the end of the previous epoch. This is not SimSiam, and no published result uses it.
    """

    model_type = "simsiam"

    projector_dim: int = 2048
    projector_hidden: int | None = None
    projector_layers: int = 3
    predictor_hidden: int = 512
    output_affine: bool = False
    target_update: str = "step"
    zero_init_residual: bool = True

    def validate_heads(self):
        widths = dict.fromkeys(("projector_hidden", "projector_dim", "predictor_hidden"), (1, WIDEST))
        check_ranges(self, {"projector_layers": (1, 100), **widths})
        check_choices(self, {"target_update": ("step", "epoch")})
