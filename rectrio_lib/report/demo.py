"""A first look without training: some products, an index of them, and a page of questions and answers."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pandas as pd
from PIL import Image

from rectrio_lib.core import files
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import catalog, synthetic
from rectrio_lib.data.products import match_names
from rectrio_lib.embeddings.store import open_store
from rectrio_lib.report import page
from rectrio_lib.search import collection
from rectrio_lib.search.collection import Collection

LOG = logging.getLogger(__name__)
NAME = "demo"
DATASET = "products"
MOST = 60  # products: seconds on any processor
DRAWN, VIEWS, SIDE = 6, 4, 128  # objects of each shape, pictures of each object, pixels


def run_demo() -> Path:
    """Build an index of a few products with the pretrained backbone, and write a page of what it finds.

    The products are copied to outputs/demo/, a folder each; where there are none, generated drawings take their place.
    What was embedded by an earlier call is not embedded again.

    Returns:
        The page, outputs/reports/demo/index.html.

    Raises:
        ValueError: as `Collection.build`.
        OSError: if outputs cannot be written.
    """
    home, folder = catalog.home_of(DATASET), Workspace().outputs / NAME
    with files.replaced_folder(folder) as fresh:
        drawn = not copy_products(home, fresh)
        if drawn:
            save_drawings(fresh)
    missing = f"STAND-IN: {home} holds no product photographs, so these are generated drawings"
    where = missing if drawn else f"Some products from {home}"
    told = f"{where}. Nothing was trained: this is {collection.BACKBONE} as it was pretrained."
    LOG.warning(told) if drawn else LOG.info(told)
    gallery = Collection.build(folder, collection.BACKBONE, NAME, allow_random_weights=True)
    return page.write_page(gallery, open_store(gallery.encoder_name, NAME), gallery.report, told, drawn)


def copy_products(home: Path, folder: Path) -> int:
    """Copy the views of some products, evenly chosen among all, to FOLDER/<product>/<view>.<suffix>.

    Returns:
        How many products there were to copy: 0 to 60.
    """
    rows = pd.DataFrame(match_names(home, catalog.pattern_of(DATASET))[0], columns=["path", "label", "view"])
    several = rows.groupby("label").filter(lambda views: len(views) > 1)
    chosen = several["label"].unique()[:: max(1, -(-several["label"].nunique() // MOST))]
    for path, product, view in rows[rows["label"].isin(chosen)].itertuples(index=False):
        place = folder / product.replace("/", " ")
        place.mkdir(exist_ok=True)
        shutil.copyfile(home / path, place / f"{view}{Path(path).suffix}")
    return len(chosen)


def save_drawings(folder: Path) -> None:
    """Draw objects in several views, and save them as FOLDER/<object>/<view>.png."""
    pixels, frame = synthetic.draw_shapes(DRAWN, VIEWS, SIDE, channels=3)
    for picture, product, view in zip(pixels, frame["object"], frame["view"], strict=True):
        (folder / product).mkdir(exist_ok=True)
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / product / f"{view}.png")
