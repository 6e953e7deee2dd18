# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Makes the quickstart's images: 20 classes of Caltech-101, at a short side of 64 pixels, about balanced.

Usage: python make_subset.py FOLDER, where FOLDER holds Caltech-101 as train-*.parquet and test-*.parquet with the
columns image and label. Writes train.parquet and test.parquet beside this file.
"""

import io
import sys
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, load_dataset


CLASSES = (
    "airplanes", "Motorbikes", "Faces", "watch", "Leopards", "bonsai", "car_side", "ketch", "chandelier", "hawksbill",
    "grand_piano", "brain", "butterfly", "helicopter", "menorah", "trilobite", "starfish", "kangaroo", "sunflower",
    "buddha",
)  # fmt: skip
SHORT_SIDE, QUALITY = 64, 80
TRAIN_PER_CLASS, TEST_PER_CLASS = 64, 25


def subset(dataset: Dataset, per_class: int, seed: int) -> Dataset:
    names = dataset.features["label"].names
    labels = np.array(dataset["label"])
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.flatnonzero(labels == names.index(c)))[:per_class] for c in CLASSES]
    rows = generator.permutation(np.concatenate(chosen))
    images, targets = [], []
    for row in rows:
        example = dataset[int(row)]
        images.append({"bytes": shrink(example["image"]), "path": None})
        targets.append(CLASSES.index(names[example["label"]]))
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSES))})
    return Dataset.from_dict({"image": images, "label": targets}, features=features)


def shrink(image) -> bytes:
    factor = min(1.0, SHORT_SIDE / min(image.size))
    buffer = io.BytesIO()
    image.convert("RGB").resize([round(side * factor) for side in image.size]).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def main(folder: str) -> None:
    here = Path(__file__).parent
    for split, per_class in (("train", TRAIN_PER_CLASS), ("test", TEST_PER_CLASS)):
        full = load_dataset("parquet", data_files=f"{folder}/{split}-*.parquet", split="train")
        part = subset(full, per_class, seed=0)
        part.to_parquet(here / f"{split}.parquet")
        size = (here / f"{split}.parquet").stat().st_size
        print(f"{split}: {len(part)} images, {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main(sys.argv[1])
