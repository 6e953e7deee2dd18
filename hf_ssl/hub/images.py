# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""An encoder of images on the Hub: its processor, the words of its card, and its graph for serving."""

from pathlib import Path

from transformers import PreTrainedConfig

from ..models.image_processing_ssl import image_processor


PIPELINE_TAG = "image-feature-extraction"

PURPOSE = (
    "It turns an image of {config.image_size} pixels into a feature vector for nearest-neighbour search, "
    "linear classifiers or fine-tuning."
)

INPUTS = "Size and normalization of the input are in the configuration, as the original network had them."

_PLAIN_USAGE = """\
```python
from transformers import AutoModel, pipeline
import timm

encoder = AutoModel.from_pretrained("REPO")                       # no other code needed
encoder = timm.create_model("hf-hub:REPO", pretrained=True)       # the same in timm
features = pipeline("image-feature-extraction", model="REPO")("image.jpg")
```"""

_ONE_FILE = (  # and what stands for it where the weights are in several
    'encoder = timm.create_model("hf-hub:REPO", pretrained=True)       # the same in timm',
    "timm_model = encoder.timm_model                                   # timm by itself does not read several files",
)

_CODE_USAGE = """\
This encoder is not one that timm builds by name, so it comes with its code, which you are asked to trust:

```python
from transformers import AutoModel, pipeline

encoder = AutoModel.from_pretrained("REPO", trust_remote_code=True)
features = pipeline("image-feature-extraction", model="REPO", trust_remote_code=True)("image.jpg")
```"""


def usage(plain: bool, sharded: bool) -> str:
    """How the model is loaded; `plain`: as timm builds it, `sharded`: its weights are in several files."""
    if not plain:
        return _CODE_USAGE
    return _PLAIN_USAGE.replace(*_ONE_FILE) if sharded else _PLAIN_USAGE


def with_processor(lines: list[str], place: str) -> list[str]:
    """The lines of `usage`, and one that loads what prepares images for the encoder."""
    first = next(i for i, line in enumerate(lines) if "AutoModel.from_pretrained" in line)
    lines = [line.replace("import AutoModel,", "import AutoImageProcessor, AutoModel,") for line in lines]
    return [*lines[:first], f'processor = AutoImageProcessor.from_pretrained("{place}")', *lines[first:]]


def inputs(config: PreTrainedConfig) -> str:
    """What a converted model's inputs are."""
    return INPUTS


def save_processor(config: PreTrainedConfig, folder: Path) -> None:
    """The processor of an encoder that needs its own code; timm's format says by itself how images are prepared."""
    image_processor(config).save_pretrained(folder)


def serving(config: PreTrainedConfig) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Inputs without the batch, and outputs of a graph."""
    if hasattr(config, "image_size"):
        size = (config.num_channels, config.image_size, config.image_size)
    else:  # timm's
        size = tuple(config.pretrained_cfg["input_size"])
    return {"pixel_values": size}, ["pooler_output", "last_hidden_state"]
