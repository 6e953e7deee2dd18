# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""AVID's spectrogram equals transformers' own, and its processors load from a folder where hf_ssl is not installed."""

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, power_to_db, spectrogram, window_function

from hf_ssl.data.clips import ClipTransform, eval_clip
from hf_ssl.models.configuration_avid import AvidConfig
from hf_ssl.models.feature_extraction_avid import AvidFeatureExtractor, log_spectrogram
from hf_ssl.models.media_avid import MediaError
from hf_ssl.models.processing_avid import avid_processor
from tests.data.clips_fixture import write_clip


CONFIG = AvidConfig(
    image_size=24,
    num_frames=3,
    frame_rate=8,
    sampling_rate=8000,
    audio_seconds=0.5,
    n_fft=128,
    hop_length=80,
    num_bands=17,
    audio_mean=[-30.0 + i for i in range(17)],
    audio_std=[10.0] * 17,
)

FRESH = """
import sys
sys.modules["hf_ssl"] = None  # importing it fails, as where it is not installed
import torch
from transformers import AutoFeatureExtractor, AutoProcessor, AutoVideoProcessor
folder, file, output = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
seeing = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)
hearing = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__name__ == "AvidProcessor"
assert type(seeing).__name__ == "AvidVideoProcessor" and type(hearing).__name__ == "AvidFeatureExtractor"
assert hearing.to_dict() == processor.feature_extractor.to_dict()
torch.save(dict(processor(file, num_clips=2, return_tensors="pt")), output)
"""


def waveforms(count: int, samples: int) -> torch.Tensor:
    torch.manual_seed(0)
    time = torch.arange(samples) / 24000
    tones = (2 * torch.pi * torch.tensor([220.0, 1500.0, 6000.0])[:count, None] * time).sin()
    return 0.5 * tones + 0.01 * torch.randn(count, samples)


@pytest.mark.parametrize("kind", ["linear", "mel"])
def test_the_spectrogram_is_the_one_of_transformers(kind):
    sound, bands = waveforms(3, 48000), 257 if kind == "linear" else 64
    sound[2, 20000:] = 0  # digital silence, 100 dB below
    ours = log_spectrogram(sound, sampling_rate=24000, num_frames=200, num_bands=bands, spectrogram=kind, std=1 - 1e-5)
    assert ours.shape == (3, 200, bands)
    for waveform, got in zip(sound.numpy(), ours.numpy(), strict=True):
        power = spectrogram(waveform, window_function(1024, "hann"), 1024, 240, power=2.0, pad_mode="constant").T
        if kind == "linear":
            power = np.concatenate([power[:, :1], power[:, 1:].reshape(len(power), 256, 2).mean(2)], 1)
        else:
            power = power @ mel_filter_bank(513, 64, 0.0, 12000.0, 24000, norm="slaney", mel_scale="slaney")
        expected = power_to_db(power[:200], min_value=1e-10, db_range=100)
        assert np.abs(got - expected).max() < 0.05 and np.abs(got - expected).mean() < 1e-3  # ours uses float32
        assert got.max() - got.min() <= 100.001


def test_normalization_is_per_band_and_a_batch_is_its_parts():
    sound, options = waveforms(2, 4000), {"sampling_rate": 8000, "num_frames": 50, "n_fft": 128, "hop_length": 80}
    raw = log_spectrogram(sound, num_bands=17, std=1 - 1e-5, **options)
    mean, std = [float(i) for i in range(17)], [2.0 + i for i in range(17)]
    done = log_spectrogram(sound, num_bands=17, mean=mean, std=std, **options)
    assert torch.allclose(done, (raw - torch.tensor(mean)) / (torch.tensor(std) + 1e-5), atol=1e-4)
    alone = log_spectrogram(sound[1:], num_bands=17, mean=mean, std=std, **options)
    assert torch.allclose(alone, done[1:], atol=1e-4)
    with pytest.raises(ValueError, match="too few for 50 frames"):
        log_spectrogram(sound[:, :3000], num_bands=17, **options)


def test_the_feature_extractor_takes_sounds_of_any_length_and_only_its_own_rate():
    extractor = AvidFeatureExtractor(17, 8000, audio_seconds=0.5, n_fft=128, hop_length=80)
    sound = waveforms(1, 6000)[0].numpy()
    short, long = np.concatenate([sound[:1000], np.zeros(3000, np.float32)]), sound
    batch = extractor([sound[:1000], long], sampling_rate=8000, return_tensors="pt")["input_values"]
    assert batch.shape == (2, 50, 17) and batch.dtype == torch.float32
    one = extractor(short.tolist())["input_values"]
    assert isinstance(one, np.ndarray) and np.allclose(one, batch[:1], atol=1e-4)
    assert np.allclose(extractor(long[:4000])["input_values"], batch[1:], atol=1e-4)
    with pytest.raises(ValueError, match="expects 8000 Hz, but the sound has 16000 Hz"):
        extractor(sound, sampling_rate=16000)
    with pytest.raises(ValueError, match="one dimension"):
        extractor([np.zeros((2, 100))])


def test_a_file_becomes_what_the_monitor_sees(tmp_path):
    processor = avid_processor(CONFIG)
    files = [write_clip(tmp_path / "a.mp4", side=48), write_clip(tmp_path / "b.webm", side=32)]
    batch = processor([str(files[0]), files[1].read_bytes()], num_clips=2, return_tensors="pt")
    assert batch["pixel_values_videos"].shape == (4, 3, 3, 24, 24)
    assert batch["input_values"].shape == (4, CONFIG.num_audio_frames, 17)
    record = {"bytes": None, "path": str(files[0])}
    frames, sound = (torch.from_numpy(part) for part in eval_clip(record, CONFIG, 2))
    seen = ClipTransform(CONFIG).normalize(frames, sound)
    assert torch.allclose(batch["pixel_values_videos"][:2], seen["pixel_values_videos"], atol=0.05)
    assert torch.allclose(batch["input_values"][:2], seen["input_values"], atol=1e-4)
    assert processor.model_input_names == ["input_values", "pixel_values_videos"]
    mute = write_clip(tmp_path / "mute.mp4", audio=False)
    with pytest.raises(MediaError, match="no sound"):
        processor(mute)
    assert processor(mute, audio=files[0])["pixel_values_videos"].shape[0] == 1


def test_a_saved_processor_loads_where_hf_ssl_is_not_installed(elsewhere, tmp_path):
    folder, file, output = tmp_path / "repo", write_clip(tmp_path / "a.mkv"), tmp_path / "inputs.pt"
    processor = avid_processor(CONFIG)
    processor.save_pretrained(folder)
    assert {"media_avid.py", "processing_avid.py", "processor_config.json"} <= {p.name for p in folder.iterdir()}
    run = elsewhere.run("-c", FRESH, str(folder), str(file), str(output))
    assert run.returncode == 0, run.stderr[-3000:]
    there, here = torch.load(output), processor(file, num_clips=2, return_tensors="pt")
    assert there.keys() == here.keys() and all(torch.equal(there[key], here[key]) for key in there)
