"""A folder of this machine as a place of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from rectrio_lib.core.files import is_folder
from rectrio_lib.data import image_files
from rectrio_lib.data.decoding import open_regular
from rectrio_lib.data.places import tables


@dataclass(frozen=True)
class LocalFolder:
    """The image files below a folder; see `place.Place`."""

    folder: Path
    near = True

    @property
    def uri(self) -> str:
        """Its full path."""
        return str(self.folder)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    def list(self, exclude: Iterable[Path] = (), known: pd.DataFrame | None = None) -> pd.DataFrame:
        """List the image files, see `image_files.list_images`."""
        return image_files.list_images(self.folder, exclude)

    def open(self, path: str) -> BinaryIO:
        """Open a file, if it is a regular one."""
        return open_regular(self.folder / path)

    def tables(self, paths: Iterable[str]) -> Iterator[pd.DataFrame]:
        """Yield metadata.csv and metadata.parquet of the folder and of those below it that hold images."""
        beside = [self.folder / name for name in tables.names_beside(paths)]
        for file in filter(os.path.isfile, beside):  # which is False in a folder that may not be entered
            home = file.parent.relative_to(self.folder).as_posix()
            yield tables.read_table(file, file, "" if home == "." else f"{home}/")

    def there(self) -> bool:
        """Tell whether the folder is there."""
        return is_folder(self.folder)

    def address(self, path: str) -> str:
        """Return the file:// address of a file."""
        return (self.folder / path).as_uri()
