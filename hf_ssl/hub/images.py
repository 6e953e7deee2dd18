# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Image encoders on the Hub: processor, model card text, and inputs and outputs for serving."""

from pathlib import Path

from transformers import PreTrainedConfig

from ..models.image_processing_ssl import image_processor


PIPELINE_TAG = "image-feature-extraction"

PURPOSE = (
    "It turns an image of {config.image_size} pixels into a feature vector for nearest-neighbor search, "
    "linear classifiers or fine-tuning."
)

INPUTS = "Input size and normalization are those of the original network, see the configuration."

_PLAIN_USAGE = """\
```python
from transformers import AutoModel, pipeline
import timm

encoder = AutoModel.from_pretrained("REPO")                       # no other code needed
encoder = timm.create_model("hf-hub:REPO", pretrained=True)       # the same in timm
features = pipeline("image-feature-extraction", model="REPO")("image.jpg")
```"""

_ONE_FILE = (  # line of _PLAIN_USAGE, and its replacement for sharded weights
    'encoder = timm.create_model("hf-hub:REPO", pretrained=True)       # the same in timm',
    "timm_model = encoder.timm_model                                   # timm cannot load sharded weights itself",
)

_CODE_USAGE = """\
timm cannot build this encoder by name, so it comes with its own code and needs `trust_remote_code=True`:

```python
from transformers import AutoModel, pipeline

encoder = AutoModel.from_pretrained("REPO", trust_remote_code=True)
features = pipeline("image-feature-extraction", model="REPO", trust_remote_code=True)("image.jpg")
```"""


def usage(plain: bool, sharded: bool) -> str:
    """Card text on loading the model; `plain`: timm can build it, `sharded`: its weights are in several files."""
    if not plain:
        return _CODE_USAGE
    return _PLAIN_USAGE.replace(*_ONE_FILE) if sharded else _PLAIN_USAGE


def with_processor(lines: list[str], place: str) -> list[str]:
    """The lines of `usage`, and one that loads the image processor."""
    first = next(i for i, line in enumerate(lines) if "AutoModel.from_pretrained" in line)
    lines = [line.replace("import AutoModel,", "import AutoImageProcessor, AutoModel,") for line in lines]
    return [*lines[:first], f'processor = AutoImageProcessor.from_pretrained("{place}")', *lines[first:]]


def inputs(config: PreTrainedConfig) -> str:
    """Model card text on the inputs of a converted model."""
    return INPUTS


def save_processor(config: PreTrainedConfig, folder: Path) -> None:
    """Save the processor of a custom-code encoder; timm's format describes preprocessing itself."""
    image_processor(config).save_pretrained(folder)


def serving(config: PreTrainedConfig) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Input shapes without the batch dimension, and output names of the exported graph."""
    if hasattr(config, "image_size"):
        size = (config.num_channels, config.image_size, config.image_size)
    else:  # a timm config
        size = tuple(config.pretrained_cfg["input_size"])
    return {"pixel_values": size}, ["pooler_output", "last_hidden_state"]
