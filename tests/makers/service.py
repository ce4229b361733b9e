"""A small collection of drawn photographs, and the service that serves it."""

from pathlib import Path

import pandas as pd

from makers.folders import save_classes
from rectrio_lib.app.database import open_database
from rectrio_lib.app.routes import create_app
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.registry import save_encoder
from rectrio_lib.search.collection import Collection


def build_collection(root: Path, each: int = 6, kind: str = "flat") -> Collection:
    """Cats and dogs, with prices and tags from a table beside them."""
    folder = save_classes(root / "photos", each)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    table = {"file_name": names, "price": [10.0 * number for number in range(len(names))]}
    table["tags"] = ["summer; sale" if number % 2 else "summer" for number in range(len(names))]
    pd.DataFrame(table).to_csv(folder / "metadata.csv", index=False)
    workspace = Workspace(root)
    save_encoder(RawPixels(3, 8), "pixels", workspace=workspace)
    return Collection.build(folder, "pixels", "photos", kind, workspace=workspace)


def make_service(root: Path, each: int = 6, **options):
    """Return the application on SQLite, its clients being of this machine."""
    collection = build_collection(root, each)
    return create_app(collection, open_database(workspace=collection.workspace), **options)
