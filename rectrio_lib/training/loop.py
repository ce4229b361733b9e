"""One training loop for every chapter: mixed precision, averaged weights, resume, curves."""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import synchronize_rng_states
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import nn
from tqdm.auto import tqdm

from rectrio_lib.core.errors import ArgumentError, OutOfMemoryError
from rectrio_lib.core.workspace import quiet
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.training.checkpoint import EncoderLoss, TrainingState
from rectrio_lib.training.config import TrainConfig, check
from rectrio_lib.training.distributed import processes
from rectrio_lib.training.distributed.sharing import average_gradients, gather, own_share, shared_statistics
from rectrio_lib.training.losses import batch_statistics

LOG = logging.getLogger(__name__)
LOG_EVERY = 10  # steps between two entries of the curves
COLLAPSED = 0.99  # from this ratio of mean distances to positives and negatives on, no class is told apart
COLLAPSED_ENTRIES = 5  # entries of the curves in a row that make it a collapse


class CollapseWarning(UserWarning):
    """Images of one class are as far apart as images of different classes: nothing is learned."""


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
    augmentation: nn.Module | None = None,
    loss: EncoderLoss | None = None,
) -> TrainingResult:
    """Train what is not frozen of an encoder, with triplets drawn from batches of images or another loss.

    Every epoch ends with a checkpoint in `folder`: last.pt to continue from, best.pt the weights that validated best. A
    stopped run, called again with the same arguments, continues after its last complete epoch and ends with the metrics
    of one that was never stopped, on a GPU but for rounding. Anything else starts from nothing and replaces what
    `folder` holds.

    On several processes, `config.processes` or those of torchrun, each encodes its share of every batch, and
    the loss, batch norms included, sees the whole: metrics are those of one process but for rounding. Each changes the
    whole batch, with the same random numbers. The first alone validates and writes; all return the same.

    Args:
        make_encoder: makes the untrained encoder; called after seeding.
        images: uint8 (N, C, H, W), or whatever else the encoder's `prepare` takes.
        targets: class numbers (N,).
        config: see `TrainConfig`.
        validate: gives figures such as {"recall_at_1": 0.9}; the earliest weights with the highest first one stay.
        folder: where the checkpoints go.
        augmentation: changes a batch of images before each step, identified by its repr; None does what `config` says.
        loss: of encoder, vectors (B, D), targets (B,) and progress (0..1), identified by its repr; None: `config`'s.

    Raises:
        ArgumentError: see `config.check`; or all is frozen, the loss diverges, or the first validation figure is NaN.
        OutOfMemoryError: if a batch does not fit; the message names what to lower.
        StorageError: if a checkpoint cannot be written; the previous one is still complete.
    """
    check(targets, config)
    count, rest = processes.to_start(config.processes), (config, folder, augmentation, loss)
    if count == 1:
        return _train(make_encoder, images, targets, validate, *rest)
    torch.manual_seed(config.seed)
    encoder = make_encoder().cpu()  # a GPU's memory cannot be sent everywhere
    arrays = {"images": images, "targets": targets}
    with processes.helped(count, _help, (encoder, *rest), arrays, folder):
        return _train(lambda: encoder, images, targets, validate, *rest)


def _help(encoder: Encoder, *rest: Any, images: np.ndarray, targets: np.ndarray) -> None:
    _train(lambda: encoder, images, targets, None, *rest)


def _train(
    make_encoder: Callable[[], Encoder],
    images: np.ndarray,
    targets: np.ndarray,
    validate: Callable[[Encoder], dict[str, float]] | None,
    config: TrainConfig,
    *rest: Any,
) -> TrainingResult:
    """Train as one of `TrainingState.count` processes; only the main one calls `validate`."""
    with processes.clear_errors():
        run = TrainingState(make_encoder, images, targets, config, *rest)
        images, targets = (torch.as_tensor(np.require(a, requirements="CW")).to(run.device) for a in (images, targets))
        run.resume()
        with shared_statistics(run.encoder) if run.count > 1 else nullcontext():
            _train_epochs(run, images, targets, validate)
        history, seconds = run.from_main(lambda: (run.history, run.seconds))
        return TrainingResult(run.load_best(), pd.DataFrame(history), seconds)


