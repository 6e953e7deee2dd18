# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Applies a GPU config of `accelerate launch` to gloo processes, because Accelerate disables FSDP on CPUs.

Usage: accelerate launch --config_file fsdp2.yaml cpu_fsdp.py SCRIPT [ARGUMENT ...]
"""

import os
import runpy
import sys

from accelerate import DistributedType, PartialState


def gpu_configuration_on_gloo() -> None:
    """Patch this process; call it before creating an Accelerator."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, cpu, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def main() -> None:
    gpu_configuration_on_gloo()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
