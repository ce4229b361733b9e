"""What a saved index on a server is: a card with its address, without the password, and its name there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
import pandas as pd

from rectrio_lib.core import files
from rectrio_lib.core.errors import MissingArtefactError
from rectrio_lib.core.workspace import MADE_FROM, Workspace, read_card
from rectrio_lib.index import storage
from rectrio_lib.index.base import VectorIndex

VARIABLE = "RECTRIO_VECTORS"  # of the environment: the address with its password
SECRETS = ("password", "api_key")
SCHEMA = {"format": int, "kind": str, "dim": int, "encoder_hash": str, "url": str, "collection": str}
SCHEMA |= {"made_from?": MADE_FROM}


class ServerIndex:
    """What an index on any server shares: it is opened by its card, and its rows are read when they are asked for."""

    kind: str
    stores: str  # how, in words
    recall = None
    url: str
    collection: str

    @classmethod
    def load(cls, name: str | Path, workspace: Workspace | None = None) -> Self:
        """Open the collection of a card; the password comes from the environment, see `with_password`."""
        card = read_card(storage.folder_of(name, workspace) / "card.json", SCHEMA)
        return cls(with_password(card["url"]), card["collection"])

    def __len__(self) -> int:
        return self.count()

    def info(self) -> str:
        """Describe the index in one line."""
        return f"{self.kind}, {len(self):,} images, {self.stores}, {without_password(self.url)}"

    __repr__ = info

    def vectors_at(self, positions: np.ndarray) -> np.ndarray:
        """Return vectors at positions of any shape, float32 (..., dim), as they are stored; or IndexError."""
        positions = np.asarray(positions, np.int64)
        wanted, places = np.unique(positions.ravel(), return_inverse=True)
        found = self._vectors(wanted.tolist())
        if len(found) < len(wanted):
            raise IndexError(f"Positions {wanted.min()} to {wanted.max()}, but there are {len(self.rows)} rows.")
        return np.array(found, np.float32).reshape(-1, self.dim)[places].reshape(*positions.shape, self.dim)

    @property
    def rows(self) -> pd.DataFrame:
        """One row a vector, `image_id` among its columns, not to be changed; what others added is read when asked."""
        return self._read_table()[0]

    @property
    def removed(self) -> np.ndarray:
        """Which rows are removed, bool (N,), read-only."""
        return self._read_table()[1]


def without_password(url: str) -> str:
    """Return an address that may be stored and shown."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    name = "" if parts.scheme.startswith("http") else user.partition(":")[0]  # there it is a key
    kept = [(key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if key not in SECRETS]
    netloc = f"{name}@{host}" if name else host
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(kept, safe="/:,")))


def with_password(url: str) -> str:
    """Return an address as `RECTRIO_VECTORS` has it, if that is the same but for the password; else as it is."""
    given = os.environ.get(VARIABLE, "")
    return given if given and without_password(given) == without_password(url) else url


def no_collection(url: str, collection: str) -> MissingArtefactError:
    """Return the error of a collection that is not on its server."""
    command = f"rectrio index FOLDER --vectors {without_password(url)}"
    return MissingArtefactError(f"There is no collection {collection!r} on this server: `{command}` makes it.")


def write_card(index: VectorIndex, url: str, collection: str, name: str, workspace: Workspace | None) -> Path:
    """Write outputs/indexes/<name>/card.json, which tells where the vectors are; returns the folder."""
    folder = (workspace or Workspace()).path("indexes", name)
    card = {"format": storage.FORMAT, "kind": index.kind, "dim": index.dim, "encoder_hash": index.encoder_hash}
    card |= {"url": without_password(url), "collection": collection, "made_from": index.made_from}
    with files.replaced_folder(folder) as fresh:
        files.write_json(fresh / "card.json", card)
        storage.carry_over(folder, fresh, index.encoder_hash)
    return folder
