"""Your own folder of images: train if it has classes, index, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.data import dataset, image_files
from rectrio_lib.report.page import write_page
from rectrio_lib.search import collection
from rectrio_lib.search.collection import BACKBONE, _named

LOG = logging.getLogger(__name__)
CHAPTER = "03"
TRAINED_SIDE = 128  # pixels: a compromise between what a backbone sees and how long training takes on a processor


def train(folder: str | Path, name: str = "", **parameters: Any) -> str:
    """Train an encoder on class folders of pictures: chapter 03, run strictly by papermill.

    Args:
        folder: FOLDER/<class>/… or FOLDER/{train,val,test}/<class>/….
        name: of the data set; empty: that of the folder.
        **parameters: of chapter 03, such as backbone="clip:ViT-B/32" or epochs=10. Without, pictures are kept and seen
            at 128 pixels a side (CLIP: 224), and small folders get small batches.

    Returns:
        The name of the encoder, <name>-tuned.

    Raises:
        ValueError: if there is no picture, or a parameter is unknown.
        running.ChapterError: if the chapter fails; the message says why and where to look.
    """
    from rectrio_lib.chapters import runner
    from rectrio_lib.chapters.chapter import select_chapters  # slow to import, and needed by nothing else here

    folder, name = _named(folder, name)
    (chapter,) = select_chapters([CHAPTER])
    clip = parameters.get("backbone", BACKBONE).startswith("clip:")
    chosen = {"size": 224, "resolution": 0} if clip else {"size": TRAINED_SIDE, "resolution": TRAINED_SIDE}
    third = len(image_files.list_images(folder)) // 3  # what is left of a class without test, validation and a fold
    chosen |= {"batch_size": min(chapter.parameters["batch_size"], max(3, third)), "backbone": BACKBONE}
    chosen |= {"dataset": name, "folder": str(folder), "encoder": f"{name}-tuned", **parameters}
    runner.run_chapters([chapter], None, chosen)
    return chosen["encoder"]


FEWEST = 10  # pictures of a class that is worth training on


def why_untrained(rows: pd.DataFrame) -> str:
    """Say why no encoder can be trained on pictures; empty if one can.

    Args:
        rows: the readable, different pictures, with `label`, empty where a picture lies in no class folder.
    """
    counts = rows["label"][rows["label"].ne("")].value_counts()
    if counts.empty:
        return "the pictures lie in no class folders"
    if len(counts) == 1:
        return f"there is one class folder only, {counts.index[0]}"
    if counts.min() < 2:
        return f"class {counts.idxmin()} has a single picture"
    if (counts >= FEWEST).sum() < 2:
        return f"only {(counts >= FEWEST).sum()} of the {len(counts)} classes have {FEWEST} pictures or more"
    return ""


def run_folder(folder: str | Path, name: str = "", parameters: Mapping[str, Any] | None = None) -> Path:
    """Check and embed a folder of pictures, train on it if it has classes, build an index, and write a report.

    Each step tells what it found in a printed line.

    Args:
        folder: of pictures, in class folders or not.
        name: of all that comes of it; empty: that of the folder.
        parameters: of chapter 03, if there is something to train on; `backbone` counts in any case.

    Returns:
        The page, outputs/reports/<name>/index.html.

    Raises:
        ValueError: if there are parameters, but nothing to train on; and as `collection.build` and `own_images.train`.
        OSError: as `collection.build`.
        running.ChapterError: as `own_images.train`.
    """
    parameters = dict(parameters or {})
    fixed = {"dataset", "folder", "encoder", "name"} & parameters.keys()
    if fixed:
        raise ArgumentError(
            f"{', '.join(sorted(fixed))}: follows from the folder and its name, and is no parameter here."
        )
    backbone = parameters.get("backbone", collection.BACKBONE)
    seen, report = collection.embed(folder, backbone, name)
    LOG.info("Checked    %s", report)
    name, reason = seen.card["dataset"], why_untrained(seen.select())
    if reason and parameters.keys() - {"backbone"}:
        raise ArgumentError(f"{', '.join(parameters)}: nothing is trained here, for {reason}.")
    if reason:
        decision = f"Nothing was trained, for {reason}: this is {backbone} as it was pretrained."
        gallery, _ = collection.build(folder, backbone, name)
    else:
        decision = f"The pictures lie in class folders: chapter {CHAPTER} trained {backbone} on them."
        encoder = train(folder, name, **parameters)
        gallery, report = collection.build(folder, encoder, name, manifest=dataset.load_dataset(name).manifest)
        LOG.info("Embedded   %s", report)
    LOG.info("Encoder    %s. %s\nIndex      %s", gallery.encoder, decision, gallery.index.info())
    return write_page(gallery, seen, report, decision)
