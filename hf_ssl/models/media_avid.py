# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Read clips from videos: some frames and the sound around them. PyAV is imported only when needed."""

import gc
import io
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .needed_frames_avid import needed_frames


_PACKETS = 2_000_000  # maximum packets read to find a file's length; three hours of video with sound have half as many
_SHORTEST = 1e-3  # minimum length of a stream in seconds
_BROKEN = 50  # broken packets to skip per reading
_PREROLL = 0.1  # seconds of sound decoded before a window, for Opus and AAC to settle
_GAP = 0.02  # tolerance for time stamps of sound in seconds, because containers round them


# PyAV's resamplers have threads and are in reference cycles. If a forked worker collects one made by its parent, it
# waits forever for threads that only the parent has. So workers never collect objects made by their parent.
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=gc.freeze)


class MediaError(ValueError):
    """A file cannot be read as a video with sound; the message says why in one sentence."""


def import_av():
    """Import and return `av`; ImportError with a hint if it is not installed."""
    try:
        import av
    except ImportError:
        raise ImportError("Reading videos needs PyAV, which is not installed; pip install av.") from None
    return av


def even_draws(num_clips: int) -> list[tuple[float, float]]:
    """Draws of `read_clips` for inference: evenly spaced windows, with the frames in the middle of their sound."""
    return [(i / (num_clips - 1) if num_clips > 1 else 0.5, 0.5) for i in range(num_clips)]


