# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Export encoders for serving, to ONNX or torch.export, with a dynamic batch size."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.modality import modality_of
from ..disk import whole_file
from ..recipe import RecipeError
from .weights import open_encoder


class _Encoder(nn.Module):
    """Returns a model's named outputs as a tuple, as graphs require."""

    def __init__(self, model: PreTrainedModel, inputs: list[str], outputs: list[str]):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(output[name] for name in self.outputs)


def export_for_serving(place: str, output: Path | str | None = None, *, onnx: bool) -> tuple[Path, float]:
    """Write the encoder of a repo folder, a run or the Hub as `encoder.onnx` or `encoder.pt2` (torch.export).

    Image encoders take `pixel_values` (B, C, H, W) and return `pooler_output` (B, D) and `last_hidden_state`. AVID
    takes `pixel_values_videos` (B, T, C, H, W) and `input_values` (B, frames, bands) and returns `video_embeds` and
    `audio_embeds` (B, D). Inputs must be normalized as by the model's processor.

    Returns:
        The file, and the largest difference between its outputs and the model's, relative to the largest output.

    Raises:
        RecipeError: no model there, a package is missing, or the graph computes something else.
    """
    inner = Path(place) / "model"
    model = open_encoder(str(inner) if inner.is_dir() else place)
    if output is None:
        output = (inner if inner.is_dir() else Path(place)) / ("encoder.onnx" if onnx else "encoder.pt2")
    output = Path(output)
    if not output.parent.is_dir():
        raise RecipeError(f"There is no folder {output.parent}; name the file with --output.")
    sizes, outputs = modality_of(model.config).half(__package__).serving(model.config)
    module = _Encoder(model, list(sizes), outputs).eval()
    examples = [tuple(torch.rand(batch, *size) for size in sizes.values()) for batch in (2, 5)]
    batch = torch.export.Dim("batch", min=1)
    dynamic = {"tensors": tuple({0: batch} for _ in sizes)}
    with torch.no_grad(), whole_file(output) as partial:
        expected = module(*examples[1])
        if onnx:
            found = _onnx(module, examples, dynamic, list(sizes), outputs, partial)
        else:
            torch.export.save(torch.export.export(module, examples[0], dynamic_shapes=dynamic), partial)
            found = torch.export.load(partial).module()(*examples[1])
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
        if not error < 1e-3:
            raise RecipeError(
                f"The output of the exported graph differs from the model's by {error:.1e}; nothing was saved."
            )
    return output, error


def _onnx(module, examples, dynamic, inputs, outputs, file: Path) -> list[torch.Tensor]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RecipeError(f"ONNX packages are missing ({error}); pip install onnx onnxruntime onnxscript.") from None
    large = sum(p.numel() * p.element_size() for p in module.parameters()) > 1.9e9  # protobuf's limit is 2 GB
    torch.onnx.export(
        module,
        examples[0],
        file,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=dynamic,
        dynamo=True,
        external_data=large,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(outputs, {name: np.asarray(x) for name, x in zip(inputs, examples[1], strict=True)})
    return [torch.from_numpy(array) for array in found]
