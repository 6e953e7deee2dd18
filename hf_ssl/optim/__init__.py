# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Optimizers, parameter groups and schedules."""

from .larc import Larc, Lars
from .param_groups import build_optimizer, param_groups
from .schedules import lr_fraction, set_learning_rates


__all__ = ["Larc", "Lars", "build_optimizer", "lr_fraction", "param_groups", "set_learning_rates"]