def read_clips(
    video: str | Path | bytes | Any,
    draws: list[tuple[float, float]],
    *,
    num_frames: int,
    frame_rate: float,
    sampling_rate: int,
    audio_seconds: float,
    offset: float = 0.0,
    audio: str | Path | bytes | Any = None,
    max_megapixels: float = 50.0,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read clips from one video.

    The sound's window starts anywhere within the overlap of the video and audio streams. The frames lie within that
    window, extended by `offset` seconds on both sides. For each sampling time the frame on display is used: the last
    one whose time stamp is not later. If a video is too short, its frames are repeated and its sound is padded with
    silence.

    Args:
        video: path, content or binary file.
        draws: two numbers in [0, 1) per clip: where its sound starts, and where its frames start.
        audio: separate sound file, if the sound is not in the video file.
        max_megapixels: refuse videos with larger frames.

    Returns:
        For each clip, frames uint8 (num_frames, H, W, 3) and mono sound float32 (audio_seconds * sampling_rate,).

    Raises:
        MediaError: empty file, no video, no sound, or damaged at the needed position.
        ImportError: PyAV is not installed.
    """
    av = import_av()
    with ExitStack() as stack, _explained(av, "not a video"):
        picture = _open(av, stack, video, "video")
        sound = picture[0] if audio is None else _open(av, stack, audio, "audio")[0]
        sound = (sound, _stream(sound, "audio"))
        pixels = picture[1].codec_context.width * picture[1].codec_context.height / 1e6
        if pixels > max_megapixels:
            raise MediaError(f"frames of {pixels:.1f} megapixels, more than the allowed {max_megapixels:g}")
        scanned: dict[int, tuple[float, float]] = {}
        extents = _extent(*picture, scanned), _extent(*sound, scanned if audio is None else None)
        if max(extents[0][0], extents[1][0]) >= min(extents[0][1], extents[1][1]):
            shown, heard = (f"{start:.1f} to {end:.1f} s" for start, end in extents)
            raise MediaError(f"its video ({shown}) and sound ({heard}) do not overlap in time")
        clips = []
        for draw in draws:
            seconds = num_frames / frame_rate
            start, sound_start = _windows(*extents, draw, seconds, audio_seconds, offset)
            times = start + np.arange(num_frames) / frame_rate
            inside = times[: max(1, int((times < extents[0][1] - 1e-6).sum()))]
            frames = _read_frames(av, *picture, inside.tolist())
            waveform = _read_sound(av, *sound, sound_start, int(audio_seconds * sampling_rate), sampling_rate)
            clips.append((frames[np.arange(num_frames) % len(frames)], waveform))
        return clips


def read_sounds(
    audio: str | Path | bytes | Any, num_clips: int, *, sampling_rate: int, audio_seconds: float
) -> list[np.ndarray]:
    """Evenly spaced windows of a sound file: mono float32 (audio_seconds * sampling_rate,) each.

    Raises:
        MediaError, ImportError: see `read_clips`.
    """
    av = import_av()
    with ExitStack() as stack, _explained(av, "no sound"):
        sound = _open(av, stack, audio, "audio")
        start, end = _extent(*sound)
        last = max(start, end - audio_seconds)
        starts = [start + draw * (last - start) for draw, _ in even_draws(num_clips)]
        samples = int(audio_seconds * sampling_rate)
        return [_read_sound(av, *sound, at, samples, sampling_rate) for at in starts]


@contextmanager
def _explained(av, fault: str) -> Iterator[None]:
    """Turn errors of FFmpeg and PyAV on broken files into a MediaError of one sentence."""
    try:
        yield
    except MediaError:
        raise
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        raise MediaError(f"{fault}, or broken: {getattr(error, 'strerror', None) or error}") from None


def _open(av, stack: ExitStack, source, kind: str) -> tuple:
    """Open a container and find its best stream of a kind."""
    if isinstance(source, bytes):
        if not source:
            raise MediaError("the file is empty")
        source = io.BytesIO(source)
    source = str(source) if isinstance(source, Path) else source
    try:
        container = av.open(source, metadata_errors="replace")
    except TypeError:  # PyAV 19 reads tags in any encoding and has no such argument
        container = av.open(source)
    stack.enter_context(container)
    return container, _stream(container, kind)


def _stream(container, kind: str):
    stream = container.streams.best(kind)
    if stream is None:
        raise MediaError(f"it has no {'picture' if kind == 'video' else 'sound'}: no {kind} stream")
    if stream.codec_context is None:
        raise MediaError(f"there is no decoder for its {kind} stream")
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # the loader already has a worker per core
    return stream


def _extent(container, stream, scanned: dict[int, tuple[float, float]] | None = None) -> tuple[float, float]:
    """Start and end of a stream in seconds, from its metadata, or else from the time stamps of all packets.

    Args:
        scanned: cache of extents per stream index, because one scan finds those of all streams in the container.
    """
    start = float((stream.start_time or 0) * stream.time_base)
    if stream.duration:
        end = start + float(stream.duration * stream.time_base)
    elif "DURATION" in stream.metadata:  # Matroska's tag
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        end = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    elif container.duration:
        end = ((container.start_time or 0) + container.duration) / 1e6
    else:
        scanned = {} if scanned is None else scanned
        if not scanned:
            scanned.update(_scan(container))
        first, end = scanned.get(stream.index, (start, start))
        start = first if stream.start_time is None else start
    return start, max(end, start + _SHORTEST)


def _scan(container) -> dict[int, tuple[float, float]]:
    """Map from stream index to start and end in seconds, from all packets' time stamps, without decoding."""
    found: dict[int, tuple[float, float]] = {}
    container.seek(container.start_time or 0)
    for packet in islice(container.demux(), _PACKETS):
        if packet.pts is not None:
            begin, base = packet.pts * packet.time_base, packet.time_base
            start, end = found.get(packet.stream.index, (math.inf, -math.inf))
            end = max(end, float(begin + (packet.duration or 0) * base))
            found[packet.stream.index] = (min(start, float(begin)), end)
    return found


def _windows(video, audio, draw, video_seconds: float, audio_seconds: float, offset: float) -> tuple[float, float]:
    """Start times of a clip's frames and of its sound, from the extents of both streams."""
    low, high = max(video[0], audio[0]), min(video[1], audio[1]) - audio_seconds
    sound = low + draw[0] * max(0.0, high - low)
    last = max(video[0], video[1] - video_seconds)
    bounds = sound - offset, sound + audio_seconds + offset - video_seconds
    low, high = (min(max(bound, video[0]), last) for bound in bounds)
    return low + draw[1] * (high - low), sound


def _decoded(av, container, stream) -> Iterator:
    """Decode frames from the container's current position, skipping broken packets."""
    for _ in range(_BROKEN):
        try:
            yield from container.decode(stream)
            return
        except av.error.InvalidDataError:  # decoding resumes after the packet
            continue
        except av.error.EOFError:
            return


def _decoded_from(av, container, stream, time: float) -> Iterator:
    """Decode frames starting with one no later than `time`, or else with the first."""
    begin = float((stream.start_time or 0) * stream.time_base)
    for back in (0.0, 0.25, 4.0, math.inf):  # seeking uses decoding time, so it may land on a later frame; back off
        target = max(time - back, begin)
        container.seek(math.floor(target / stream.time_base), stream=stream)
        frames = _decoded(av, container, stream)
        first = next(frames, None)
        if target == begin or (first is not None and (first.time or 0.0) <= time):
            break
    if first is not None:
        yield first
        yield from frames


def _end(stream, frame, time: float) -> float:
    return time + float((frame.duration or 0) * frame.time_base or 1 / (stream.average_rate or 25))


def _all_frames(av, container, stream, times: list[float]) -> list:
    """The frames on display at increasing `times`, found by decoding every frame up to the last one."""
    chosen, shown, time = [], None, None
    for frame in _decoded_from(av, container, stream, times[0]):
        time = frame.time if frame.pts is not None else 0.0 if shown is None else _end(stream, shown, time)
        while len(chosen) < len(times) and time > times[len(chosen)] + 1e-6:
            chosen.append(shown or frame)
        if len(chosen) == len(times):
            break
        shown = frame
    if len(chosen) < len(times):  # the file ends
        if shown is None or times[len(chosen)] > _end(stream, shown, time) + 1:
            raise MediaError(f"its video ends before {times[len(chosen)]:.1f} s")
        chosen += [shown] * (len(times) - len(chosen))
    return chosen


def _read_frames(av, container, stream, times: list[float]) -> np.ndarray:
    """The frames on display at increasing `times`: uint8 (len(times), H, W, 3)."""
    chosen = needed_frames(av, container, stream, times) or _all_frames(av, container, stream, times)
    convert = av.video.reformatter.VideoReformatter()  # reused, because it caches its tables
    out = None
    for i, frame in enumerate(chosen):
        if i and frame is chosen[i - 1]:
            out[i] = out[i - 1]
            continue
        image = convert.reformat(frame, chosen[0].width, chosen[0].height, "rgb24", threads=1).to_ndarray()
        image = np.rot90(image, round(frame.rotation / 90)) if frame.rotation else image
        out = np.empty((len(chosen), *image.shape), np.uint8) if out is None else out
        out[i] = image
    return out


def _read_sound(av, container, stream, start: float, samples: int, rate: int) -> np.ndarray:
    """Mono sound from `start` on, float32 (samples,).

    Blocks are placed by their time stamps before resampling, so that gaps are kept.
    """
    pieces, kind, begin, position, total = None, None, start, 0, 0
    for frame in _decoded_from(av, container, stream, start - _PREROLL):
        time, count, rate_now = frame.time, frame.samples, frame.rate
        if time is not None and time + count / rate_now < start - _PREROLL:
            continue
        if pieces is None:
            kind, begin = frame, start if time is None else time
            described = rate_now, frame.format.name, frame.layout.name
            total = math.ceil((start - begin + samples / rate + _GAP) * rate_now)
            width = 1 if frame.format.is_planar else len(frame.layout.channels)
            like = frame.to_ndarray()
            pieces = np.zeros((len(like), max(0, total) * width), like.dtype)
            size = width * like.itemsize
            rows = [memoryview(row).cast("B") for row in pieces] if total > 0 else []
        stamp = position if time is None else round((time - begin) * rate_now)
        at = position if abs(stamp - position) < _GAP * rate_now else max(0, stamp)
        if at >= total:
            break
        if (rate_now, frame.format.name, frame.layout.name) == described:
            part = min(count, total - at) * size
            for row, plane in zip(rows, frame.planes, strict=False):
                row[at * size : at * size + part] = memoryview(plane)[:part]
        position = at + count
        if position >= total:
            break
    if pieces is None or begin + position / kind.rate <= start:
        raise MediaError(f"its sound ends before {start:.1f} s")
    if described[:2] == (rate, "fltp") and total > 0:
        sound = pieces
    else:
        whole = av.AudioFrame.from_ndarray(pieces, format=kind.format.name, layout=kind.layout.name)
        whole.sample_rate = kind.rate
        resampler = av.AudioResampler("fltp", kind.layout.name, rate)
        parts = [part.to_ndarray() for part in [*resampler.resample(whole), *resampler.resample(None)]]
        sound = np.concatenate(parts, axis=1)
    # The mean of all channels except LFE keeps the level; FFmpeg's mono mix is 3 to 11 dB louder.
    heard = [i for i, channel in enumerate(kind.layout.channels) if not channel.name.startswith("LFE")]
    heard = heard or [0]
    sound = sound[heard[0]] + np.float32(0) if len(heard) == 1 else sound[heard].mean(0)  # + 0 removes -0
    shift = round((start - begin) * rate)
    sound = sound[max(0, shift) : max(0, shift + samples)]
    if len(sound) == samples:
        return sound
    out = np.zeros(samples, np.float32)
    out[max(0, -shift) : max(0, -shift) + len(sound)] = sound[: samples - max(0, -shift)]
    return out
