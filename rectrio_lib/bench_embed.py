"""Embedding measured: pictures from disk through `embed_folder`, against the bare forward pass of the same network."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from PIL import Image

from rectrio_lib import pictures
from rectrio_lib.embeddings import BATCH, STAGES, Report
from rectrio_lib.folders import embed_folder
from rectrio_lib.networks import Encoder, autocast, best_device, best_precision
from rectrio_lib.pretrained import Pretrained
from rectrio_lib.stores import EmbeddingStore

PHOTOGRAPH = (640, 480)
ROUNDS = 3


def bench_embed(backbone: str = "clip:ViT-B/32", count: int = 1024, folder: Path | None = None) -> dict:
    """Embed picture files, and pass the same pictures, decoded before, through the same network; in turn, three times.

    The network has its full size and random weights: speed does not depend on them. Every round embeds into a new
    store, in batches and precision of the forward pass. One pass of each before the first round is not counted.

    Args:
        backbone: see `backbones`.
        count: how many pictures, at most.
        folder: to take them from, sorted by path; None makes JPEG files of 640 x 480 pixels.

    Returns:
        {"setting", "contenders": [{name, seconds, pictures_per_second}], medians of the rounds; "ratio" of pictures a
        second, from disk to bare; "stages": their shares of the seconds from disk, "rest" being what no stage counts,
        most of it the fingerprint of the network; "limit": the largest of these; "second_run": {seconds, embedded} of
        the unchanged folder; "agreement": least cosine similarity of the two vectors of a picture}.

    Raises:
        ValueError: if the backbone is unknown, or there is no picture that can be read.
    """
    if count < 1:
        raise ValueError(f"count={count}: take 1 picture, or more.")
    encoder = Pretrained(backbone).eval()
    away = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with away as home, mock.patch.dict(os.environ, RECTRIO_OUTPUTS=home):
        place = Path(home, "pictures")
        place.mkdir()
        made = write_photographs(place, count) if folder is None else copy_pictures(Path(folder), place, count)
        store, _, _ = _embed(encoder, place, "first")
        if not len(store):
            raise ValueError(f"None of the {made} pictures in {folder} can be read.")
        paths, size = store.select()["path"], encoder.preprocessing["size"]
        images = np.stack([pictures.read_picture(place, path, size, 3).pixels for path in paths])
        vectors, _ = forward(encoder, images)
        rounds = pd.DataFrame([_round(encoder, place, images, f"round-{turn}") for turn in range(ROUNDS)])
        _, again, seconds = _embed(encoder, place, "first")
        agreement = float((store.vectors() * vectors).sum(1).min())
    device = best_device()
    source = f"{len(images):,}, " + ("generated, {} x {}".format(*PHOTOGRAPH) if folder is None else str(folder))
    setting = {"backbone": backbone, "weights": "random", "pictures": source, "batch": BATCH, "rounds": ROUNDS}
    setting |= {"device": device, "precision": best_precision(device), "threads": torch.get_num_threads()}
    second_run = {"seconds": round(seconds, 3), "embedded": again.embedded}
    return {"setting": setting, **_summary(rounds, len(images)), "second_run": second_run, "agreement": agreement}


def _round(encoder: Encoder, place: Path, images: np.ndarray, name: str) -> dict[str, float]:
    _, report, seconds = _embed(encoder, place, name)
    return {"disk": seconds, "memory": forward(encoder, images)[1], **report.seconds}


def _embed(encoder: Encoder, place: Path, name: str) -> tuple[EmbeddingStore, Report, float]:
    started = time.perf_counter()
    store, report = embed_folder(encoder, "bench", place, name)
    return store, report, time.perf_counter() - started


def forward(encoder: Encoder, images: np.ndarray) -> tuple[np.ndarray, float]:
    """Pass pictures uint8 (N, C, H, W) through a network; bring them to its input before the clock starts.

    Returns:
        Vectors float32 (N, dim), and seconds.
    """
    device, vectors, seconds = best_device(), [], 0.0
    encoder.to(device)
    with torch.inference_mode(), autocast(device):
        for start in range(0, len(images), BATCH):
            batch = encoder.prepare(torch.from_numpy(images[start : start + BATCH]).to(device))
            started = time.perf_counter()
            vectors.append(encoder(batch).float().cpu())
            seconds += time.perf_counter() - started
    return torch.cat(vectors).numpy(), seconds


def _summary(rounds: pd.DataFrame, count: int) -> dict:
    """Return contenders, ratio, stages and limit, from seconds a round: disk, memory, and those of the stages."""
    rows = []
    for name, column in (("rectrio, pictures from disk", "disk"), ("forward pass, pictures from memory", "memory")):
        seconds = round(float(rounds[column].median()), 4)
        rows.append({"name": name, "seconds": seconds, "pictures_per_second": round(count / seconds, 2)})
    ratio = round(rows[0]["pictures_per_second"] / rows[1]["pictures_per_second"], 3)
    stages = {stage: round(float(rounds[stage].sum() / rounds["disk"].sum()), 4) for stage in STAGES}
    stages["rest"] = round(1 - sum(stages.values()), 4)
    return {"contenders": rows, "ratio": ratio, "stages": stages, "limit": max(stages, key=stages.get)}


def write_photographs(folder: Path, count: int) -> int:
    """Write JPEG files of a photograph's size: large forms in soft colours, and fine grain. Returns their number."""
    width, height = PHOTOGRAPH
    for number in range(count):
        rng = np.random.default_rng(number)
        colours = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8))
        forms = np.asarray(colours.resize(PHOTOGRAPH, Image.Resampling.BICUBIC), np.float32)
        grain = 8 * rng.standard_normal((height, width, 1), np.float32)
        picture = Image.fromarray((forms + grain).clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{number:06}.jpg", quality=90)
    return count


def copy_pictures(source: Path, folder: Path, count: int) -> int:
    """Copy the first pictures below a folder into another one. Returns their number.

    Raises:
        readers.BadData: if there is no such folder, or no picture in it.
    """
    found = pictures.find_pictures(source)
    paths = found.loc[found["reason"].eq(""), "path"].tolist()[:count]
    for number, path in enumerate(paths):
        shutil.copyfile(source / path, folder / f"{number:06}{Path(path).suffix}")
    return len(paths)


def print_embed(outcome: dict) -> None:
    """Print what `bench_embed` measured as a table, and the ratio."""
    from rectrio_lib.reports import plain_table

    for name, value in outcome["setting"].items():
        print(f"{name}: {value}")
    print(plain_table(outcome["contenders"]))
    shares = ", ".join(f"{stage} {share:.0%}" for stage, share in outcome["stages"].items())
    print(f"ratio: {outcome['ratio']} of the bare forward pass ({shares}: {outcome['limit']} limits)")
    again = outcome["second_run"]
    print(f"second run over the unchanged folder: {again['seconds']} s, {again['embedded']} embedded")
