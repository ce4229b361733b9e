"""One training loop for every chapter: mixed precision, averaged weights, checkpoints, resume, curves."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from rectrio_lib import resources
from rectrio_lib.encoders import Encoder, best_device, best_precision, fingerprint
from rectrio_lib.losses import batch_statistics, make_loss

LOOK_EVERY = 10  # steps between two entries of the curves
COLLAPSED = 0.05  # mean distance of unit vectors below which all pictures sit in one point


class CollapseWarning(UserWarning):
    """All pictures are being mapped to one point: the loss stays at the margin and nothing is learned."""


@dataclass(frozen=True)
class TrainConfig:
    """What a training run is made of; two runs with equal configurations give equal metrics on one machine.

    Attributes:
        epochs: passes over the training pictures.
        batch_size: pictures a step.
        learning_rate: the highest of the one-cycle schedule.
        weight_decay: AdamW's.
        margin: of loss and miner, in distances of unit vectors.
        miner: see `losses.make_loss`.
        warm_up: share of the steps over which the learning rate rises.
        average: decay of the exponential moving average of the weights that is kept; 0 averages nothing.
        shift: pictures are moved by up to so many pixels.
        flip: whether half of the pictures are mirrored.
        erase: share of pictures of which a random box is blanked.
        seed: of weights, order and augmentation.
        precision: "bf16", "no", or "auto" for what the processor is fast at.
        validate_every: steps between two validations; 0 means once an epoch. The last step is always validated.
    """

    epochs: int = 2
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    margin: float = 0.2
    miner: str = "all"
    warm_up: float = 0.25
    average: float = 0.999
    shift: int = 2
    flip: bool = True
    erase: float = 0.0
    seed: int = 0
    precision: str = "auto"
    validate_every: int = 0


@dataclass(frozen=True)
class Trained:
    """What `fit` returns: the encoder (best on validation), its curves, and the seconds spent on training steps."""

    encoder: Encoder
    history: pd.DataFrame
    seconds: float

    @property
    def validations(self) -> pd.DataFrame:
        """The rows of the history at which validation recall@1 was measured."""
        return self.history.dropna(subset="recall_at_1")


def augment(images: torch.Tensor, shift: int = 2, flip: bool = True, erase: float = 0.0) -> torch.Tensor:
    """Mirror, move and partly blank each picture of a batch by itself, in a handful of tensor operations.

    Args:
        images: uint8 (B, C, H, W).
        shift: largest move in pixels; what comes in from outside is black.
        flip: whether to mirror half of the pictures.
        erase: share of pictures that lose a box of 1/7 to 3/7 of the side to black.

    Source: Zhong et al., "Random erasing data augmentation", AAAI 2020.
    """
    count, _, height, width = images.shape
    rows, columns = torch.arange(height), torch.arange(width)
    if flip:
        mirrored = (torch.rand(count) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if shift:
        padded = F.pad(images, [shift] * 4)
        down, right = torch.randint(2 * shift + 1, (2, count, 1))
        y, x = (down + rows)[:, :, None].to(images.device), (right + columns)[:, None, :].to(images.device)
        images = padded[torch.arange(count, device=images.device)[:, None, None], :, y, x].permute(0, 3, 1, 2)
    if erase:
        side = torch.randint(height // 7, 3 * height // 7 + 1, (2, count, 1))
        top, left = (torch.rand(2, count, 1) * (torch.tensor([height, width])[:, None, None] - side + 1)).long()
        tall, wide = (rows >= top) & (rows < top + side[0]), (columns >= left) & (columns < left + side[1])
        box = tall[:, :, None] & wide[:, None, :] & (torch.rand(count) < erase)[:, None, None]
        images = images.masked_fill(box[:, None].to(images.device), 0)
    return images


def fit(
    make_encoder: Callable[[], Encoder],
    images: np.ndarray,
    targets: np.ndarray,
    config: TrainConfig,
    validate: Callable[[Encoder], float],
    folder: Path,
) -> Trained:
    """Train an encoder with triplets drawn from batches of pictures.

    The pictures stay on the device as uint8. Every epoch ends with a checkpoint in `folder`: last.pt to continue from,
    best.pt the weights that validated best. A run that was stopped goes on after its last whole epoch when it is called
    again with the same configuration, network and pictures, and ends with the same metrics as one that was never
    stopped. Anything else starts anew and takes the place of what `folder` holds.

    Args:
        make_encoder: makes the untrained encoder; called after seeding.
        images: uint8 (N, C, H, W).
        targets: class numbers (N,).
        config: see `TrainConfig`.
        validate: gives recall@1 on validation pictures; its time is not counted.
        folder: where the checkpoints go.

    Raises:
        ValueError: if there are too few pictures or classes for a triplet, or the configuration is impossible.
        OSError: if a checkpoint cannot be written; the previous one is still whole.
    """
    _check(targets, config)
    run = _Run(make_encoder, images, targets, config, folder)
    images, targets = (torch.as_tensor(np.ascontiguousarray(a)).to(run.device) for a in (images, targets))
    run.resume()
    while run.epoch < config.epochs:
        try:
            _train_epoch(run, images, targets, validate)
        except KeyboardInterrupt:
            print(f"Stopped in epoch {run.epoch + 1}: run it again to go on after the last whole epoch.")
            raise
        run.epoch += 1
        run.save()
    run.evaluated.load_state_dict(torch.load(folder / "best.pt", weights_only=True))
    return Trained(run.evaluated.cpu().eval(), pd.DataFrame(run.history), run.seconds)


def _check(targets: np.ndarray, config: TrainConfig) -> None:
    counts = np.unique(targets, return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        raise ValueError(
            f"Training needs at least two classes, and two pictures of one of them, to make a triplet: there are "
            f"{len(targets)} pictures of {len(counts)} classes."
        )
    if config.epochs < 1 or not 3 <= config.batch_size <= len(targets):
        raise ValueError(
            f"epochs={config.epochs} and batch_size={config.batch_size} do not fit {len(targets)} training pictures: "
            f"at least one epoch, and batches of 3 to {len(targets)}."
        )


class _Run:
    """Everything that a checkpoint has to hold."""

    def __init__(
        self,
        make_encoder: Callable[[], Encoder],
        images: np.ndarray,
        targets: np.ndarray,
        config: TrainConfig,
        folder: Path,
    ):
        self.config, self.folder = config, folder
        self.device = best_device()
        precision = best_precision(self.device) if config.precision == "auto" else config.precision
        AcceleratorState._reset_state()  # else a second run in the same process could not take another precision
        self.accelerator = Accelerator(mixed_precision=precision, cpu=self.device == "cpu")
        torch.manual_seed(config.seed)
        self.loss = make_loss(config.miner, config.margin)
        self.steps = len(images) // config.batch_size
        self.encoder = make_encoder().to(self.device)
        self.identity = {**asdict(config), "encoder": fingerprint(self.encoder), "pictures": _digest(images, targets)}
        self.average = AveragedModel(self.encoder, avg_fn=_moving_average(config.average), use_buffers=True)
        optimizer = torch.optim.AdamW(self.encoder.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            config.learning_rate,
            total_steps=self.steps * config.epochs + 1,
            pct_start=config.warm_up,
        )
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(self.encoder, optimizer, schedule)
        self.epoch, self.seconds, self.best, self.history = 0, 0.0, -1.0, []

    @property
    def evaluated(self) -> Encoder:
        """The network that is validated and kept."""
        return self.average.module if self.config.average else self.encoder

    def save(self) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("encoder", "average", "optimizer", "schedule")}
        state |= {name: getattr(self, name) for name in ("epoch", "seconds", "best", "history")}
        self._write("last.pt", {**state, "random": torch.get_rng_state(), "identity": self.identity})

    def save_best(self, recall: float) -> None:
        if recall >= self.best:
            self.best = recall
            self._write("best.pt", self.evaluated.state_dict())

    def _write(self, name: str, content: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.part"
        with partial.open("wb") as file:  # given a path, torch reports a full disk in words that do not say so
            torch.save(content, file)
        partial.replace(self.folder / name)

    def resume(self) -> None:
        """Go on after the last whole epoch of an unfinished run of the same identity; else clear the way for this."""
        path = self.folder / "last.pt"
        state = torch.load(path, weights_only=True) if path.exists() else {}
        if state.get("identity") != self.identity or state["epoch"] >= self.config.epochs:
            path.unlink(missing_ok=True)  # its best.pt is about to be overwritten
            return
        for name in ("encoder", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.epoch, self.seconds, self.best, self.history = (state[k] for k in ("epoch", "seconds", "best", "history"))
        torch.set_rng_state(state["random"])
        print(f"Going on after epoch {self.epoch} of {self.config.epochs}.")


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _moving_average(decay: float) -> Callable:
    """Exponential moving average whose memory grows with the steps, so that the random start is forgotten at once."""

    def update(average: torch.Tensor, current: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        return average + (current - average) * max(1 - decay, 1 / (1 + int(count) / 10))

    return update


def _train_epoch(run: _Run, images: torch.Tensor, targets: torch.Tensor, validate: Callable[[Encoder], float]) -> None:
    config = run.config
    order = torch.randperm(len(images))[: run.steps * config.batch_size].view(run.steps, config.batch_size)
    bar = tqdm(order, desc=f"epoch {run.epoch + 1}/{config.epochs}", disable=resources.quiet(), leave=False)
    run.model.train()
    started = time.perf_counter()
    for number, chosen in enumerate(bar, start=run.epoch * run.steps + 1):
        chosen = chosen.to(run.device)
        batch = augment(images[chosen], config.shift, config.flip, config.erase)
        with run.accelerator.autocast():
            vectors = run.model(run.encoder.prepare(batch))
        loss = run.loss(vectors, targets[chosen], number / (run.steps * config.epochs))
        run.optimizer.zero_grad()
        run.accelerator.backward(loss)
        run.optimizer.step()
        run.schedule.step()
        run.average.update_parameters(run.encoder)
        due = number % (config.validate_every or run.steps) == 0 or number == run.steps * config.epochs
        if number % LOOK_EVERY == 0 or due:
            row = _look(run, number, loss, vectors, targets[chosen])
            run.seconds += time.perf_counter() - started
            if due:
                row["recall_at_1"] = float(validate(run.evaluated))
                run.save_best(row["recall_at_1"])
            run.history.append({**row, "seconds": run.seconds})
            bar.set_postfix({k: f"{v:.3f}" for k, v in row.items() if k not in ("step", "epoch", "learning_rate")})
            started = time.perf_counter()
    run.seconds += time.perf_counter() - started


def _look(run: _Run, number: int, loss: torch.Tensor, vectors: torch.Tensor, targets: torch.Tensor) -> dict:
    row = {"step": number, "epoch": number / run.steps, "loss": loss.item()}
    row |= {"learning_rate": run.schedule.get_last_lr()[0], "recall_at_1": float("nan")}
    row |= batch_statistics(vectors, targets, run.config.margin)
    if row["negative_distance"] < COLLAPSED and number > LOOK_EVERY:
        warnings.warn(
            f"Collapse at step {number}: different classes are only {row['negative_distance']:.3f} apart. Train with "
            "miner 'all' or 'semihard', a lower learning rate, or hard triplets only after a longer warm-up.",
            CollapseWarning,
            stacklevel=3,
        )
    return row
