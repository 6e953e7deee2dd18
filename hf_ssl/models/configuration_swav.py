# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Configuration of SwAV (https://huggingface.co/papers/2006.09882)."""

from huggingface_hub.dataclasses import strict

from .configuration_ssl import TINY, WIDEST, SSLConfig, check_ranges


# RegNetY with 9.3 billion parameters: depths 2, 7, 17, 1 and widths 2020, 4040, 11110, 28280.
RG_10B = {"depth": 27, "w0": 1744, "wa": 620.83, "wm": 2.52, "group_size": 1010}


SEER_SMALL = ("regnety_080", "regnety_160", "regnety_320")


@strict
class SwavConfig(SSLConfig):
    """The defaults are the published ImageNet configuration for a batch size of 4096.

    Args:
        projector_dims (`tuple`, *optional*, defaults to `(2048, 128)`): widths of the projector's layers.
        projector_batch_norm (`bool`, *optional*, defaults to `True`): BatchNorm in the projector's hidden layers.
        num_prototypes (`int` or `list`, *optional*, defaults to 3000): number of clusters. A list makes one prototype
            layer per entry, each with its own codes; the loss is the mean over them.
        prototypes_bias (`bool`, *optional*, defaults to `False`): bias as in lightly; scores are then not cosines.
        temperature (`float`, *optional*, defaults to 0.1): temperature of the predicted assignments.
        epsilon (`float`, *optional*, defaults to 0.05): entropy regularization of Sinkhorn.
        sinkhorn_iterations (`int`, *optional*, defaults to 3): number of row and column normalizations.
        crops_for_assign (`tuple`, *optional*, defaults to `(0, 1)`): global views for which codes are computed.
        queue_length (`int`, *optional*, defaults to 0): number of past features used in the assignment, over all
            processes; 0 disables the queue. Rounded down to whole global batches.
        queue_start_epoch (`int`, *optional*, defaults to 15): epoch at which the queue starts to fill.
        freeze_prototypes_steps (`int`, *optional*, defaults to 313): initial steps without prototype updates.
    """

    model_type = "swav"

    projector_dims: list[int] | tuple[int, ...] = (2048, 128)
    projector_batch_norm: bool = True
    num_prototypes: int | list[int] | tuple[int, ...] = 3000
    prototypes_bias: bool = False
    temperature: float | int = 0.1
    epsilon: float | int = 0.05
    sinkhorn_iterations: int = 3
    crops_for_assign: list[int] | tuple[int, ...] = (0, 1)
    queue_length: int = 0
    queue_start_epoch: float | int = 15
    freeze_prototypes_steps: int = 313

    @property
    def prototype_counts(self) -> list[int]:
        """Number of clusters of each prototype layer."""
        return [self.num_prototypes] if isinstance(self.num_prototypes, int) else list(self.num_prototypes)

    def check_views(self, num_global: int, num_local: int, batch_size: int) -> None:
        """Raise ValueError if `crops_for_assign` names a missing view or the queue is shorter than a batch."""
        if max(self.crops_for_assign) >= num_global:
            raise ValueError(
                f"model.crops_for_assign={list(self.crops_for_assign)} must name global views, which are 0 to "
                f"{num_global - 1}."
            )
        if 0 < self.queue_length < batch_size:
            raise ValueError(
                f"model.queue_length={self.queue_length} must be 0, or hold the {batch_size} images of a step."
            )

    @classmethod
    def seer(cls, backbone: str = "regnety_2560", **changes) -> "SwavConfig":
        """SEER (https://huggingface.co/papers/2103.01988): SwAV on a RegNet, with a larger head.

        The head follows VISSL's configurations: 4096-4096-256 with BatchNorm up to 32GF, 8192-8192-256 without it
        above.

        Args:
            backbone: a timm RegNet, or "regnety_10b" (https://huggingface.co/papers/2202.08360), which has no name
                in timm.
            changes: fields to override.
        """
        small = backbone.partition(".")[0] in SEER_SMALL
        own = {
            "backbone": backbone,
            "projector_dims": (4096, 4096, 256) if small else (8192, 8192, 256),
            "projector_batch_norm": small,
            "num_prototypes": 16000,
            "sinkhorn_iterations": 10,
        }
        if backbone == "regnety_10b":
            own |= {"backbone": "regnety_2560", "epsilon": 0.03, "backbone_args": dict(RG_10B)}
        return cls(**own | changes)

    def validate_assignment(self):
        check_ranges(
            self,
            {
                "projector_dims": (1, WIDEST),
                "num_prototypes": (2, 1e7),
                "temperature": (TINY, 1e6),
                "epsilon": (TINY, 1e6),
                "sinkhorn_iterations": (1, 1000),
                "crops_for_assign": (0, 63),
                "queue_length": (0, 1e8),
                "queue_start_epoch": (0, 1e12),
                "freeze_prototypes_steps": (0, 1e12),
            },
        )
        if not self.crops_for_assign or not self.projector_dims or not self.prototype_counts:
            raise ValueError(
                "crops_for_assign must name at least one global view, projector_dims at least one width, and "
                "num_prototypes at least one number."
            )