def _train_epochs(
    run: TrainingState, images: torch.Tensor, targets: torch.Tensor, validate: Callable[[Encoder], dict[str, float]]
) -> None:
    config = run.config
    while run.epoch < config.epochs:
        try:
            _train_epoch(run, images, targets, validate)
        except KeyboardInterrupt:
            if run.main:
                told = "Stopped in epoch %d: run it again to continue after the last complete epoch."
                LOG.warning(told, run.epoch + 1)
            raise
        except RuntimeError as error:
            if not re.search("out of memory|allocate memory|not enough memory", str(error)):
                raise
            raise OutOfMemoryError(
                f"A batch of {config.batch_size} does not fit the memory: lower batch_size (accumulate keeps the steps "
                "as large), then the resolution, then the number of unfrozen blocks; or switch checkpointing on."
            ) from error
        run.epoch += 1
        if run.main:
            run.save()


def _train_epoch(
    run: TrainingState, images: torch.Tensor, targets: torch.Tensor, validate: Callable[[Encoder], dict[str, float]]
) -> None:
    config = run.config
    bar = tqdm(
        _order(run, targets),
        desc=f"epoch {run.epoch + 1}/{config.epochs}",
        disable=quiet() or not run.main,
        leave=False,
    )
    run.model.train()
    started = time.perf_counter()
    for number, chosen in enumerate(bar, start=run.epoch * run.steps + 1):
        chosen = chosen.to(run.device)
        loss, vectors = _step(run, images[chosen], targets[chosen], number)
        due = number % (config.validate_every or run.steps) == 0 or number == run.steps * config.epochs
        if run.main and (number % LOG_EVERY == 0 or due):
            row = _log_row(run, number, loss, vectors, targets[chosen])
            run.seconds += time.perf_counter() - started
            _warn_of_collapse(run, row)
            if due:
                figures = {name: float(figure) for name, figure in validate(run.evaluated).items()}
                name, figure = next(iter(figures.items()))
                run.save_best(figure, name, number)
                row |= {"validated": True, **figures}
            run.history.append({**row, "seconds": run.seconds})
            bar.set_postfix(loss=f"{row['loss']:.3f}")
            started = time.perf_counter()
        if due and run.count > 1:
            synchronize_rng_states(["torch"])  # validation may have drawn some
    run.seconds += time.perf_counter() - started


def _step(run: TrainingState, images: torch.Tensor, targets: torch.Tensor, number: int) -> list[torch.Tensor]:
    with run.accelerator.accumulate(run.model):
        with run.accelerator.autocast():
            vectors = _encode(run, run.augmentation(images), number)
        loss = run.loss(vectors, targets, number / (run.steps * run.config.epochs))
        run.accelerator.backward(loss)
        if run.count > 1 and run.accelerator.sync_gradients:
            average_gradients(p for group in run.optimizer.param_groups for p in group["params"])
        run.optimizer.step()
        run.schedule.step()
        run.optimizer.zero_grad()
        if run.accelerator.sync_gradients:
            run.average.update_parameters(run.encoder)
    return [loss, vectors]


def _encode(run: TrainingState, images: torch.Tensor, number: int) -> torch.Tensor:
    """Return the vectors of a batch, of which each process encodes its share."""
    if run.count == 1:
        return run.model(run.encoder.prepare(images))
    with torch.random.fork_rng([run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(number * run.count + run.accelerator.process_index)  # of dropout: each process its own
        vectors = run.model(run.encoder.prepare(own_share(images)))
    return gather(vectors, len(images))


def _order(run: TrainingState, targets: torch.Tensor) -> torch.Tensor:
    """Rows of the images of every batch of an epoch (steps, batch_size)."""
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
    return row | batch_statistics(vectors, targets, run.config.margin)


def _warn_of_collapse(run: TrainingState, row: dict) -> None:
    """Warn, once, if the last entries of the curves since the warm-up are those of a collapse."""
    keys, begin = ("positive_distance", "negative_distance"), run.config.warm_up * run.config.epochs
    pairs = [[entry[key] for key in keys] for entry in (*run.history, row) if entry["epoch"] > begin]
    last = [pair for pair in pairs if not np.isnan(pair).any()][-COLLAPSED_ENTRIES:]
    positive, negative = np.mean(last or [(0.0, 1.0)], axis=0)
    if len(last) == COLLAPSED_ENTRIES and positive >= COLLAPSED * negative and not run.warned:
        run.warned = True
        told = f"images of one class lie {positive:.3f} apart, those of different classes {negative:.3f}"
        advice = "Try miner='semihard' or a lower learning rate."
        warnings.warn(f"Collapse at step {row['step']}: {told}. {advice}", CollapseWarning, stacklevel=3)
