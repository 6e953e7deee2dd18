# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Log power spectrogram for AVID's audio network, batched, on any device."""

from functools import lru_cache

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank


@lru_cache
def _mel_filters(n_fft: int, num_bands: int, sampling_rate: int, device: torch.device) -> torch.Tensor:
    """Mel filters (n_fft // 2 + 1, num_bands), as in librosa."""
    filters = mel_filter_bank(
        n_fft // 2 + 1, num_bands, 0.0, sampling_rate / 2, sampling_rate, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(filters).float().to(device)


def log_spectrogram(
    waveforms: torch.Tensor,
    *,
    sampling_rate: int,
    num_frames: int,
    n_fft: int = 1024,
    hop_length: int = 240,
    num_bands: int = 257,
    spectrogram: str = "linear",
    mean: float | list[float] | torch.Tensor = 0.0,
    std: float | list[float] | torch.Tensor = 1.0,
) -> torch.Tensor:
    """Waveforms (B, samples) -> normalized decibels (B, num_frames, num_bands), float32.

    Uses a centered Hann window and pads the waveform with zeros. "linear" keeps bin 0 and averages the others in equal
    groups; "mel" uses librosa's mel bands. Values more than 100 dB below the clip's maximum are clipped. `mean=0` and
    `std=1 - 1e-5` return plain decibels.

    Raises:
        ValueError: the waveform is too short for the frames.
    """
    if waveforms.shape[1] < (num_frames - 1) * hop_length:
        raise ValueError(f"{waveforms.shape[1]} samples are too few for {num_frames} frames of {hop_length} samples.")
    # Only the samples that these frames need.
    waveforms = waveforms[:, : (num_frames - 1) * hop_length + n_fft].float()
    window = torch.hann_window(n_fft, device=waveforms.device)
    spectrum = torch.stft(
        waveforms, n_fft, hop_length, window=window, center=True, pad_mode="constant", return_complex=True
    )
    power = torch.view_as_real(spectrum[:, :, :num_frames]).square().sum(-1).transpose(1, 2)  # (B, frames, bins)
    if spectrogram == "mel":
        power = power @ _mel_filters(n_fft, num_bands, sampling_rate, waveforms.device)
    else:
        pooled = power[:, :, 1:].unflatten(2, (num_bands - 1, -1)).mean(3)
        power = torch.cat([power[:, :, :1], pooled], 2)
    decibels = 10 * power.clamp_min(1e-10).log10()
    decibels = decibels.maximum(decibels.amax((1, 2), keepdim=True) - 100)
    mean, std = (torch.as_tensor(value, dtype=torch.float32, device=waveforms.device) for value in (mean, std))
    return (decibels - mean) / (std + 1e-5)


class AvidFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms -> `input_values` (B, frames, bands), see `log_spectrogram`.

    Args:
        feature_size: number of bands.
        audio_seconds: longer waveforms are cut, shorter ones padded with silence.
    """

    model_input_names = ["input_values"]

    def __init__(
        self,
        feature_size: int = 257,
        sampling_rate: int = 24000,
        padding_value: float = 0.0,
        audio_seconds: float = 2.0,
        n_fft: int = 1024,
        hop_length: int = 240,
        spectrogram: str = "linear",
        mean: float | list[float] = -28.5,
        std: float | list[float] = 19.7,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.audio_seconds, self.n_fft, self.hop_length = audio_seconds, n_fft, hop_length
        self.spectrogram, self.mean, self.std = spectrogram, mean, std

    def __call__(self, raw_speech, sampling_rate: int | None = None, return_tensors: str | None = None, **kwargs):
        """One mono waveform or a batch of them, as arrays or lists of numbers; mix stereo to mono first.

        Raises:
            ValueError: wrong `sampling_rate`, or more than one channel.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"The model expects {self.sampling_rate} Hz, but the sound has {sampling_rate} Hz; resample it first."
            )
        single = np.ndim(raw_speech[0]) == 0
        samples = int(self.audio_seconds * self.sampling_rate)
        batch = torch.zeros(1 if single else len(raw_speech), samples)
        for row, waveform in zip(batch, [raw_speech] if single else raw_speech, strict=True):
            waveform = torch.as_tensor(np.asarray(waveform, dtype=np.float32))
            if waveform.ndim != 1:
                raise ValueError(f"A waveform must have one dimension (samples), not shape {tuple(waveform.shape)}.")
            row[: len(waveform)] = waveform[:samples]
        values = log_spectrogram(
            batch,
            sampling_rate=self.sampling_rate,
            num_frames=samples // self.hop_length,
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            num_bands=self.feature_size,
            spectrogram=self.spectrogram,
            mean=self.mean,
            std=self.std,
        )
        return BatchFeature({"input_values": values.numpy()}, tensor_type=return_tensors)


AvidFeatureExtractor.register_for_auto_class()
