# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Tiny videos with sound in common containers, written with PyAV."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


CODECS = {  # container: FFmpeg name, codecs, sampling rate
    "mp4": ("mp4", "libx264", "aac", 16000),
    "webm": ("webm", "libvpx-vp9", "libopus", 48000),
    "avi": ("avi", "mpeg4", "libmp3lame", 16000),
    "mkv": ("matroska", "libx264", "aac", 16000),
}


def write_clip(
    file: Path,
    *,
    seconds: float = 2.0,
    fps: int = 8,
    times=None,
    grays=None,
    sound=None,
    audio: bool = True,
    video: bool = True,
    side: int = 32,
    options: dict | None = None,
    layout: str = "mono",
    codec: str | None = None,
) -> Path:
    """A video of flat gray frames.

    Args:
        times: start time of each frame in seconds, for a variable frame rate.
        grays: gray level of each frame; by default 8 * i for frame i.
        sound: in -1..1, at the container's rate, the same in every channel of `layout`; by default a 500 Hz tone.
        codec: audio codec, instead of the container's default.
    """
    container, video_codec, audio_codec, rate = CODECS[file.suffix[1:]]
    audio_codec = codec or audio_codec
    times = np.arange(round(seconds * fps)) / fps if times is None else times
    grays = [8 * i % 256 for i in range(len(times))] if grays is None else grays
    sound = 0.3 * np.sin(2 * np.pi * 500 * np.arange(int(seconds * rate)) / rate) if sound is None else sound
    with av.open(str(file), "w", format=container) as out:
        pictures = out.add_stream(video_codec, rate=fps, options=options) if video else None
        tones = out.add_stream(audio_codec, rate=rate, layout=layout) if audio else None
        if video:
            pictures.width = pictures.height = side
            pictures.pix_fmt = "yuv420p"
            base = Fraction(1, fps) if video_codec == "mpeg4" else Fraction(1, 1000)
            pictures.codec_context.time_base = base
            pictures.codec_context.max_b_frames = 0  # AVI has no timestamps to reorder B-frames
            for time, gray in zip(times, grays, strict=True):
                frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), gray, np.uint8), format="rgb24")
                frame.pts, frame.time_base = round(Fraction(float(time)) / base), base
                out.mux(pictures.encode(frame))
            out.mux(pictures.encode(None))
        if audio:
            encoder, channels = tones.codec_context, len(av.AudioLayout(layout).channels)
            samples = np.tile(sound.astype(np.float32), (channels, 1))
            whole = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            whole.sample_rate, whole.pts = rate, 0
            fit = av.AudioResampler(encoder.format.name, layout, rate, frame_size=encoder.frame_size or None)
            for frame in [*fit.resample(whole), *fit.resample(None)]:
                out.mux(tones.encode(frame))
            out.mux(tones.encode(None))
    return file


def flash_and_beep(file: Path, at: float, seconds: float = 3.0, fps: int = 20) -> Path:
    """A black, silent video with one white frame and a simultaneous beep."""
    rate = CODECS[file.suffix[1:]][3]
    first, length = round(at * rate), rate // fps
    sound = np.zeros(int(seconds * rate))
    sound[first : first + length] = np.sin(2 * np.pi * 1000 * np.arange(length) / rate)
    grays = [255 * (i == round(at * fps)) for i in range(round(seconds * fps))]
    return write_clip(file, seconds=seconds, fps=fps, grays=grays, sound=sound)


def truncate(source: Path, file: Path, share: float = 0.6) -> Path:
    content = source.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    return file


def damage(source: Path, file: Path, first: float, last: float) -> Path:
    """Replace the bytes between two fractions of a file with noise."""
    content = bytearray(source.read_bytes())
    place = slice(int(len(content) * first), int(len(content) * last))
    content[place] = np.random.default_rng(0).bytes(place.stop - place.start)
    file.write_bytes(content)
    return file


class _Pipe(io.RawIOBase):
    """An unseekable output, so that the writer cannot add a duration to the header."""

    def __init__(self):
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data) -> int:
        self.content += bytes(data)
        return len(data)


def rewritten(source: Path, container: str, *, late: float = 0.0, **options: str) -> bytes:
    """The packets of a file written to a pipe, like a live recording; the sound starts `late` seconds later."""
    pipe = _Pipe()
    with av.open(str(source)) as read, av.open(pipe, "w", format=container, options=options) as out:
        streams = {s.index: out.add_stream_from_template(s) for s in read.streams}
        for packet in read.demux():
            if packet.dts is not None:
                shift = round(late / packet.time_base) if packet.stream.type == "audio" else 0
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return bytes(pipe.content)
