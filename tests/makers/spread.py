"""What embedding on Ray is tested with: an encoder that tells what it embeds, and images."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib.data.dataset import ImageDataset, make_manifest
from rectrio_lib.embeddings.embed import embed
from rectrio_lib.encoders.base import RawPixels

SIDE, BLOCK = 6, 16


class Telling(RawPixels):
    """Raw pixels that take their time; each process tells how many it embedded, in a file of its own in a folder."""

    kind = "telling"

    def __init__(self, folder, seconds=0.0):
        super().__init__(1, SIDE)
        self.folder, self.seconds = str(folder), seconds

    def encode(self, images, progress=""):
        time.sleep(self.seconds)
        vectors = super().encode(images, progress)
        with (Path(self.folder) / f"{os.getpid()}.told").open("a", encoding="utf-8") as file:
            file.write(f"{len(images)}\n")
        return vectors


class Fatal(Telling):
    """Ends its process at the first image."""

    def encode(self, images, progress=""):
        os._exit(1)


class Mortal(Telling):
    """The first process that begins its third block dies there."""

    def encode(self, images, progress=""):
        if told(self.folder).get(os.getpid()) == 2 * BLOCK and not (died := Path(self.folder) / "died").exists():
            died.write_text(str(os.getpid()), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(images, progress)


def told(folder):
    """How many images each process embedded."""
    files = Path(folder).glob("*.told")
    return {int(file.stem): sum(map(int, file.read_text(encoding="utf-8").split())) for file in files}


def noise_set(count):
    """A data set of noise, the same every time."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, SIDE, SIDE), np.uint8)
    frame = pd.DataFrame({"label": np.where(np.arange(count) % 2, "odd", "even"), "split": "train"})
    return ImageDataset("noise", make_manifest(pixels, frame), pixels, ("even", "odd"), "drawn")


def spread(source, folder, seconds=0.0, engine="ray", address=None, kind=Telling):
    """Embed in blocks of BLOCK images, each a shard."""
    options = {"dtype": "float32", "shard_rows": BLOCK, "engine": engine, "address": address}
    return embed(source, kind(folder, seconds), encoder_name="telling", **options)
