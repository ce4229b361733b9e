"""The configuration of a training run, and whether it fits the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.training.muon import Muon

OPTIMIZERS = {"adamw": torch.optim.AdamW, "muon": Muon}


@dataclass(frozen=True)
class TrainConfig:
    """What a training run is made of; two runs with equal configurations give equal metrics on one machine.

    On a GPU they do so but for rounding, for it adds up in no fixed order: in float32, losses differ by about 1e-6.
    """

    epochs: int = 2  # passes over the training images
    batch_size: int = 256  # images a step
    learning_rate: float = 2e-3  # the highest of the one-cycle schedule
    backbone_rate: float = 0.1  # a pretrained backbone's learning rate, as a share of that
    weight_decay: float = 0.05  # share of the weights that a step at a learning rate of 1 would take away
    optimizer: str = "adamw"  # or "muon", faster where kernels are trained from scratch, see `muon.Muon`
    loss: str = "triplet"  # one of `losses.LOSSES`, see `losses.make_loss`
    miner: str = "all"  # which triplets count, one of `losses.MINERS`
    margin: float = 0.2  # of the triplets, in distances of unit vectors; also of those called active in the curves
    temperature: float = 0.1  # of the losses that are a softmax over cosines
    warm_up: float = 0.25  # share of the steps over which the learning rate rises
    average: float = 0.999  # decay of the moving average of the weights that is kept; 0 averages nothing
    shift: int = 2  # images are moved by up to this number of pixels
    flip: bool = True  # whether half of the images are mirrored
    erase: float = 0.0  # share of images of which a random box is blanked
    seed: int = 0  # of weights, order and augmentation
    per_class: int = 0  # images of each class in a batch, drawn evenly over classes; 0 takes the images as they come
    accumulate: int = 1  # batches whose gradients are added up before a step; triplets are made inside each batch
    precision: str = "auto"  # "bf16", "fp16", "no", or "auto" for what the processor is fast at
    validate_every: int = 0  # steps between two validations; 0: once an epoch. The last step is always validated
    processes: int = 0  # that share every batch, with equal metrics; 0: what RECTRIO_PROCESSES says, or one


def check(targets: np.ndarray, config: TrainConfig) -> None:
    """Refuse a configuration that does not fit the training images, by their class numbers (N,).

    Raises:
        ArgumentError: if no triplet can be made, or a number is out of range; the message says which are in range.
    """
    counts = np.unique(targets, return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        told = f"images: {len(targets)}, classes: {len(counts)}"
        raise ArgumentError(f"Training needs two or more classes, and two images of one, to make a triplet; {told}.")
    if config.epochs < 1 or not 3 <= config.batch_size <= len(targets):
        told = f"epochs={config.epochs} and batch_size={config.batch_size} do not fit {len(targets)} images"
        raise ArgumentError(f"{told}: choose at least one epoch, and batches of 3 to {len(targets)}.")
    if config.optimizer not in OPTIMIZERS:
        raise ArgumentError(f"optimizer={config.optimizer!r} is unknown: choose one of {', '.join(OPTIMIZERS)}.")
    batches = len(targets) // config.batch_size
    if not 1 <= config.accumulate <= batches:
        raise ArgumentError(f"accumulate={config.accumulate}: choose 1 to {batches}, the batches of an epoch.")
    classes = config.batch_size / config.per_class if config.per_class else 2
    if config.per_class < 0 or config.per_class == 1 or classes % 1 or not 2 <= classes <= len(counts):
        told = f"per_class={config.per_class} does not fit batch_size={config.batch_size}"
        known = f"2 to {len(counts)} classes"
        known += f"; these numbers ask for {config.per_class} of {classes:g}" if config.per_class > 0 else ""
        raise ArgumentError(f"{told}: a batch should hold 2 or more images of each of {known}.")
