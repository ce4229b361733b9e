"""A prepared data set as a source of images to embed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from rectrio_lib.core.knn import let_go
from rectrio_lib.core.lookup import positions
from rectrio_lib.data.dataset import ImageDataset
from rectrio_lib.encoders.base import Encoder

if TYPE_CHECKING:
    from rectrio_lib.embeddings.ray import Workers


class DatasetSource:
    """Images of a data set, whose pixels lie in one array; see `embed.Source`."""

    def __init__(self, dataset: ImageDataset):
        self.dataset, self.name = dataset, dataset.name
        self.manifest = dataset.manifest.rename(columns=str)  # as Parquet has them
        self.needed = ["image_id", "shard"]
        self.card = {"folder": "", "generated_images": dataset.generated_images}
        self.empty = self.manifest.iloc[:0].assign(shard=np.empty(0, np.int64))

    def open(self, encoder: Encoder, home: Path, rows: pd.DataFrame, waiting: pd.Series) -> pd.Series:
        """Find the images that no row has."""
        missing = np.flatnonzero(positions(self.manifest["image_id"], rows["image_id"]) < 0)
        listed = self.manifest["image_id"].iloc[missing]
        self._missing = missing[positions(listed, waiting) < 0]
        return listed

    def batches(self, step: int) -> Iterator[tuple[pd.DataFrame, torch.Tensor]]:
        """Yield them in manifest order."""
        for start in range(0, len(self._missing), step):
            part = self.manifest.iloc[self._missing[start : start + step]]
            images = torch.from_numpy(self.dataset.pixels[part["row"].to_numpy()])
            let_go(self.dataset.pixels)
            yield part, images

    def spread(self, step: int, workers: Workers) -> Iterator[tuple[pd.DataFrame, torch.Tensor]]:
        """Send the images to workers."""
        return workers.encode(self.batches(step))

    def droppable(self, rows: pd.DataFrame) -> np.ndarray:
        """Return what has left the data set."""
        return positions(rows["image_id"], self.manifest["image_id"]) < 0

    def describe(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Take labels and splits as the manifest has them now; in the same order, they are not copied."""
        places = positions(rows["image_id"], self.manifest["image_id"])
        same = np.array_equal(places, np.arange(len(self.manifest)))
        now = self.manifest if same else self.manifest.iloc[places]
        return now.reset_index(drop=True).assign(shard=rows["shard"].to_numpy())

    def save(self, home: Path, shard: int | None = None) -> None:
        """Nothing to remember."""

    def counts(self) -> dict:
        """Return the number of images."""
        return {"files": len(self.dataset)}
