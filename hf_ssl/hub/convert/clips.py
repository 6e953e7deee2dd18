# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Conversion of methods for videos with sound, except their tensors: config fields and spectrogram statistics."""

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import RecipeError
from .common import Tensors


WITHOUT_STATISTICS = (
    "The spectrogram is normalized with the average over all bands, but the released networks were trained with a "
    "mean and std for each band, so inputs and features are shifted by up to 1.4 std per band. For the original "
    "normalization, pass the authors' datasets/assets/audio-spectDB-24k-513-norm-stats.npz as --statistics."
)


def read_statistics(path: Path) -> dict[str, list[float]]:
    """`audio_mean` and `audio_std` of the configuration, one number per band, from the authors' file of two arrays.

    Raises:
        RecipeError: the file is missing, or does not have 257 means and positive standard deviations.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            mean, std = (np.asarray(content[name], dtype=np.float64) for name in ("mean", "std"))
    except FileNotFoundError:
        raise RecipeError(f"There is no file {path}.") from None
    except Exception as error:  # broken or hostile files may raise anything
        raise RecipeError(
            f"{path} is not an .npz file with the arrays mean and std ({type(error).__name__})."
        ) from error
    if mean.shape != (257,) or std.shape != (257,):
        raise RecipeError(
            f"{path} has the statistics of {mean.size} bands, but the released networks use 257; use "
            "audio-spectDB-24k-513-norm-stats.npz (the file with 257 in its name has 129)."
        )
    if not np.isfinite([mean, std]).all() or (std <= 0).any():
        raise RecipeError(f"{path} has values that are not finite, or a std of 0 or less.")
    return {"audio_mean": mean.tolist(), "audio_std": std.tolist()}


def config_fields(tensors: Tensors) -> dict[str, Any]:
    """Configuration fields; both towers are the published ones."""
    return {}
