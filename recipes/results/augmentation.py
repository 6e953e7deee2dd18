# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""CPU time an image of decoding and augmentation, on one thread: ours, and lightly's where it is installed.

python recipes/results/augmentation.py                     JPEGs of 500 x 375 from two photographs, views of 224 pixels
python recipes/results/augmentation.py --cifar FILE        images of a Parquet file of CIFAR-10, views of its recipes
"""

import argparse
import io
import statistics
import time

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from hf_ssl.data.images import ImageTransform, ImageViews
from hf_ssl.data.views import resolve_views
from hf_ssl.recipe import ViewsConfig, load_recipe


def photos(count: int) -> list[bytes]:
    """Crops of scikit-learn's two photographs in full detail."""
    whole, rng, files = [Image.fromarray(array) for array in load_sample_images().images], np.random.default_rng(0), []
    for i in range(count):
        width = int(rng.integers(450, 560))
        height = width * 3 // 4
        left, top = int(rng.integers(0, 641 - width)), int(rng.integers(0, 428 - height))
        crop = whole[i % 2].crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.BICUBIC)
        crop.save(file := io.BytesIO(), "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def ours(preset: str, files: list[bytes], cifar: bool):
    config = load_recipe(f"{preset}/cifar10_resnet18").views if cifar else ViewsConfig(preset=preset)
    stage1 = ImageViews(resolve_views(config, preset))
    stage2 = ImageTransform([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def run(epoch: int) -> tuple[float, float]:
        start = time.process_time()
        made = [stage1.of(Image.open(io.BytesIO(file)), (0, epoch, i)) for i, file in enumerate(files)]
        batch = {name: torch.from_numpy(array) for name, array in stage1.stack(made).items()}
        between = time.process_time()
        stage2(batch)
        return between - start, time.process_time() - between

    return run


def lightlys(preset: str, files: list[bytes], cifar: bool):
    """Their transform with its defaults; for CIFAR-10 at 32 pixels without blur, and SwAV's of our recipe."""
    from lightly import transforms
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

    small = {"input_size": 32, "gaussian_blur": 0.0} if cifar else {}
    if preset == "byol":
        transform = transforms.BYOLTransform(BYOLView1Transform(**small), BYOLView2Transform(**small))
    elif preset == "simsiam":
        transform = transforms.SimSiamTransform(**small)
    else:
        crops = {"crop_sizes": (32, 16), "crop_counts": (2, 4), "crop_min_scales": (0.14, 0.1)}
        crops |= {"crop_max_scales": (1.0, 0.4), "cj_strength": 0.5, "gaussian_blur": 0.0}
        transform = transforms.SwaVTransform(**(crops if cifar else {}))

    def run(epoch: int) -> tuple[float, float]:
        torch.manual_seed(epoch)
        start = time.process_time()
        for views in zip(*[transform(Image.open(io.BytesIO(f)).convert("RGB")) for f in files], strict=True):
            torch.stack(views)
        return time.process_time() - start, 0.0

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", help="a Parquet file with a column `img`")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if args.cifar:
        files = [one["bytes"] for one in pq.read_table(args.cifar).column("img").slice(0, 512).to_pylist()]
    else:
        files = photos(64)
    for preset in ("byol", "simsiam", "barlow_twins", "swav"):
        runs = {"ours": ours(preset, files, bool(args.cifar))}
        if preset != "barlow_twins":  # they have no transform of that name
            try:
                runs["lightly"] = lightlys(preset, files, bool(args.cifar))
            except ImportError:
                pass
        times: dict[str, list] = {name: [] for name in runs}
        for epoch in range(args.repeats + 1):  # in turn, so that a busy machine is busy for both
            for name, run in runs.items():
                times[name].append(run(epoch))
        for name, found in times.items():
            first, second = (1e3 * statistics.median(part) / len(files) for part in zip(*found[1:], strict=True))
            print(f"{preset:13} {name:8} stage 1 {first:.3f}, stage 2 {second:.3f} ms an image")


if __name__ == "__main__":
    main()
