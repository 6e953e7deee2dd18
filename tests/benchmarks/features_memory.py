# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""How much memory features take: `python tests/benchmarks/features_memory.py [EXAMPLES]`.

Embeds pictures of noise with an encoder of 2,048 outputs, then votes and fits on them; prints what was in anonymous
memory at most, beyond what there was before.
"""

import io
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from hf_ssl import SimSiamConfig, SimSiamModel
from hf_ssl.data.sources import load_source
from hf_ssl.evaluation.encoders import open_model
from hf_ssl.evaluation.knn import knn
from hf_ssl.evaluation.linear import accuracy_of, logistic_regression
from hf_ssl.evaluation.store import features_of
from hf_ssl.recipe import DataConfig


def anonymous() -> int:
    """Bytes of this process that are in no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status names no anonymous memory")


class Peak:
    """The most anonymous memory since it was made, looked at twenty times a second."""

    def __init__(self):
        self.before, self.most, self.over = anonymous(), 0, False
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.over:
            self.most = max(self.most, anonymous())
            time.sleep(0.05)

    def said(self) -> str:
        return f"{(self.most - self.before) / 2**30:.2f} GiB"


def write(file: Path, count: int) -> None:
    """Pictures of 8 x 8 pixels, the first of which shows its class."""
    generator = np.random.default_rng(0)

    def examples():
        for i in range(count):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            pixels[:4] = 25 * (i % 10)
            content = io.BytesIO()
            PILImage.fromarray(pixels).save(content, "PNG")
            yield {"image": {"bytes": content.getvalue(), "path": None}, "label": i % 10}

    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    Dataset.from_generator(examples, features=features, cache_dir=str(file.parent)).to_parquet(file)


def main(count: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "train.parquet", count)
        arguments = {"channels": [8, 8, 8, 2048], "stem_width": 8}
        model = SimSiamModel(SimSiamConfig(backbone="resnet10t", backbone_args=arguments, image_size=8, stem="small"))
        model.save_pretrained(folder / "encoder")
        source = load_source(DataConfig(path=str(folder / "train.parquet")))
        encoder = open_model(str(folder / "encoder"))
        peak = Peak()
        found = features_of(encoder, source, cache=folder / "cache")[""]
        print(f"{len(found):,} x {found.vectors.shape[1]} {found.vectors.dtype}: embedding {peak.said()}", flush=True)
        few = found.select(torch.arange(0, count, max(1, count // 1000)))
        accuracy = knn(found, few)[20]["top1"]
        print(f"with kNN of {len(few):,} ({accuracy:.1%}): {peak.said()}", flush=True)
        model, _ = logistic_regression(found, cs=(1.0,), max_iter=15)
        print(f"with 15 iterations of logistic regression ({accuracy_of(model, few)['top1']:.1%}): {peak.said()}")
        peak.over = True


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
