"""A prepared data set as a source of images to embed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from rectrio_lib.data.dataset import ImageDataset
from rectrio_lib.encoders.base import Encoder

if TYPE_CHECKING:
    from rectrio_lib.embeddings.ray import Workers


class DatasetSource:
    """Images of a data set, whose pixels lie in one array; see `embed.Source`."""

    def __init__(self, dataset: ImageDataset):
        self.dataset, self.manifest, self.name = dataset, dataset.manifest, dataset.name
        self.card = {"folder": "", "generated_images": dataset.generated_images}
        self.empty = self.manifest.iloc[:0].assign(shard=np.empty(0, np.int64))

    def open(self, encoder: Encoder, home: Path, rows: pd.DataFrame) -> int:
        """Find the images that no row has."""
        self._missing = self.manifest[~self.manifest["image_id"].isin(rows["image_id"])]
        return len(self._missing)

    def batches(self, known: set[str], step: int) -> Iterator[tuple[pd.DataFrame, torch.Tensor]]:
        """Yield them in manifest order."""
        for start in range(0, len(self._missing), step):
            part = self._missing.iloc[start : start + step]
            yield part, torch.from_numpy(self.dataset.pixels[part["row"].to_numpy()])

    def spread(self, known: set[str], step: int, workers: Workers) -> Iterator[tuple[pd.DataFrame, torch.Tensor]]:
        """Send the images to workers."""
        return workers.encode(self.batches(known, step))

    def droppable(self, rows: pd.DataFrame) -> np.ndarray:
        """Return what has left the data set."""
        return ~rows["image_id"].isin(self.manifest["image_id"]).to_numpy()

    def describe(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Take labels and splits as the manifest has them now."""
        now = self.manifest.set_index("image_id").loc[rows["image_id"]].reset_index()
        return now[self.manifest.columns].assign(shard=rows["shard"].to_numpy())

    def save(self, home: Path) -> None:
        """Nothing to remember."""

    def counts(self) -> dict:
        """Return the number of images."""
        return {"files": len(self.dataset)}
