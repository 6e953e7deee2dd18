# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Barlow Twins (https://huggingface.co/papers/2103.03230)."""

from huggingface_hub.dataclasses import strict

from .configuration_ssl import WIDEST, SSLConfig, check_ranges


@strict
class BarlowTwinsConfig(SSLConfig):
    """Defaults: the released ImageNet configuration.

    Args:
        projector_dims (`tuple`, *optional*, defaults to `(8192, 8192, 8192)`): widths of the projector's layers.
        lambd (`float`, *optional*, defaults to 0.0051): weight of the off-diagonal terms (λ of eq. 1).
        eps (`float`, *optional*, defaults to 1e-5): added to the variances.
        center (`bool`, *optional*, defaults to `True`): `False` leaves the features uncentered, as eq. 2 read
            literally; no published result was made so.
        explicit_matrix (`bool`, *optional*, defaults to `False`): make the cross-correlation matrix (D, D) even where
            the global batch is smaller than D, and its sums need none.
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
