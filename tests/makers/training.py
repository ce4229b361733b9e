"""Small training runs on drawn shapes, complete and stopped."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rectrio_lib.core.device import best_device
from rectrio_lib.data.synthetic import draw_shapes
from rectrio_lib.encoders.convnet import ConvNet
from rectrio_lib.encoders.pretrained import ProjectionHead
from rectrio_lib.encoders.registry import fingerprint
from rectrio_lib.training.config import TrainConfig
from rectrio_lib.training.loop import fit

CONFIG = TrainConfig(epochs=3, batch_size=30, learning_rate=0.01, shift=1, erase=0.5, precision="no")


def drawn(objects=9, seed=0):
    """Images of 12 x 12 pixels and their class numbers."""
    pixels, frame = draw_shapes(objects, views=1, size=12, seed=seed)
    return pixels, np.unique(frame["label"], return_inverse=True)[1]


def small():
    return ConvNet(1, 12, (8, "M", 8), 6, 0.2, 0.2)


def nearest_hits(encoder, pixels, targets):
    """recall@1, each image searched among all others."""
    similarity = (vectors := encoder.encode(pixels)) @ vectors.T
    np.fill_diagonal(similarity, -2)
    return float((targets[similarity.argmax(1)] == targets).mean())


def validate(encoder):
    return {"recall_at_1": nearest_hits(encoder, *drawn(4, seed=1))}


def photos(count=24, seed=0):
    """Noisy images of four colours, 32 x 32, and the number of their colour."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 4
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [130, 130, 60]])[targets]
    return (colours[:, :, None, None] + rng.integers(-50, 50, (count, 3, 32, 32))).astype(np.uint8), targets


def validate_photos(encoder):
    return {"recall_at_1": nearest_hits(encoder, *photos(12, seed=1))}


def a_head(frozen, hidden=0):
    """A head for the features of a frozen backbone, always the same."""
    torch.manual_seed(3)
    return ProjectionHead(frozen.dim, 6, hidden).eval()


def train(folder, config=CONFIG, validation=validate, make=small, data=None, augmentation=None):
    return fit(make, *(data or drawn()), config, validation, Path(folder), augmentation)


class Stopper:
    """Validates as usual, except that the given call never returns."""

    def __init__(self, call, stop, validation=validate):
        self.calls, self.call, self.stop, self.validation = 0, call, stop, validation

    def __call__(self, encoder):
        self.calls += 1
        if self.calls == self.call:
            self.stop()
        return self.validation(encoder)


def raising(error):
    def stop():
        raise error

    return stop


def figures(history):
    return history.drop(columns="seconds")


def same_run(one, other):
    exact = best_device() == "cpu"  # a GPU adds up in no fixed order
    near = {"check_exact": True} if exact else {"rtol": 0.01, "atol": 0.03}
    pd.testing.assert_frame_equal(figures(one.history), figures(other.history), **near)
    assert not exact or fingerprint(one.encoder) == fingerprint(other.encoder)
