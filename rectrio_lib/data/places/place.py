"""What every place of images can do, whether it is a folder of this machine or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import pandas as pd

from rectrio_lib.core.files import expanded, is_folder
from rectrio_lib.data import image_files
from rectrio_lib.data.places import archives


class Place(Protocol):
    """Where images lie, named by paths with slashes; small, and may be pickled: another process opens the same images.

    It holds no credentials: each process takes them from its own environment.

    Attributes:
        uri: the folder, or the address; what cards call `folder`.
        name: of a collection of these images, unless another one is given.
        near: whether it is on this machine, so that reading keeps processors busy, and not a network.
    """

    uri: str
    name: str
    near: bool

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
    """Return the place that a folder, an address, or an archive, or a pattern of archives, names.

    A folder of this machine without images, but with archives, is a place of these. A place is returned as it is.

    Raises:
        ArgumentError: if an address holds a key or a password.
    """
    if not isinstance(source, str | Path):
        return source
    path = expanded(str(source).removeprefix("file://"))
    if (far := is_address(source) and not source.startswith("file://")) or _names_archives(path.resolve()):
        from rectrio_lib.data.places.remote import RemotePlace

        return RemotePlace(source if far else path.resolve().as_posix())
    from rectrio_lib.data.places.local import LocalFolder

    return LocalFolder(path.resolve())


def is_address(source: str | Path) -> bool:
    """Tell whether this is an address such as s3://shop/photos, not a path."""
    return isinstance(source, str) and "://" in source


def is_another(then: str, now: str) -> bool:
    """Tell whether a place, by its `uri`, is another one than now and still there; "" are images that are no files.

    A place of this machine that is gone may have moved; archives in one folder may have become more.
    """
    names = archives.is_pattern(then) and archives.is_pattern(now)
    if then == now or (names and then.rpartition("/")[0] == now.rpartition("/")[0]):
        return False
    return not then or place_of(then).there()


def _names_archives(path: Path) -> bool:
    if not is_folder(path):
        return archives.is_pattern(path.name)
    return next(image_files.walk_images(path), None) is None and any(
        archives.is_archive(file.name) for file in path.rglob("*.*")
    )
