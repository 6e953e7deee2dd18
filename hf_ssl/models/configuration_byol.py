# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Configuration of BYOL (https://huggingface.co/papers/2006.07733)."""

from huggingface_hub.dataclasses import strict

from .configuration_ssl import WIDEST, SSLConfig, check_choices, check_ranges


@strict
class ByolConfig(SSLConfig):
    """The defaults are the published 1000-epoch ImageNet configuration.

    Args:
        projector_hidden, predictor_hidden (`int`, *optional*, defaults to 4096): hidden widths.
        projector_dim (`int`, *optional*, defaults to 256): width of projections and predictions.
        hidden_bias (`bool`, *optional*, defaults to `True`): bias of the linear layers before BatchNorm.
        output_bias (`bool`, *optional*, defaults to `False`): bias of the last linear layers.
        tau_base (`float`, *optional*, defaults to 0.996): momentum of the target network at the first step.
        tau_schedule (`str`, *optional*, defaults to `"cosine"`): `"cosine"` raises it to 1, `"constant"` keeps it.
        zero_init_residual (`bool`, *optional*, defaults to `False`): the paper's results use `False`; the released
            code was later changed to `True`.
    """

    model_type = "byol"

    projector_hidden: int = 4096
    projector_dim: int = 256
    predictor_hidden: int = 4096
    hidden_bias: bool = True
    output_bias: bool = False
    tau_base: float | int = 0.996
    tau_schedule: str = "cosine"

    def validate_target(self):
        widths = dict.fromkeys(("projector_hidden", "projector_dim", "predictor_hidden"), (1, WIDEST))
        check_ranges(self, widths)
        if not 0 <= self.tau_base <= 1:
            raise ValueError(f"tau_base must be between 0 and 1, not {self.tau_base}.")
        check_choices(self, {"tau_schedule": ("cosine", "constant")})
