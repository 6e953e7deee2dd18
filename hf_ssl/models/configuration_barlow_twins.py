# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Barlow Twins (https://huggingface.co/papers/2103.03230)."""

from huggingface_hub.dataclasses import strict

from .configuration_ssl import WIDEST, SSLConfig, check_ranges


@strict
class BarlowTwinsConfig(SSLConfig):
    """The defaults are the released ImageNet configuration.

    Args:
        projector_dims (`tuple`, *optional*, defaults to `(8192, 8192, 8192)`): widths of the projector's layers.
        lambd (`float`, *optional*, defaults to 0.0051): weight of the off-diagonal terms (λ of eq. 1).
        eps (`float`, *optional*, defaults to 1e-5): added to the variances.
        center (`bool`, *optional*, defaults to `True`): `False` does not center the features, a literal reading of
            eq. 2; no published result uses it.
        explicit_matrix (`bool`, *optional*, defaults to `False`): compute the (D, D) cross-correlation matrix even if
            the global batch is smaller than D, where the loss does not need it.
    """

    model_type = "barlow_twins"

    projector_dims: list[int] | tuple[int, ...] = (8192, 8192, 8192)
    lambd: float | int = 0.0051
    eps: float | int = 1e-5
    center: bool = True
    explicit_matrix: bool = False
    zero_init_residual: bool = True

    def validate_projector(self):
        check_ranges(self, {"projector_dims": (1, WIDEST), "lambd": (0, 1e6), "eps": (0, 1e6)})
        if not self.projector_dims:
            raise ValueError("projector_dims must be a list of at least one width.")
