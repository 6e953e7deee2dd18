# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Models of all methods. Importing this package registers them with transformers' Auto classes.

Every file here ships inside model repositories, so the folder is flat and files import only from their siblings.
"""

import sys

import transformers
from transformers import AutoConfig, PreTrainedConfig

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
from .memory_avid import cma_positives
from .modeling_avid import (
    AvidForAudioClassification,
    AvidForPreTraining,
    AvidForVideoClassification,
    AvidModel,
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
from .modeling_ssl import SSLPreTrainedModel
from .modeling_swav import SwavForImageClassification, SwavForPreTraining, SwavModel, sinkhorn, swav_loss


METHODS: dict[str, tuple[type[PreTrainedConfig], type[SSLPreTrainedModel]]] = {
    "avid": (AvidConfig, AvidForPreTraining),
    "barlow_twins": (BarlowTwinsConfig, BarlowTwinsForPreTraining),
    "byol": (ByolConfig, ByolForPreTraining),
    "simsiam": (SimSiamConfig, SimSiamForPreTraining),
    "swav": (SwavConfig, SwavForPreTraining),
}


def register(config: type[PreTrainedConfig], pretraining: type[SSLPreTrainedModel]) -> None:
    """Register a method's classes with transformers' Auto classes; they must share a file and a name prefix."""
    AutoConfig.register(config.model_type, config)
    config.register_for_auto_class()
    prefix, module = config.__name__.removesuffix("Config"), sys.modules[pretraining.__module__]
    for auto, suffix in pretraining.auto_classes.items():
        model = getattr(module, prefix + suffix)
        getattr(transformers, auto).register(config, model)
        model.register_for_auto_class(auto)


for _config, _pretraining in METHODS.values():
    register(_config, _pretraining)

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
    "SSLPreTrainedModel",
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
    "register",
    "simsiam_loss",
    "sinkhorn",
    "swav_loss",
    "timm_fields",
]
