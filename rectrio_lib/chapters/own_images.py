"""Your own folder of images: train if it has classes, index, report."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rectrio_lib.chapters import chapter, runner
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import dataset, image_files
from rectrio_lib.data.places.local import LocalFolder
from rectrio_lib.data.places.place import Place
from rectrio_lib.report.page import write_page
from rectrio_lib.search import building
from rectrio_lib.search.changes import trained_size
from rectrio_lib.search.collection import Collection

LOG = logging.getLogger(__name__)
CHAPTER = "03"
FEWEST = 10  # images of a class that is worth training on
TRAINED_SHARE = 0.4  # of the images are surely left for one batch: test, validation, near copies and a fold go first


def train(folder: str | Path, name: str = "", rows: pd.DataFrame | None = None, **parameters: Any) -> str:
    """Train an encoder on class folders of images: chapter 03, run strictly by papermill.

    Args:
        folder: FOLDER/<class>/… or FOLDER/{train,val,test}/<class>/….
        name: of the data set; empty: that of the folder.
        rows: its distinct, readable images, with label and split; None finds them by embedding the folder.
        **parameters: of chapter 03, such as epochs=10; else 128 pixels a side (CLIP: 224), and fitting batches.

    Returns:
        The name of the encoder, <name>-tuned.

    Raises:
        ArgumentError: if there is nothing to train on, or a parameter is unknown.
        ChapterError: if the chapter fails; the message says why and where to look.
    """
    place, name = building.place_and_name(folder, name)
    (training_chapter,) = chapter.select_chapters([CHAPTER])
    backbone = parameters.get("backbone", building.BACKBONE)
    rows = building.embed(place, backbone, name)[0].select() if rows is None else rows
    if reason := why_untrained(rows, place):
        raise ArgumentError(f"{place.uri} cannot be trained on: {reason}.")
    training = rows[rows["label"].ne("") & ~rows["split"].isin(["val", "test"])]
    batch = min(training_chapter.parameters["batch_size"], max(3, int(TRAINED_SHARE * len(training))))
    size, resolution = trained_size(backbone)
    chosen = {"size": size, "resolution": resolution, "batch_size": batch, "backbone": backbone, "dataset": name}
    chosen |= {"folder": place.uri, "encoder": f"{name}-tuned", **parameters}
    runner.run_chapters([training_chapter], None, chosen)
    return chosen["encoder"]


def why_untrained(rows: pd.DataFrame, place: Place | None = None) -> str:
    """Say why no encoder can be trained on distinct, readable images with these labels; empty if one can."""
    if place is not None and not isinstance(place, LocalFolder):
        return "training needs the images themselves in a folder of this machine"
    counts = rows["label"][rows["label"].ne("")].value_counts()
    if counts.empty:
        return "the images lie in no class folders"
    if len(counts) == 1:
        return f"there is only one class folder, {counts.index[0]}"
    if counts.min() < 2:
        return f"class {counts.idxmin()} has a single image"
    if (counts >= FEWEST).sum() < 2:
        return f"only {(counts >= FEWEST).sum()} of the {len(counts)} classes have {FEWEST} images or more"
    return ""


def run_folder(
    folder: str | Path,
    name: str = "",
    parameters: Mapping[str, Any] | None = None,
    allow_random_weights: bool = False,
) -> Path:
    """Check and embed a folder of images, train on it if it has classes, build an index, and write a report.

    Args:
        folder: of images, in class folders or not.
        name: of all that comes of it; empty: that of the folder.
        parameters: of chapter 03, if there is something to train on; `backbone` counts in any case.
        allow_random_weights: see `building.embed`.

    Returns:
        The page, outputs/reports/<name>/index.html.

    Raises:
        ArgumentError: if there are parameters, but nothing to train on, or the name belongs to another folder.
        MissingArtefactError: if there are class folders, but no chapter to train with.
        ChapterError: as `train`.
    """
    parameters = dict(parameters or {})
    fixed = {"dataset", "folder", "encoder", "name"} & parameters.keys()
    if fixed:
        raise ArgumentError(f"{', '.join(sorted(fixed))}: follows from the folder and its name, do not set it here.")
    place, name = building.place_and_name(folder, name)
    building.refuse_other_images(place, name, Workspace())
    backbone = parameters.get("backbone", building.BACKBONE)
    if isinstance(place, LocalFolder) and not why_untrained(image_files.describe(place.list()["path"]), place):
        chapter.chapter_paths()  # an installed package has none: said now, not after an hour of embedding
    frozen, report = building.embed(place, backbone, name, allow_random_weights=allow_random_weights)
    LOG.info("Checked    %s", report)
    reason, executed = why_untrained(frozen.select(), place), None
    if reason and parameters.keys() - {"backbone"}:
        raise ArgumentError(f"{', '.join(parameters)}: nothing is trained here, because {reason}.")
    if reason:
        decision = f"Nothing was trained, because {reason}: this is {backbone} as it was pretrained."
        shop = Collection.build(place, backbone, name, allow_random_weights=allow_random_weights)
    else:
        decision = f"The images lie in class folders: chapter {CHAPTER} trained {backbone} on them."
        encoder = train(place.uri, name, frozen.select(), **parameters)
        if not _was_better(encoder):
            decision += " It was not better on validation images, so the index has the backbone as it was pretrained."
        manifest = dataset.load_dataset(name).manifest
        shop = Collection.build(place, encoder, name, manifest=manifest, allow_random_weights=allow_random_weights)
        report = shop.report
        LOG.info("Embedded   %s", report)
        executed = next((Workspace().outputs / "notebooks").glob(f"{CHAPTER}_*.ipynb"), None)
    LOG.info("Encoder    %s. %s\nIndex      %s", shop.encoder_name, decision, shop.index.info())
    page = write_page(shop, frozen, report, decision)
    if executed:
        shutil.copy(executed, page.parent)
    return page


def _was_better(encoder: str) -> bool:
    """Tell whether the chapter saved a trained encoder under this name, not the frozen backbone."""
    cards = Workspace().cards("encoders")
    before, after = (cards.get(name, {}).get("hash") for name in (f"{encoder}-frozen", encoder))
    return before is None or before != after
