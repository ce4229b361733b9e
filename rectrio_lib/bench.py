"""Benchmarks: this library against the usual way, both measured in one run, reported as a ratio."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from rectrio_lib import datasets, metrics
from rectrio_lib.encoders import ConvNet, Encoder
from rectrio_lib.training import TrainConfig, fit

TARGET_RECALL = 0.87
MARGIN = 0.2
GIVE_UP_SECONDS = 450


class RandomTriplets(Dataset):
    """Item i: picture i, a random picture of its class, a random picture of another; as most tutorials write it.

    Args:
        images: uint8 (N, C, H, W).
        targets: class numbers (N,).
        prepare: turns uint8 (B, C, H, W) into the network's input.
        seed: seed of the choice.
    """

    def __init__(
        self, images: np.ndarray, targets: np.ndarray, prepare: Callable[[torch.Tensor], torch.Tensor], seed: int = 0
    ):
        self.images = prepare(torch.as_tensor(images))
        self.targets = targets
        self.same = {c: np.flatnonzero(targets == c) for c in np.unique(targets)}
        self.other = {c: np.flatnonzero(targets != c) for c in np.unique(targets)}
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return anchor, positive, negative."""
        label = self.targets[i]
        return (
            self.images[i],
            self.images[self.rng.choice(self.same[label])],
            self.images[self.rng.choice(self.other[label])],
        )


def train_the_usual_way(
    network: Encoder, triplets: Dataset, validate: Callable[[Encoder], dict[str, float]], validate_every: int = 50
) -> list[dict[str, float]]:
    """Random triplets through a DataLoader, three forward passes a step, float32, Adam; until the target or the limit.

    Returns:
        One row a validation: step, seconds of training (validation not counted), recall_at_1.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    criterion = torch.nn.TripletMarginLoss(margin=MARGIN)
    curve, seconds, step = [], 0.0, 0
    while True:
        started = time.perf_counter()
        for anchor, positive, negative in DataLoader(triplets, batch_size=128, shuffle=True, drop_last=True):
            network.train()
            loss = criterion(network(anchor), network(positive), network(negative))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % validate_every == 0:
                seconds += time.perf_counter() - started
                curve.append({"step": step, "seconds": seconds, **validate(network)})
                if curve[-1]["recall_at_1"] >= TARGET_RECALL or seconds > GIVE_UP_SECONDS:
                    return curve
                started = time.perf_counter()
        seconds += time.perf_counter() - started


def bench_train() -> dict:
    """Seconds of training until recall@1 reaches 0.87 on validation: `training.fit` against the usual way.

    Same network, train pictures and validation (up to 2,000 pictures among 10,000 train pictures); both on the CPU or
    the device that `fit` picks for this library, the CPU for the other.

    Returns:
        {"setting", "contenders": [{name, seconds, steps, recall_at_1, reached}], "ratio"}; the ratio is a lower bound
        if the usual way has not reached the target within its limit.
    """
    data, _ = datasets.prepare()
    train, val = data.where("train"), data.where("val")
    images, targets = train.images, train.targets
    mean, std = float(images.mean() / 255), float(images.std() / 255)
    some = np.random.default_rng(0).permutation(len(train))[:10_000]
    asked = val.images[:2_000], val.targets[:2_000]

    def make_network() -> Encoder:
        return ConvNet(images.shape[1], images.shape[2], mean=mean, std=std)

    def validate(network: Encoder) -> dict[str, float]:
        vectors, gallery = network.encode(asked[0]), network.encode(images[some])
        return metrics.evaluate(vectors, asked[1], gallery, targets[some], ks=(1,), knn=1, nearest_only=True).means()

    config = TrainConfig(epochs=2, learning_rate=3e-3, margin=MARGIN, average=0.98, validate_every=20)
    with tempfile.TemporaryDirectory() as folder:
        ours = fit(make_network, images, targets, config, validate, Path(folder)).validations.to_dict("records")
    torch.manual_seed(0)
    network = make_network()
    usual = train_the_usual_way(network, RandomTriplets(images, targets, network.prepare), validate)
    contenders = [_outcome("rectrio", ours), _outcome("random triplets, DataLoader, three passes, float32", usual)]
    return {
        "setting": {
            "target": f"recall@1 {TARGET_RECALL} on {len(asked[0])} validation pictures among {len(some)}",
            "data": data.source,
            "stand_in": data.stand_in,
            "parameters": sum(p.numel() for p in network.parameters()),
            "threads": torch.get_num_threads(),
        },
        "contenders": contenders,
        "ratio": round(contenders[1]["seconds"] / contenders[0]["seconds"], 2) if contenders[0]["reached"] else None,
    }


def _outcome(name: str, curve: list[dict]) -> dict:
    """The first validation that reached the target, or the last one."""
    row = next((r for r in curve if r["recall_at_1"] >= TARGET_RECALL), curve[-1])
    found = {
        "seconds": round(row["seconds"], 1),
        "steps": int(row["step"]),
        "recall_at_1": round(row["recall_at_1"], 4),
    }
    return {"name": name, **found, "reached": row["recall_at_1"] >= TARGET_RECALL}


def print_bench(outcome: dict) -> None:
    """Print what a benchmark measured as a table, and the ratio."""
    from rectrio_lib.reports import plain_table

    for name, value in outcome["setting"].items():
        print(f"{name}: {value}")
    print(plain_table(outcome["contenders"]))
    bound = "" if outcome["contenders"][1]["reached"] else "more than "
    print("target not reached" if outcome["ratio"] is None else f"ratio: {bound}{outcome['ratio']} times faster")
