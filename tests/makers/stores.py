"""Small embedding stores: of drawn pictures, of files, built by encoders that count and stop."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rectrio_lib.data import image_files
from rectrio_lib.data.dataset import ImageDataset, make_manifest
from rectrio_lib.data.image_files import decode
from rectrio_lib.data.synthetic import SHAPES, draw_shapes
from rectrio_lib.embeddings import embed as conductor
from rectrio_lib.encoders.base import RawPixels

ROOT = Path(__file__).resolve().parents[2]
SHARD = 7


class Killed(BaseException):
    """Nothing catches it, as nothing catches a killed process."""


class Counting(RawPixels):
    """Raw pixels that count what they embed, and stop before a given call."""

    def __init__(self, stop_at=None, stop=None, size=6):
        super().__init__(1, size)
        self.embedded, self.calls, self.stop_at, self.stop = 0, 0, stop_at, stop
        self.arguments = {"channels": 1, "size": size}

    def encode(self, images, progress=""):
        if self.calls == self.stop_at:
            self.stop()
        self.calls += 1
        self.embedded += len(images)
        return super().encode(images, progress)


class Negative(Counting):
    """Another encoder of the same length."""

    kind = "negative"

    def encode(self, images, progress=""):
        return -super().encode(images, progress)


def die():
    raise Killed


def picture_set(count=30, seed=0):
    pixels, frame = draw_shapes(3, views=1, size=6, seed=seed)
    splits = np.resize(["train", "test", "train", "val"], len(pixels))
    manifest = make_manifest(pixels, frame[["label"]].assign(split=splits)).iloc[:count]
    return ImageDataset("toy", manifest, pixels, tuple(SHAPES), "drawn")


def keep(dataset, chosen):
    return replace(dataset, manifest=dataset.manifest[chosen].reset_index(drop=True))


def build(dataset, encoder=None, dtype="float32", shard_rows=SHARD):
    encoder = encoder or Counting()
    store, report = conductor.embed(dataset, encoder, "", None, dtype, shard_rows, "net")
    assert encoder.embedded == report.embedded
    return store, report.embedded


def holds(store, dataset, sign=1):
    """Every picture of the data set is in the store once, with its own vector and what the manifest says of it."""
    assert len(store) == len(dataset)
    rows = store.select()
    told = dataset.manifest.set_index("image_id").loc[rows["image_id"]].reset_index()
    pd.testing.assert_frame_equal(rows, told[rows.columns], check_dtype=False)
    np.testing.assert_allclose(
        store.vectors(), sign * RawPixels(1, 6).encode(dataset.pixels[rows["row"].to_numpy()]), atol=1e-6
    )


def content(store):
    """Everything in the store's folder, to the byte, and whatever lies beside it."""
    files = {p.name: p.read_bytes() for p in store.folder.iterdir()}
    beside = sorted(p.name for p in store.folder.parent.iterdir())
    assert pd.read_parquet(store.folder / "rows.parquet").equals(store.rows)
    return {name: data for name, data in files.items() if name != "rows.parquet"}, store.rows.to_dict("list"), beside


def save_pictures(folder, numbers):
    """Write noise to FOLDER/{cat,dog}/<number>.png; a number gives the same bytes every time. Returns the folder."""
    for number in numbers:
        path = folder / ("cat", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (6, 6), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return folder


def embed(folder, encoder=None, **options):
    encoder = encoder or Counting()
    options = {"dtype": "float32", "shard_rows": SHARD, "encoder_name": "net", **options}
    store, report = conductor.embed(folder, encoder, **options)
    assert encoder.embedded == report.embedded
    return store, report


def holds_files(store, folder):
    """Every picture file below the folder is in the store, with the vector of its own pixels, and nothing else is."""
    files, rows = store.files(), store.select()
    good = files[files["reason"] == ""]
    there = {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*.png")}
    assert set(files["path"]) == there and not files["path"].duplicated().any()
    assert sorted(rows["image_id"]) == sorted(set(good["image_id"]))
    assert set(rows["path"]) <= set(good["path"])
    vector = dict(zip(rows["image_id"], store.vectors(), strict=True))
    for path, image_id in zip(good["path"], good["image_id"], strict=True):
        pixels, _ = decode(folder / path, 6, 1)
        np.testing.assert_allclose(vector[image_id], RawPixels(1, 6).encode(pixels[None])[0], atol=1e-6)
    return len(rows)


def embeds_nothing(folder, **options):
    """Embed again, where no file may be read: all are known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "read_image", None)
        store, report = embed(folder, **options)
    assert report.embedded == 0
    return store
