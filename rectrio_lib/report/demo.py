"""A first look without training: some products, an index of them, and a page of queries and results."""

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
from rectrio_lib.search import building, collection

LOG = logging.getLogger(__name__)
NAME = "demo"
DATASET = "products"
MOST = 60  # products: seconds on any processor
DRAWN, VIEWS, SIDE = 6, 4, 128  # objects of each shape, images of each object, pixels


def run_demo() -> Path:
    """Build an index of a few products, or drawings in outputs/demo/; write and return outputs/reports/demo/index.html.

    Nothing is embedded twice.
    """
    workspace = Workspace()
    home, folder = catalog.home_of(DATASET, "", workspace), workspace.outputs / NAME
    with files.replaced_folder(folder) as fresh:
        drawn = not copy_products(home, fresh)
        if drawn:
            save_drawings(fresh)
    missing = f"STAND-IN: {home} holds no product photographs, so these are generated drawings"
    source = missing if drawn else f"Some products from {home}"
    decision = f"{source}. Nothing was trained: this is {building.BACKBONE} as it was pretrained."
    LOG.log(logging.WARNING if drawn else logging.INFO, decision)
    shop = collection.Collection.build(folder, building.BACKBONE, NAME, allow_random_weights=True)
    if drawn:
        shop.index.made_from["generated_images"] = True  # which the page of the service says
        shop.index.save(NAME, workspace)
    return page.write_page(shop, open_store(shop.encoder_name, NAME), shop.report, decision, drawn)


def copy_products(home: Path, folder: Path) -> int:
    """Copy the views of up to 60 products, evenly chosen, to FOLDER/<product>/<view>.<suffix>; return how many."""
    if not home.is_dir():
        return 0
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
    for image, product, view in zip(pixels, frame["object"], frame["view"], strict=True):
        (folder / product).mkdir(exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / product / f"{view}.png")
    table = frame[["colour", "texture", "caption"]].assign(category=frame["label"])
    table.insert(0, "file_name", frame["object"] + "/" + frame["view"].astype(str) + ".png")
    table.to_csv(folder / "metadata.csv", index=False)
