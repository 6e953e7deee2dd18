# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The models of all methods; importing registers them with transformers' Auto classes.

Every file here ships inside model repositories: flat, importing only from its siblings.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from .backbones_ssl import backbone_kwargs, check_backbone, rebuildable_by_timm
from .configuration_barlow_twins import BarlowTwinsConfig
from .configuration_byol import ByolConfig
from .configuration_simsiam import SimSiamConfig
from .configuration_ssl import SSLConfig
from .configuration_swav import SwavConfig
from .modeling_barlow_twins import (
    BarlowTwinsForImageClassification,
    BarlowTwinsForPreTraining,
    BarlowTwinsModel,
    barlow_twins_loss,
)
from .modeling_byol import ByolForImageClassification, ByolForPreTraining, ByolModel, byol_loss
from .modeling_simsiam import SimSiamForImageClassification, SimSiamForPreTraining, SimSiamModel, simsiam_loss
from .modeling_swav import SwavForImageClassification, SwavForPreTraining, SwavModel, sinkhorn, swav_loss


_CLASSES = (
    (BarlowTwinsConfig, BarlowTwinsModel, BarlowTwinsForPreTraining, BarlowTwinsForImageClassification),
    (ByolConfig, ByolModel, ByolForPreTraining, ByolForImageClassification),
    (SimSiamConfig, SimSiamModel, SimSiamForPreTraining, SimSiamForImageClassification),
    (SwavConfig, SwavModel, SwavForPreTraining, SwavForImageClassification),
)

for _config, _model, _pretraining, _classification in _CLASSES:
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    AutoModelForPreTraining.register(_config, _pretraining)
    AutoModelForImageClassification.register(_config, _classification)
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModel")
    _pretraining.register_for_auto_class("AutoModelForPreTraining")
    _classification.register_for_auto_class("AutoModelForImageClassification")

METHODS = {config.model_type: (config, pretraining) for config, _, pretraining, _ in _CLASSES}

__all__ = [
    "METHODS",
    "BarlowTwinsConfig",
    "BarlowTwinsForImageClassification",
    "BarlowTwinsForPreTraining",
    "BarlowTwinsModel",
    "ByolConfig",
    "ByolForImageClassification",
    "ByolForPreTraining",
    "ByolModel",
    "SSLConfig",
    "SimSiamConfig",
    "SimSiamForImageClassification",
    "SimSiamForPreTraining",
    "SimSiamModel",
    "SwavConfig",
    "SwavForImageClassification",
    "SwavForPreTraining",
    "SwavModel",
    "backbone_kwargs",
    "barlow_twins_loss",
    "byol_loss",
    "check_backbone",
    "rebuildable_by_timm",
    "simsiam_loss",
    "sinkhorn",
    "swav_loss",
]
