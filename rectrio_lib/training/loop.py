"""One training loop for every chapter: mixed precision, averaged weights, checkpoints, resume, curves."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from rectrio_lib.core.device import best_device, best_precision
from rectrio_lib.core.errors import ArgumentError, OutOfMemoryError
from rectrio_lib.core.files import renamed
from rectrio_lib.core.workspace import quiet
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.registry import fingerprint
from rectrio_lib.training.augment import augment
from rectrio_lib.training.config import TrainConfig, check
from rectrio_lib.training.losses import batch_statistics, make_loss

LOG = logging.getLogger(__name__)
EncoderLoss = Callable[[Encoder, torch.Tensor, torch.Tensor, float], torch.Tensor]
LOG_EVERY = 10  # steps between two entries of the curves
COLLAPSED = 0.05  # mean distance of unit vectors below which all pictures sit in one point


class CollapseWarning(UserWarning):
    """All pictures are being mapped to one point: the loss stays at the margin and nothing is learned."""


@dataclass(frozen=True)
class TrainingResult:
    """What `fit` returns: the encoder (best on validation), its curves, and the seconds spent on training steps."""

    encoder: Encoder
    history: pd.DataFrame
    seconds: float

    @property
    def validations(self) -> pd.DataFrame:
        """The rows of the history at which validation figures were measured."""
        return self.history[self.history["validated"]]


def fit(
    make_encoder: Callable[[], Encoder],
    images: np.ndarray,
    targets: np.ndarray,
    config: TrainConfig,
    validate: Callable[[Encoder], dict[str, float]],
    folder: Path,
    disguise: nn.Module | None = None,
    loss: EncoderLoss | None = None,
) -> TrainingResult:
    """Train what is not frozen of an encoder, with triplets drawn from batches of pictures or another loss.

    The pictures stay on the device as uint8. Every epoch ends with a checkpoint in `folder`: last.pt to continue from,
    best.pt the weights that validated best. A run that was stopped goes on after its last whole epoch when it is called
    again with the same configuration, network and pictures, and ends with the same metrics as one that was never
    stopped. Anything else starts anew and takes the place of what `folder` holds.

    Args:
        make_encoder: makes the untrained encoder; called after seeding.
        images: uint8 (N, C, H, W), or whatever else the encoder's `prepare` takes.
        targets: class numbers (N,).
        config: see `TrainConfig`.
        validate: gives figures of the encoder on validation pictures, such as {"recall_at_1": 0.9}; the weights with
            the highest first one are kept. Its time is not counted.
        folder: where the checkpoints go.
        disguise: changes a batch of pictures before each step, told apart by its repr; None augments as `config` says.
        loss: called with encoder, vectors (B, D), targets (B,) and progress (0..1), told apart by its repr; None takes
            triplets as `config` says. What of the encoder only the loss uses, such as a text tower, is trained as well.

    Raises:
        ValueError: if there are too few pictures or classes for a triplet, the configuration is impossible, all of the
            encoder is frozen, or the first validation figure is NaN.
        OutOfMemory: if a batch does not fit; the message names what to lower.
        OSError: if a checkpoint cannot be written; the previous one is still whole.
    """
    check(targets, config)
    run = TrainingState(make_encoder, images, targets, config, folder, disguise, loss)
    images, targets = (torch.as_tensor(np.require(a, requirements="CW")).to(run.device) for a in (images, targets))
    run.resume()
    while run.epoch < config.epochs:
        try:
            _train_epoch(run, images, targets, validate)
        except KeyboardInterrupt:
            LOG.warning("Stopped in epoch %d: run it again to continue after the last complete epoch.", run.epoch + 1)
            raise
        except RuntimeError as error:
            if not re.search("out of memory|allocate memory|not enough memory", str(error)):
                raise
            raise OutOfMemoryError(
                f"A batch of {config.batch_size} does not fit the memory: lower batch_size (accumulate keeps the steps "
                "as large), then the resolution, then the number of freed blocks; or switch checkpointing on."
            ) from error
        run.epoch += 1
        run.save()
    run.evaluated.load_state_dict(torch.load(folder / "best.pt", weights_only=True))
    return TrainingResult(run.evaluated.cpu().eval(), pd.DataFrame(run.history), run.seconds)


class TrainingState:
    """Everything that a checkpoint has to hold."""

    def __init__(
        self,
        make_encoder: Callable[[], Encoder],
        images: np.ndarray,
        targets: np.ndarray,
        config: TrainConfig,
        folder: Path,
        disguise: nn.Module | None,
        loss: EncoderLoss | None,
    ):
        self.config, self.folder = config, folder
        self.disguise = disguise or partial(augment, shift=config.shift, flip=config.flip, erase=config.erase)
        self.device = best_device()
        precision = best_precision(self.device) if config.precision == "auto" else config.precision
        AcceleratorState._reset_state()  # else a second run in the same process could not take another precision
        self.accelerator = Accelerator(
            mixed_precision=precision, cpu=self.device == "cpu", gradient_accumulation_steps=config.accumulate
        )
        torch.manual_seed(config.seed)
        self.steps = len(images) // config.batch_size // config.accumulate * config.accumulate
        self.encoder = make_encoder().to(self.device)
        torch.manual_seed(config.seed)  # however much chance the encoder took
        triplets = make_loss(config.miner, config.margin, np.unique(targets), self.encoder.dim)
        self.loss = partial(loss, self.encoder) if loss else triplets
        self.stateful = ["encoder", "average", "optimizer", "schedule"]
        self.identity = {**asdict(config), "encoder": fingerprint(self.encoder), "pictures": _digest(images, targets)}
        self.identity |= {"trained": [n for n, p in self.encoder.named_parameters() if p.requires_grad]}
        self.identity |= {"disguise": repr(disguise), "loss": repr(loss)}
        self.average = AveragedModel(self.encoder, avg_fn=_moving_average(config.average), use_buffers=True)
        groups = self.encoder.parameter_groups(config.learning_rate, config.backbone_rate)
        if not any(group["params"] for group in groups):
            raise ArgumentError("Nothing is left to train: free blocks of the backbone, or give the encoder a head.")
        if isinstance(self.loss, nn.Module):  # it has weights of its own
            self.loss.to(self.device)
            groups.append({"params": list(self.loss.parameters()), "lr": config.learning_rate})
            self.stateful.append("loss")
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        total = self.steps * config.epochs // config.accumulate + 1
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in groups],
            total_steps=total,
            pct_start=max(config.warm_up, 2 / total),  # below, torch divides by a warm-up of no length
        )
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(self.encoder, optimizer, schedule)
        self.epoch, self.seconds, self.best, self.history = 0, 0.0, -1.0, []

    @property
    def evaluated(self) -> Encoder:
        """The network that is validated and kept."""
        return self.average.module if self.config.average else self.encoder

    def save(self) -> None:
        """Write last.pt, from which a stopped run continues."""
        state = {name: getattr(self, name).state_dict() for name in self.stateful}
        state |= {name: getattr(self, name) for name in ("epoch", "seconds", "best", "history")}
        if self.accelerator.scaler:  # fp16's
            state["scaler"] = self.accelerator.scaler.state_dict()
        self._write("last.pt", {**state, "random": torch.get_rng_state(), "identity": self.identity})

    def save_best(self, figure: float) -> None:
        """Write best.pt if this validation figure is the highest so far."""
        if math.isnan(figure):
            raise ArgumentError(
                "The first validation figure is not a number: there is nothing to measure it on, or the training "
                "diverged (then lower the learning rate)."
            )
        if figure >= self.best:
            self.best = figure
            self._write("best.pt", self.evaluated.state_dict())

    def _write(self, name: str, content: dict) -> None:
        # Given a path, torch reports a full disk in words that do not say so.
        with renamed(self.folder / name) as partial, partial.open("wb") as file:
            torch.save(content, file)

    def resume(self) -> None:
        """Go on after the last whole epoch of an unfinished run of the same identity; else clear the way for this."""
        path = self.folder / "last.pt"
        state = torch.load(path, weights_only=True) if path.exists() else {}
        if state.get("identity") != self.identity or state["epoch"] >= self.config.epochs:
            path.unlink(missing_ok=True)  # its best.pt is about to be overwritten
            return
        for name in self.stateful:
            getattr(self, name).load_state_dict(state[name])
        self.epoch, self.seconds, self.best, self.history = (state[k] for k in ("epoch", "seconds", "best", "history"))
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        LOG.info("Continuing after epoch %d of %d.", self.epoch, self.config.epochs)


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


def _train_epoch(
    run: TrainingState, images: torch.Tensor, targets: torch.Tensor, validate: Callable[[Encoder], dict[str, float]]
) -> None:
    config = run.config
    bar = tqdm(_order(run, targets), desc=f"epoch {run.epoch + 1}/{config.epochs}", disable=quiet(), leave=False)
    run.model.train()
    started = time.perf_counter()
    for number, chosen in enumerate(bar, start=run.epoch * run.steps + 1):
        chosen = chosen.to(run.device)
        with run.accelerator.accumulate(run.model):
            with run.accelerator.autocast():
                vectors = run.model(run.encoder.prepare(run.disguise(images[chosen])))
            loss = run.loss(vectors, targets[chosen], number / (run.steps * config.epochs))
            run.accelerator.backward(loss)
            run.optimizer.step()
            run.schedule.step()
            run.optimizer.zero_grad()
            if run.accelerator.sync_gradients:
                run.average.update_parameters(run.encoder)
        due = number % (config.validate_every or run.steps) == 0 or number == run.steps * config.epochs
        if number % LOG_EVERY == 0 or due:
            row = _log_row(run, number, loss, vectors, targets[chosen])
            run.seconds += time.perf_counter() - started
            if due:
                figures = {name: float(figure) for name, figure in validate(run.evaluated).items()}
                run.save_best(next(iter(figures.values())))
                row |= {"validated": True, **figures}
            run.history.append({**row, "seconds": run.seconds})
            bar.set_postfix(
                {k: f"{v:.3f}" for k, v in row.items() if k not in ("step", "epoch", "learning_rate", "validated")}
            )
            started = time.perf_counter()
    run.seconds += time.perf_counter() - started


def _order(run: TrainingState, targets: torch.Tensor) -> torch.Tensor:
    """Rows of the pictures of every batch of an epoch (steps, batch_size)."""
    config, count = run.config, run.steps * run.config.batch_size
    if not config.per_class:
        return torch.randperm(len(targets))[:count].view(run.steps, config.batch_size)
    sampler = MPerClassSampler(targets.cpu(), config.per_class, config.batch_size, count)
    before = np.random.get_state()  # noqa: NPY002 - the sampler draws from NumPy's global state
    np.random.seed(int(torch.randint(2**31, ())))  # noqa: NPY002
    rows = torch.tensor(list(sampler))
    np.random.set_state(before)  # noqa: NPY002
    return rows.view(run.steps, config.batch_size)


def _log_row(run: TrainingState, number: int, loss: torch.Tensor, vectors: torch.Tensor, targets: torch.Tensor) -> dict:
    if not torch.isfinite(loss):
        raise ArgumentError(f"The loss is {loss.item()} at step {number}: train with a lower learning rate.")
    row = {"step": number, "epoch": number / run.steps, "loss": loss.item()}
    row |= {"learning_rate": run.schedule.get_last_lr()[0], "validated": False}
    row |= batch_statistics(vectors, targets, run.config.margin)
    if row["negative_distance"] < COLLAPSED and number > LOG_EVERY:
        warnings.warn(
            f"Collapse at step {number}: different classes are only {row['negative_distance']:.3f} apart. Train with "
            "miner 'all' or 'semihard', a lower learning rate, or hard triplets only after a longer warm-up.",
            CollapseWarning,
            stacklevel=3,
        )
    return row
