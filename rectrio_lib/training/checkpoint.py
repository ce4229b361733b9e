"""The state of a training run, and its checkpoints: last.pt to continue from, best.pt to keep."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.optim.swa_utils import AveragedModel

from rectrio_lib.core.device import best_device, best_precision, keep_freed_memory
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.files import renamed
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.registry import fingerprint
from rectrio_lib.training.augment import augment
from rectrio_lib.training.config import OPTIMIZERS, TrainConfig
from rectrio_lib.training.distributed.processes import PATIENCE
from rectrio_lib.training.losses import make_loss

LOG = logging.getLogger(__name__)
EncoderLoss = Callable[[Encoder, torch.Tensor, torch.Tensor, float], torch.Tensor]
KEPT = ("epoch", "seconds", "best", "history")  # plain values that a checkpoint holds


class TrainingState:
    """Everything that a checkpoint has to hold; see `loop.fit` for the arguments."""

    def __init__(
        self,
        make_encoder: Callable[[], Encoder],
        images: np.ndarray,
        targets: np.ndarray,
        config: TrainConfig,
        folder: Path,
        augmentation: nn.Module | None,
        loss: EncoderLoss | None,
    ):
        self.config, self.folder, self.accelerator = config, folder, _accelerator(config)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.count = self.accelerator.num_processes
        if self.count > config.batch_size:
            raise ArgumentError(f"A batch of {config.batch_size} images cannot be shared by {self.count} processes.")
        self.augmentation = augmentation or partial(augment, shift=config.shift, flip=config.flip, erase=config.erase)
        self.steps = len(images) // config.batch_size // config.accumulate * config.accumulate
        keep_freed_memory()
        torch.manual_seed(config.seed)
        self.encoder = make_encoder().to(self.device)
        torch.manual_seed(config.seed)  # however many random numbers the encoder took
        names = (config.loss, config.miner, config.margin, config.temperature)
        named = make_loss(*names, np.unique(targets), self.encoder.dim)
        self.loss = partial(loss, self.encoder) if loss else named
        digest = hashlib.sha256(np.ascontiguousarray(images))
        digest.update(np.ascontiguousarray(targets))
        self.identity = {**asdict(config), "encoder": fingerprint(self.encoder), "images": digest.hexdigest()}
        del self.identity["processes"]  # however many, the metrics are the same
        self.identity["trained"] = [n for n, p in self.encoder.named_parameters() if p.requires_grad]
        self._agree()
        self.identity |= {"augmentation": repr(augmentation), "encoder_loss": repr(loss)}
        moving = partial(_moving_average, config.average)
        self.average = AveragedModel(self.encoder, self.device, moving, use_buffers=True)
        self.epoch, self.seconds, self.best, self.history = 0, 0.0, -math.inf, []
        self.warned = False  # of a collapse
        self.stateful = ["encoder", "average", "optimizer", "schedule"]
        self._prepare(self._parameter_groups())

    def _parameter_groups(self) -> list[dict]:
        rate = self.config.learning_rate
        groups = self.encoder.parameter_groups(rate, self.config.backbone_rate)
        if not any(group["params"] for group in groups):
            raise ArgumentError("Nothing is left to train: unfreeze blocks of the backbone, or add a head.")
        if isinstance(self.loss, nn.Module):  # it has weights of its own
            groups.append({"params": list(self.loss.to(self.device).parameters()), "lr": rate})
            self.stateful.append("loss")
        return groups

    def _prepare(self, groups: list[dict]) -> None:
        """Make optimizer and one-cycle schedule, and hand them to accelerate."""
        config, total = self.config, self.steps * self.config.epochs // self.config.accumulate + 1
        optimizer = OPTIMIZERS[config.optimizer](groups, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [group["lr"] for group in groups], total, pct_start=max(config.warm_up, 2 / total)
        )  # torch divides by the length of the warm-up
        self.optimizer, self.schedule = self.accelerator.prepare(optimizer, schedule)
        # no DistributedDataParallel: parameters may be used beside `forward`, or not at all; see `sharing`
        self.model = self.accelerator.prepare_model(self.encoder, evaluation_mode=True)

    def _agree(self) -> None:
        """Refuse processes that were given different things to train."""
        if self.count > 1 and any(other != self.identity for other in gather_object([self.identity])):
            raise ArgumentError("The processes of this training have different images, networks or configurations.")

    def from_main(self, make: Callable[[], Any]) -> Any:
        """Return, in every process, what a function gives in the main one."""
        made = [make() if self.main else None]
        return broadcast_object_list(made)[0] if self.count > 1 else made[0]

    @property
    def evaluated(self) -> Encoder:
        """The network that is validated and kept."""
        return self.average.module if self.config.average else self.encoder

    def _write(self, name: str, content: dict) -> None:
        with renamed(self.folder / name) as unfinished, unfinished.open("wb") as file:
            torch.save(content, file)  # given a path, torch reports a full disk in words that do not say so

    def save(self) -> None:
        """Write last.pt, from which a stopped run continues."""
        state = {name: getattr(self, name).state_dict() for name in self.stateful}
        state |= {name: getattr(self, name) for name in KEPT}
        if self.accelerator.scaler:  # fp16's
            state["scaler"] = self.accelerator.scaler.state_dict()
        if self.device.type != "cpu":  # where dropout and a miner draw
            state["device_random"] = torch.get_device_module(self.device).get_rng_state()
        self._write("last.pt", {**state, "random": torch.get_rng_state(), "identity": self.identity})

    def save_best(self, figure: float, name: str, step: int) -> None:
        """Write best.pt if this validation figure is higher than all before; a collapse repeats its figure."""
        if math.isnan(figure):
            raise ArgumentError(
                f"The validation figure {name!r} is NaN at step {step:,}. Either the validation images leave nothing "
                "to measure, as where no two are of one class; or training diverged: lower the learning rate."
            )
        if figure > self.best:
            self.best = figure
            self._write("best.pt", self.evaluated.state_dict())

    def load_best(self) -> Encoder:
        """Return the encoder with the weights of best.pt, on the CPU."""
        best = self.from_main(lambda: torch.load(self.folder / "best.pt", "cpu", weights_only=True))
        self.evaluated.load_state_dict(best)
        return self.evaluated.cpu().eval()

    def resume(self) -> None:
        """Continue after the last complete epoch of an unfinished run of the same identity; else start from nothing."""
        path = self.folder / "last.pt"
        state = self.from_main(lambda: torch.load(path, "cpu", weights_only=True) if path.exists() else {})
        known = self.from_main(lambda: self.identity)
        if state.get("identity") != known or state["epoch"] >= self.config.epochs:
            if self.main:
                path.unlink(missing_ok=True)  # its best.pt is about to be overwritten
            return
        for name in self.stateful:
            getattr(self, name).load_state_dict(state[name])
        for name in KEPT:
            setattr(self, name, state[name])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if self.device.type != "cpu" and "device_random" in state:
            torch.get_device_module(self.device).set_rng_state(state["device_random"])
        if self.main:
            LOG.info("Continuing after epoch %d of %d.", self.epoch, self.config.epochs)


def _accelerator(config: TrainConfig) -> Accelerator:
    device = best_device()
    precision = best_precision(device) if config.precision == "auto" else config.precision
    AcceleratorState._reset_state()  # else a second run in the same process could not take another precision
    return Accelerator(
        mixed_precision=precision,
        cpu=device == "cpu",
        gradient_accumulation_steps=config.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True),  # one step of the schedule a batch
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def _moving_average(decay: float, average: torch.Tensor, current: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    # its memory grows with the steps, so that the random start is forgotten at once
    return average + (current - average) * max(1 - decay, 1 / (1 + int(count) / 10))
