"""What every place of images can do, whether it is a folder of this machine or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import pandas as pd


class Place(Protocol):
    """Where images lie, named by paths with slashes; small, and may be pickled: another process opens the same images.

    It holds no credentials: each process takes them from its own environment.

    Attributes:
        uri: the folder, or the address; what cards call `folder`.
        name: of a collection of these images, unless another one is given.
    """

    uri: str
    name: str

    def list(self, exclude: Iterable[Path] = (), known: pd.DataFrame | None = None) -> pd.DataFrame:
        """List the images without decoding them: FILE_COLUMNS, see `image_files.list_images`.

        Args:
            exclude: folders to pass over.
            known: FILE_COLUMNS of an earlier, finished call, which spare the look into archives that did not change.

        Raises:
            DataError: if the place is not there, or holds no image.
        """

    def open(self, path: str) -> BinaryIO:
        """Open an image for reading, from any thread or process; OSError or UnreadableError says why it cannot be."""

    def tables(self, paths: Iterable[str]) -> Iterator[pd.DataFrame]:
        """Yield what tables say of the images, keyed by the column `path`; call it after `list`, with its paths."""

    def there(self) -> bool:
        """Tell whether the place can be reached now."""

    def address(self, path: str) -> str:
        """Return the address of an image, for links: file://…, s3://…"""


def place_of(source: str | Path | Place) -> Place:
    """Return the place that a path or an address names; a place is returned as it is."""
    from rectrio_lib.data.places.local import LocalFolder

    return LocalFolder(Path(source).expanduser().resolve()) if isinstance(source, str | Path) else source
