# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Sources of images that a test makes."""

from datasets import Dataset

from hf_ssl.data.sources import Source


class ImageSource(Source):
    """Images of a map-style dataset, see `Source`; the column is found by its type when there is one only."""

    def __init__(
        self,
        dataset: Dataset,
        image_column: str | None = None,
        label_column: str | None = None,
        max_megapixels: float = 50.0,
    ):
        super().__init__(dataset, {"image": image_column}, label_column, max_megapixels)
        self.image_column = self.columns["image"]
