# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`hf-ssl embed`: embeddings of a dataset as a Parquet file, ready for embedding viewers."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from ..data.sources import Source, load_source
from ..devices import best_precision, process_state
from ..errors import RecipeError, UserError
from ..logs import get_logger
from ..recipe import DataConfig
from .encoders import open_model
from .evaluate import How
from .features import Features
from .knn import nearest
from .store import features_of


logger = get_logger(__name__)


def embed(
    model: str,
    data: DataConfig,
    output: Path | str,
    *,
    neighbors: int = 5,
    batch_size: int = 256,
    tower: str | None = None,
    how: How | None = None,
) -> Path:
    """Write `file`, `label`, `vector`, `x` and `y` (the first two principal components of the unit vectors), and
    `neighbors` (rows of the nearest by cosine, which is in `similarities`) for every example of a split.

    All processes must call this; the main process writes the file.

    Args:
        model: see `open_model`.
        tower: for AVID, "video" or "audio".

    Raises:
        RecipeError: the model or the data cannot be loaded, or no example can be read.
        UserError: the file cannot be written.
    """
    how, output = how or How(), Path(output)
    encoder = open_model(model, how.num_clips, how.layer)
    towers = encoder.modality.towers
    chosen = towers[0] if tower is None else tower
    if chosen not in towers:
        others = f", or choose one of {', '.join(towers)}" if len(towers) > 1 else ""
        raise RecipeError(f"{model} has no tower {tower!r}; remove --tower{others}.")
    source = load_source(data, kind=encoder.modality.medium_of(data))
    precision = how.precision or best_precision() or "no"
    size = {"batch_size": batch_size, "num_workers": data.num_workers}
    found = features_of(encoder, source, precision=precision, cache=how.cache, **size)
    if not process_state().is_main_process:
        return output
    if chosen not in found:
        raise RecipeError(f"{data.path} has no data for the {chosen} tower.")
    features = found[chosen].averaged()
    if len(features) == 0:
        raise RecipeError(
            f"None of the {len(features.failed)} files could be read, the first is {features.failed[0]}."
        )
    if failed := features.failed:
        logger.warning(f"{len(failed)} file(s) could not be read and have no row, the first is {failed[0]}.")
    partial = output.with_name(f".partial_{output.name}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _write(partial, features, source, neighbors)
        os.replace(partial, output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"The embeddings could not be written to {output} ({error}); choose another --output."
        ) from error
    return output


def _write(file: Path, features: Features, source: Source, neighbors: int) -> None:
    """Write the table in blocks of a few thousand rows."""
    names, labels, rows = [source.name(index) for index in range(len(source))], source.classes(), features.examples
    points, count = _principal(features), min(neighbors + 1, len(features))
    with pq.ParquetWriter(file, _schema(features)) as writer:
        for part, vectors in features.blocks(4096):
            similar, near = nearest(F.normalize(vectors, dim=1), features, count, True)
            others = near != torch.arange(part.start, part.start + len(vectors))[:, None]
            indices = rows[part].tolist()
            table: dict[str, Any] = {
                "file": [names[i] for i in indices],
                "label": [None if labels[i] is None else str(labels[i]) for i in indices],
                "vector": list(vectors.numpy()),
                "x": points[part, 0].numpy(),
                "y": points[part, 1].numpy(),
                "neighbors": [row[here].tolist()[:neighbors] for row, here in zip(near, others, strict=True)],
                "similarities": [row[here].tolist()[:neighbors] for row, here in zip(similar, others, strict=True)],
            }
            writer.write_table(pa.table(table, schema=_schema(features)))


def _schema(features: Features) -> pa.Schema:
    return pa.schema(
        {
            "file": pa.string(),
            "label": pa.string(),
            "vector": pa.list_(pa.float32(), features.vectors.shape[-1]),
            "x": pa.float32(),
            "y": pa.float32(),
            "neighbors": pa.list_(pa.int64()),
            "similarities": pa.list_(pa.float32()),
        }
    )


def _principal(features: Features) -> torch.Tensor:
    """The first two principal components (N, 2) of the unit vectors, computed from their small covariance matrix."""
    width = features.vectors.shape[-1]
    total, squares = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for _, vectors in features.blocks():
        unit = F.normalize(vectors, dim=1).double()
        total, squares = total + unit.sum(0), squares + unit.T @ unit
    mean = total / len(features)
    _, axes = torch.linalg.eigh(squares / len(features) - mean[:, None] * mean)
    axes = axes[:, -2:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0)[None]).sign()  # fix the sign
    if width == 1:
        axes = torch.cat([axes, torch.zeros_like(axes)], 1)
    parts = [(F.normalize(vectors, dim=1).double() - mean) @ axes for _, vectors in features.blocks()]
    return torch.cat(parts).float()
