"""What fine-tuning costs: pictures a second and peak memory, by phase, precision and checkpointing."""

from __future__ import annotations

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import torch

from rectrio_lib.losses import make_loss
from rectrio_lib.networks import best_device, best_precision
from rectrio_lib.pretrained import Pretrained

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def bench_finetune(backbone: str = "clip:ViT-B/32", batch_size: int = 32, blocks: int = 4, steps: int = 4) -> dict:
    """Encode and fine-tune with random weights and random pictures: speed and memory do not depend on them.

    Each line is measured in a process of its own, after one step that is not counted, so that its peak is its own.

    Args:
        backbone: see `backbones`.
        batch_size: pictures a step, over all ten classes.
        blocks: how many of the last blocks are trained.
        steps: how many steps are measured.

    Returns:
        {"setting", "lines": [{"what", "precision", "pictures a second", "times fp32", "peak MB"}]}; the peak is that of
        the whole process, or on a GPU that of its memory.
    """
    device = best_device()
    fast = {"no": []}.get(best_precision(device), [best_precision(device)])
    whats = ("features", "phase 2", "phase 2, checkpointing")
    lines = []
    for what, precision in product(whats, ["fp32", *fast]):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            speed, peak = fresh.submit(_measure, backbone, batch_size, blocks, steps, what, precision).result()
        plain = next((line["pictures a second"] for line in lines if line["what"] == what), speed)
        times = round(speed / plain, 2)
        lines.append({"what": what, "precision": precision, "pictures a second": round(speed, 1), "times fp32": times})
        lines[-1]["peak MB"] = round(peak)
    setting = {"backbone": backbone, "batch": batch_size, "blocks": blocks, "weights": "random", "device": device}
    return {"setting": {**setting, "threads": torch.get_num_threads()}, "lines": lines}


def _measure(backbone: str, batch_size: int, blocks: int, steps: int, what: str, precision: str) -> tuple[float, float]:
    """Return pictures a second and the peak of memory in MB."""
    device = best_device()
    network = Pretrained(backbone, dim=128).to(device)
    network.backbone.free(blocks)
    network.backbone.set_checkpointing("checkpointing" in what)
    side = network.preprocessing["size"]
    images = torch.randint(256, (batch_size, 3, side, side), dtype=torch.uint8, device=device)
    targets = torch.arange(batch_size, device=device) % 10
    loss, optimizer = make_loss("soft-margin", 0.5), torch.optim.AdamW(network.parameters())
    autocast = torch.autocast(device, DTYPES[precision], enabled=precision != "fp32")

    def step() -> None:
        with autocast, torch.inference_mode(what == "features"):
            vectors = network.train(what != "features")(network.prepare(images))
        if what != "features":
            loss(vectors, targets, 0.0).backward()
            optimizer.step()
            optimizer.zero_grad()

    step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return steps * batch_size / (time.perf_counter() - started), _peak_megabytes(device)


def _peak_megabytes(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def print_finetune(outcome: dict) -> None:
    """Print what `bench_finetune` measured as a table."""
    from rectrio_lib.reports import plain_table

    print(", ".join(f"{name} {value}" for name, value in outcome["setting"].items()))
    print(plain_table(outcome["lines"]))
