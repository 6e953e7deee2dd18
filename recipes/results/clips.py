# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""CPU time a clip of stage 1, on one thread, beside bare PyAV that decodes the same span of the same files.

python recipes/results/clips.py avdigits path/to/avdigits/train    1 s of 64 pixels, with the settings of avid/my_clips
python recipes/results/clips.py grid path/to/grid_s1/train         3 s of 64 pixels, with those of the README
python recipes/results/clips.py long                               10 s of 340 x 256, made here: 8 frames of 224 pixels
"""

import argparse
import gc
import importlib
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from hf_ssl.data.views import DRAWS
from hf_ssl.models import media_avid
from hf_ssl.recipe import load_recipe
from hf_ssl.resolve import resolve


SETTINGS = {
    "avdigits": [],
    "grid": [
        *("model.num_frames=16", "model.frame_rate=5.5", "model.n_fft=1024", "model.audio_seconds=2.9"),
        *("model.num_bands=40", "model.hop_length=400", "views.first.scale=[0.8,1.0]", "views.first.flip=0.5"),
        *("views.first.ratio=[0.9,1.1]", "model.time_segments=16"),
    ],
    "long": [
        *("model.num_frames=8", "model.frame_rate=16", "model.audio_seconds=2.0", "model.sampling_rate=24000"),
        *("views.first.size=224", "views.first.scale=[0.08,1.0]", "views.first.ratio=[0.75,1.33]"),
        "views.first.flip=0.5",
    ],
}


def write_videos(folder: Path, count: int, group: int) -> list[Path]:
    """Photographs that move, and noise: H.264 of 340 x 256 pixels with a key frame every `group`, and AAC."""
    photos = [Image.fromarray(one).resize((680, 512)) for one in load_sample_images().images]
    files = [folder / f"{i}.mp4" for i in range(count)]
    for i, file in enumerate(files):
        rng, fps, rate = np.random.default_rng(i), (25, 30)[i % 2], (44100, 48000)[i // 2 % 2]
        with av.open(str(file), "w") as out:
            picture = out.add_stream("libx264", rate=fps, options={"g": str(group), "keyint_min": str(group)})
            picture.width, picture.height, picture.pix_fmt = 340, 256, "yuv420p"
            sound = out.add_stream("aac", rate=rate, layout="stereo")
            sway = rng.uniform(1, 3, 2)
            for t in range(10 * fps):
                left, top = (int(x) for x in (0.5 + 0.5 * np.sin(t / fps * sway)) * (340, 256))
                pixels = np.array(photos[i % 2].crop((left, top, left + 340, top + 256)))
                pixels = pixels // 16 * 15 + rng.integers(0, 8, (256, 340, 1), np.uint8)
                out.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            out.mux(picture.encode(None))
            noise = rng.normal(0, 0.1, (2, 10 * rate)).astype(np.float32)
            whole = av.AudioFrame.from_ndarray(noise, "fltp", "stereo")
            whole.sample_rate, whole.pts = rate, 0
            fit = av.AudioResampler("fltp", "stereo", rate, frame_size=sound.codec_context.frame_size or 1024)
            for frame in [*fit.resample(whole), *fit.resample(None)]:
                out.mux(sound.encode(frame))
            out.mux(sound.encode(None))
    return files


def spans(file: Path, config, offset: float, key: tuple[int, ...]) -> tuple[float, float, float, float]:
    """From where to where `ClipViews.make` takes frames and sound, in seconds."""
    draw = np.random.default_rng(key).random(DRAWS + 2)[DRAWS:].tolist()
    with av.open(str(file)) as container:
        extents = [media_avid._extent(container, container.streams.best(kind)) for kind in ("video", "audio")]
    seconds = config.num_frames / config.frame_rate
    start, sound = media_avid._windows(*extents, draw, seconds, config.audio_seconds, offset)
    times = start + np.arange(config.num_frames) / config.frame_rate
    return start, times[times < extents[0][1]].max(), sound, min(sound + config.audio_seconds, extents[1][1])


def bare(file: Path, first: float, last: float, sound: float, end: float) -> None:
    """One open; seek and decode the picture, then seek and decode the sound."""
    with av.open(str(file)) as container:
        for kind, start, stop in (("video", first, last), ("audio", sound, end)):
            stream = container.streams.best(kind)
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1
            container.seek(math.floor(start / stream.time_base), stream=stream)
            until = math.floor(stop / stream.time_base)
            for frame in container.decode(stream):
                if frame.pts + frame.duration > until:  # the one that is on display then
                    break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SETTINGS)
    parser.add_argument("folder", nargs="?", type=Path, help="of mp4 files")
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--group", type=int, default=250, help="frames from one key frame to the next, of `long`")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--before", type=Path, help="folder of the package as it was, under another name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    gc.freeze()  # as in a worker, which never collects what its parent made
    recipe = load_recipe("avid/my_clips", ["data.path=.", *SETTINGS[args.kind]])
    resolved, source = resolve(recipe), SimpleNamespace(max_megapixels=50.0)
    config = resolved.config
    stage1 = {"ours": resolved.modality.stage1(resolved.views, resolved.config, recipe)}
    if args.before:  # in the same process and in turn, as the machine may be busy now and then
        sys.path.insert(0, str(args.before.parent))
        before = importlib.import_module(f"{args.before.name}.data.clips")
        stage1["before"] = before.ClipViews(resolved.views[0], config, recipe.clips)
    with tempfile.TemporaryDirectory() as made:
        if args.folder is None:
            files = write_videos(Path(made), 8, args.group)
        else:
            files = sorted(args.folder.rglob("*.mp4"))[: args.files]
        times = {name: [] for name in (*stage1, "bare")}
        for epoch in range(args.repeats + 1):  # in turn, so that a busy machine is busy for all
            keys = [(0, epoch, i) for i in range(len(files))]
            wanted = [spans(file, config, recipe.clips.offset, key) for file, key in zip(files, keys, strict=True)]
            for name, one in stage1.items():
                start = time.process_time()
                for file, key in zip(files, keys, strict=True):
                    one.make({"path": str(file), "bytes": None}, key, source)
                times[name].append(time.process_time() - start)
            start = time.process_time()
            for file, span in zip(files, wanted, strict=True):
                bare(file, *span)
            times["bare"].append(time.process_time() - start)
    for name, found in times.items():
        ratio = statistics.median(plain / own for plain, own in zip(times["bare"][1:], found[1:], strict=True))
        cost = 1e3 * statistics.median(found[1:]) / len(files)
        print(f"{args.kind:8} {name:6} {cost:.2f} ms a clip, bare / it {ratio:.2f}")


if __name__ == "__main__":
    main()
