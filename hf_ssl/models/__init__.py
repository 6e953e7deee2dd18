# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""The models of all methods; importing registers them with transformers' Auto classes.

Every file here ships inside model repositories: flat, importing only from its siblings.
"""

import transformers
from transformers import AutoConfig

from .backbones_ssl import (
    backbone_kwargs,
    check_backbone,
    create_backbone,
    load_backbone,
    rebuildable_by_timm,
    timm_fields,
)
from .configuration_avid import AvidConfig
from .configuration_barlow_twins import BarlowTwinsConfig
from .configuration_byol import ByolConfig
from .configuration_simsiam import SimSiamConfig
from .configuration_ssl import SSLConfig
from .configuration_swav import SwavConfig
from .modeling_avid import (
    AvidForAudioClassification,
    AvidForPreTraining,
    AvidForVideoClassification,
    AvidModel,
    cma_positives,
    nce_loss,
)
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
    (AvidConfig, AvidModel, AvidForPreTraining, AvidForVideoClassification, AvidForAudioClassification),
    (BarlowTwinsConfig, BarlowTwinsModel, BarlowTwinsForPreTraining, BarlowTwinsForImageClassification),
    (ByolConfig, ByolModel, ByolForPreTraining, ByolForImageClassification),
    (SimSiamConfig, SimSiamModel, SimSiamForPreTraining, SimSiamForImageClassification),
    (SwavConfig, SwavModel, SwavForPreTraining, SwavForImageClassification),
)

for _config, *_models in _CLASSES:
    AutoConfig.register(_config.model_type, _config)
    _config.register_for_auto_class()
    for _model, _auto in zip(_models, _models[0].auto_classes, strict=True):
        getattr(transformers, _auto).register(_config, _model)
        _model.register_for_auto_class(_auto)

METHODS = {config.model_type: (config, pretraining) for config, _, pretraining, *_ in _CLASSES}

__all__ = [
    "METHODS",
    "AvidConfig",
    "AvidForAudioClassification",
    "AvidForPreTraining",
    "AvidForVideoClassification",
    "AvidModel",
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
    "cma_positives",
    "create_backbone",
    "load_backbone",
    "nce_loss",
    "rebuildable_by_timm",
    "simsiam_loss",
    "sinkhorn",
    "swav_loss",
    "timm_fields",
]
