"""A small collection of drawn photographs, and the application that serves it."""

import json
import shutil
from pathlib import Path

import pandas as pd
from PIL import Image
from starlette.testclient import TestClient

from makers.folders import save_classes, save_photographs
from makers.images import written
from rectrio_lib.app.application import create_app
from rectrio_lib.app.records.database import open_database
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.registry import save_encoder
from rectrio_lib.search.collection import Collection


def build_collection(root: Path, each=6, kind="auto", name="pixels", encoder=None, **columns) -> Collection:
    """Cats and dogs, with a table beside them: price 0, 10, 20, …, every second one on sale, and more columns."""
    folder = save_classes(root / "photos", each)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    table = {"file_name": names, "price": [10.0 * number for number in range(len(names))]}
    table["tags"] = ["summer; sale" if number % 2 else "summer" for number in range(len(names))]
    pd.DataFrame(table | columns).to_csv(folder / "metadata.csv", index=False)
    workspace = Workspace(root)
    save_encoder(encoder or RawPixels(3, 8), name, workspace=workspace)
    return Collection.build(folder, name, "photos", kind, workspace=workspace)


def copied(template: Path, root: Path) -> Collection:
    """Return a copy of a built collection that may be changed."""
    shutil.copytree(template, root, dirs_exist_ok=True)
    return Collection.open("photos", root / "photos", Workspace(root))


def application(collection: Collection, **options):
    """The application on SQLite, for clients of this machine."""
    return create_app(collection, open_database(workspace=collection.workspace), **options)


def client(app) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 50_000))


def new_images(folder: Path, *numbers: int) -> list:
    """Photographs that are not in the collection, as the parts of an upload."""
    save_photographs(folder, numbers, suffix="png")
    return [("files", (f"{number:02}.png", (folder / f"{number:02}.png").read_bytes())) for number in numbers]


def said(**metadata) -> dict:
    return {"metadata": json.dumps(metadata)}


def png(image: Image.Image) -> bytes:
    return written(image, "PNG")
