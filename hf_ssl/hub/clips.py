# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Models of videos with sound on the Hub: processor, model card text, and inputs and outputs for serving."""

from pathlib import Path

from ..models.configuration_avid import AvidConfig
from ..models.processing_avid import avid_processor
from .images import INPUTS


PIPELINE_TAG = "feature-extraction"

PURPOSE = (
    "It turns {config.video_seconds:g} s of video ({config.num_frames} frames of {config.image_size} pixels) "
    "and {config.audio_seconds:g} s of sound into comparable embeddings, and into features for video or audio "
    "classifiers."
)

_AVERAGED_INPUTS = """\
Input size and frame normalization are those of the original network, see the configuration. The spectrogram is
normalized with the average over all bands; the original network used a mean and a std for each band, so inputs and
features are shifted by up to 1.4 std per band. For the original normalization, pass the authors' file to
`hf-ssl convert --statistics`."""

_USAGE = """\
Both towers come with their own code and need `trust_remote_code=True`. Video files with sound are read with PyAV
(`pip install av`):

```python
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("REPO", trust_remote_code=True)
model = AutoModel.from_pretrained("REPO", trust_remote_code=True)
output = model(**processor("clip.mp4", return_tensors="pt"))      # output.video_embeds, output.audio_embeds
```"""


def usage(plain: bool, sharded: bool) -> str:
    """Model card text on loading the model."""
    return _USAGE


def with_processor(lines: list[str], place: str) -> list[str]:
    """The lines of `usage`, which load the processor, too."""
    return lines


def inputs(config: AvidConfig) -> str:
    """Model card text on the inputs of a converted model."""
    return _AVERAGED_INPUTS if isinstance(config.audio_mean, float | int) else INPUTS


def save_processor(config: AvidConfig, folder: Path) -> None:
    """Save the processor, which takes video files."""
    avid_processor(config).save_pretrained(folder)


def serving(config: AvidConfig) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Input shapes without the batch dimension, and output names of the exported graph."""
    frames = (config.num_frames, config.num_channels, config.image_size, config.image_size)
    sound = (config.num_audio_frames, config.num_bands)
    return {"pixel_values_videos": frames, "input_values": sound}, ["video_embeds", "audio_embeds"]
