"""What OpenVINO gains: milliseconds of one picture and of many at once, against torch."""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F

from rectrio_lib import openvino_ir
from rectrio_lib.networks import Encoder
from rectrio_lib.openvino_ir import Tower
from rectrio_lib.pretrained import Pretrained

ONE, MANY = "one picture, ms", "32 at once, ms"
COUNTS = {ONE: 1, MANY: 32}
PASSES = {ONE: 5, MANY: 1}  # a round
ROUNDS = 9
BF16 = "torch bf16"


def bench_openvino(backbone: str = "clip:ViT-B/32") -> dict:
    """Encode prepared pictures with a network of full size and random weights: speed does not depend on them.

    All contenders run on the processor with as many threads as torch, and take turns in every round, each after a pass
    that is not counted.

    Args:
        backbone: see `backbones`.

    Returns:
        {"setting", "lines": [{"what", ONE, MANY, "of torch fp32", "cosine"}]}: medians over the rounds; the time of one
        picture as a share of torch's in float32 (0.5 is twice as fast); the least cosine similarity to its vectors.

    Raises:
        ValueError: if the backbone is unknown.
        ModuleNotFoundError: if openvino or nncf is not installed.
    """
    openvino, _ = openvino_ir.package("openvino"), openvino_ir.package("nncf")  # said now, not after a minute
    encoder = Pretrained(backbone).eval()
    side = encoder.preprocessing["size"]
    pixels = np.random.default_rng(0).integers(0, 256, (COUNTS[MANY], 3, side, side), dtype=np.uint8)
    images = encoder.prepare(torch.from_numpy(pixels))
    towers = _contenders(encoder, images)
    rounds = [{what: _round(what, tower, images) for what, tower in towers.items()} for _ in range(ROUNDS)]
    lines: list[dict] = []
    for what, tower in towers.items():
        line = {name: round(1000 * float(np.median([r[what][name] for r in rounds])), 2) for name in COUNTS}
        share = round(line[ONE] / (lines[0] if lines else line)[ONE], 3)
        lines.append({"what": what, **line, "of torch fp32": share, "cosine": _cosine(what, tower, encoder, images)})
    setting = {"backbone": backbone, "weights": "random", "rounds": ROUNDS, "threads": torch.get_num_threads()}
    return {"setting": {**setting, "openvino": openvino.__version__, "torch": torch.__version__}, "lines": lines}


def _contenders(encoder: Encoder, images: torch.Tensor) -> dict[str, Tower]:
    """Return what is measured, by name; torch in float32 comes first. int8 is calibrated on the pictures."""
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model, quantised = (openvino_ir.convert(encoder, images, precision) for precision in ("fp32", "int8"))
    return {
        "torch fp32": encoder,
        BF16: encoder,
        "OpenVINO fp32": openvino_ir.compiled(model, "fp32", **threads),
        "OpenVINO bf16": openvino_ir.compiled(model, "fp16", INFERENCE_PRECISION_HINT="bf16", **threads),
        "OpenVINO int8": openvino_ir.compiled(quantised, "int8", **threads),
    }


def _precision(what: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=what == BF16)


@torch.inference_mode()
def _round(what: str, tower: Tower, images: torch.Tensor) -> dict[str, float]:
    """Return seconds a pass, by the names of COUNTS."""
    seconds = {}
    with _precision(what):  # around all passes, so that the weights are cast once
        for name, count in COUNTS.items():
            tower(images[:count])
            started = time.perf_counter()
            for _ in range(PASSES[name]):
                tower(images[:count])
            seconds[name] = (time.perf_counter() - started) / PASSES[name]
    return seconds


@torch.inference_mode()
def _cosine(what: str, tower: Tower, encoder: Encoder, images: torch.Tensor) -> float:
    right = encoder(images)
    with _precision(what):
        return round(float(F.cosine_similarity(right, tower(images).float()).min()), 4)


def print_openvino(outcome: dict) -> None:
    """Print what `bench_openvino` measured as a table, and the ratio."""
    from rectrio_lib.reports import plain_table

    print(", ".join(f"{name} {value}" for name, value in outcome["setting"].items()))
    print(plain_table(outcome["lines"]))
    best = min((line for line in outcome["lines"] if "OpenVINO" in line["what"]), key=lambda line: line[ONE])
    print(f"ratio: {best['what']} takes {best['of torch fp32']} of the time of torch fp32 for one picture")
