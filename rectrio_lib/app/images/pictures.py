"""Images as browsers show them: small squares for the grid, and a larger view; always re-encoded, without metadata."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from rectrio_lib.core.errors import DataError, MissingArtefactError
from rectrio_lib.data.dataset import load_dataset
from rectrio_lib.data.decoding import UnreadableError, decode, reason_of
from rectrio_lib.search.collection import Collection

THUMBNAIL_SIDE, VIEW_SIDE = 256, 1600
JPEG_QUALITY = {THUMBNAIL_SIDE: 80, VIEW_SIDE: 88}
KEPT = 4000  # thumbnails in memory, some 10 kB each
PLACE = ("image_id", "path", "uploaded")  # what leads from a record to its pixels


class Pictures:
    """The pixels behind a collection: files of its folder, uploads, or rows of a data set.

    Args:
        collection: whose images.
        uploads: folder of the uploaded ones.
    """

    def __init__(self, collection: Collection, uploads: Path):
        self.collection, self.uploads, self._dataset = collection, uploads, None
        self._small = lru_cache(KEPT)(self._thumbnail)

    def thumbnail(self, record: dict) -> bytes:
        """Return the middle square of an image as JPEG."""
        return self._small(*(record[key] for key in PLACE))

    def _thumbnail(self, *place: str | bool) -> bytes:
        return self._jpeg(dict(zip(PLACE, place, strict=True)), THUMBNAIL_SIDE)

    def view(self, record: dict) -> bytes:
        """Return a whole image as JPEG, at most 1,600 pixels wide and high."""
        return self._jpeg(record, VIEW_SIDE)

    def pixels(self, record: dict, size: int, channels: int = 3) -> np.ndarray:
        """Return the middle square of an image as every encoder sees it, uint8 (channels, size, size).

        Raises:
            DataError: if it cannot be read.
        """
        if not (file := self._file(record)):
            side = Image.fromarray(self._row(record)).resize((size, size), Image.Resampling.BICUBIC)
            return np.atleast_3d(np.asarray(side.convert("L" if channels == 1 else "RGB"))).transpose(2, 0, 1)
        read = decode(file, size, channels)
        if isinstance(read, str):
            raise DataError(f"{record['path']} cannot be read: {read}")
        return read[0]

    def _jpeg(self, record: dict, side: int) -> bytes:
        written, upright = BytesIO(), []
        if not (file := self._file(record)):
            image = Image.fromarray(self._row(record))
            image = image.resize((side, side), Image.Resampling.NEAREST) if max(image.size) < side else image
        elif side == THUMBNAIL_SIDE:
            image = Image.fromarray(self.pixels(record, side).transpose(1, 2, 0))
        else:
            read = decode(file, side // 2, 3, upright.append)  # which reduces a large JPEG to `side` or more
            if isinstance(read, str):
                raise DataError(f"{record['path']} cannot be read: {read}")
            image = upright[0]
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.convert("RGB").save(written, "JPEG", quality=JPEG_QUALITY[side])
        return written.getvalue()

    def _file(self, record: dict) -> Path | BinaryIO | None:
        """Return where an image lies, or its content if that is not on this machine; None if a data set holds it."""
        if record["uploaded"]:
            file = self.uploads / record["path"]
        elif not record["path"]:
            return None
        elif (place := self.collection.images_place()) and self.collection.folder:
            file = self.collection.folder / record["path"]
        else:
            try:
                return place.open(record["path"])
            except FileNotFoundError as error:
                raise MissingArtefactError(f"The file {record['path']} of this image is gone.") from error
            except (OSError, UnreadableError) as error:
                raise DataError(f"{record['path']} cannot be read: {reason_of(error)}.") from error
        if not file.is_file():
            raise MissingArtefactError(f"The file {record['path']} of this image is gone.")
        return file

    def _row(self, record: dict) -> np.ndarray:
        """Return an image of the data set that the index was made from, uint8 (H, W) or (H, W, 3)."""
        if self._dataset is None:
            name = self.collection.made_from.get("dataset")
            if not name:
                raise MissingArtefactError("The images of this collection are not files, and its data set is unknown.")
            dataset = load_dataset(name, self.collection.workspace)
            self._dataset = dataset.pixels, dict(dataset.manifest[["image_id", "row"]].itertuples(index=False))
        pixels, places = self._dataset
        if record["image_id"] not in places:
            raise MissingArtefactError("This image is no longer in its data set.")
        return pixels[places[record["image_id"]]].transpose(1, 2, 0).squeeze()
