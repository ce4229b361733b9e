"""Any folder of pictures: train on it, build an index of it, search it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Card, Workspace
from rectrio_lib.index import factory

if TYPE_CHECKING:
    from rectrio_lib.embeddings.store import EmbeddingStore
import re
from dataclasses import dataclass, replace
from typing import Any

from rectrio_lib.core.errors import DataError
from rectrio_lib.embeddings import embed as conductor
from rectrio_lib.embeddings.embed import Report
from rectrio_lib.embeddings.store import EmbeddingStore
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.pretrained import load_pretrained
from rectrio_lib.encoders.registry import load_encoder, save_encoder
from rectrio_lib.index.index import Index
from rectrio_lib.search import searcher
from rectrio_lib.search.results import Results


def build_index(
    store: EmbeddingStore,
    kind: str = "auto",
    recall: float = 0.95,
    splits: Sequence[str] = (),
    memory_limit: int | None = None,
) -> Index:
    """Make an index of an embedding store, or of some of its splits; see `Index.build`."""
    vectors, rows = store.vectors(*splits), store.select(*splits)
    return Index.build(kind, vectors, rows, store.card["encoder_hash"], recall, memory_limit=memory_limit)


BACKBONE = "torchvision:squeezenet1_0"  # five megabytes, and quick on any processor
FORBIDDEN = r'[<>:"/\\|?*\x00-\x1f]|^\.|[ .]$|\.(new|old|part|lock)$'  # not in names of folders, or used by `resources`
LONGEST_NAME = 100
WITHOUT = 0.5  # weight of what an answer should do without: enough to turn away, too little to lead elsewhere


@dataclass(frozen=True)
class Collection:
    """An index, and what it takes to ask it with pictures.

    Attributes:
        name: of the index, below outputs/indexes/.
        index: where to search.
        encoder: name of the encoder that made it, below outputs/encoders/; empty if it is gone or was trained anew.
        folder: of the pictures; None if the index is of a data set without files.
        stand_in: whether random weights or drawn pictures stood in.
    """

    name: str
    index: Index
    encoder: str
    folder: Path | None
    stand_in: bool

    def load_encoder(self) -> Encoder:
        """Open the encoder that made the index.

        Raises:
            ValueError: if it is gone or was trained anew, or its files are damaged.
        """
        if not self.encoder:
            raise ArgumentError(
                f"Index {self.name} was built with encoder {self.index.encoder_hash}, which is gone or was trained "
                f"anew: build the index again, `rectrio index {self.folder or 'FOLDER'}`."
            )
        return load_encoder(self.encoder)

    def search(self, asked: str | Path | Sequence[str | Path], k: int = 10, **options: Any) -> Results:
        """Search the index; see the function `search`."""
        names = [str(one) for one in ([asked] if isinstance(asked, str | Path) else asked)]
        files = [path for path in (Path(name).expanduser() for name in names) if path.is_file()]
        if not names:
            raise ArgumentError("Nothing was asked: name a picture file, or a picture of the index.")
        if not files:
            found = searcher.search_ids(self.index, [self.row(name)["image_id"] for name in names], k, **options)
            return replace(found, query_ids=names if len(found) == len(names) else [" + ".join(names)])
        if len(files) < len(names):
            other = next(name for name in names if not Path(name).expanduser().is_file())
            raise ArgumentError(
                f"{other} is no file, but {files[0]} is: ask with files, or with pictures of the index."
            )
        known = self.index.encoder_hash  # by which the encoder was found
        return searcher.search_files(self.index, self.load_encoder(), files, k, known, **options)

    def search_words(
        self, pictures: Sequence[str], texts: Sequence[str], without: Sequence[str], k: int = 10, **options: Any
    ) -> Results:
        """Search with words: each text is a question; with pictures, or something to do without, all are one question.

        Args:
            pictures: files, or pictures of the index, which are read from their files; see `file`.
            texts: what to look for.
            without: what to turn away from.
            k: answers a question.
            **options: fields of `options.Options`.

        Raises:
            readers.BadData: if a picture cannot be read.
            ValueError: as `file`, `searcher.search_texts` and `searcher.search_mixed`.
        """
        encoder, known = self.load_encoder(), self.index.encoder_hash
        if not pictures and not without:
            return searcher.search_texts(self.index, encoder, texts, k, known, **options)
        wanted = [*map(self.file, pictures), *texts]
        parts = [(part, 1.0) for part in wanted] + [(text, -WITHOUT) for text in without]
        return searcher.search_mixed(self.index, encoder, parts, k, known, **options)

    def file(self, asked: str | Path) -> Path:
        """Return the file of a picture: itself, or where a picture of the index lies, asked for as in `row`.

        Raises:
            ValueError: if it is neither, or the pictures of the index are no files.
        """
        path = Path(asked).expanduser()
        if path.is_file():
            return path
        row = self.row(str(asked))
        if self.folder is None:
            raise ArgumentError(f"The pictures of index {self.name} lie in no folder: there are no files to read.")
        return self.folder / row["path"]

    def row(self, asked: str) -> pd.Series:
        """Return what is known of a picture of the index, asked for by image_id or by path below the folder.

        Raises:
            ValueError: if it is not in the index.
        """
        rows = self.index.rows
        same = rows["image_id"].eq(asked)
        if "path" in rows:
            same |= rows["path"].isin([asked, asked.replace("\\", "/")])
        if not same.any():
            raise ArgumentError(f"{asked} is no file, and no image_id or path of a picture in index {self.name}.")
        return rows[same].iloc[0]


def embed(
    folder: str | Path, encoder: str = "", name: str = "", manifest: pd.DataFrame | None = None
) -> tuple[EmbeddingStore, Report]:
    """Embed what is new in a folder of pictures; what was left out is listed in ledger.csv of the store.

    Args:
        folder: of pictures, sorted into folders or not.
        encoder: name of a saved encoder, or a pretrained backbone such as "clip:ViT-B/32", which is saved; empty: what
            made the index of that name, so that it stays as good as it was, else BACKBONE.
        name: of the pictures; empty: that of the folder.
        manifest: see `embeddings.embed.embed`.

    Returns:
        The store, and what happened; printed, one line.

    Raises:
        ValueError: if there is no readable picture, no such encoder, or the name belongs to other pictures.
        OSError: if the store cannot be written, or is being written by another process.
    """
    folder, name = _named(folder, name)
    encoder = _saved(encoder or _usual(name))
    store, report = conductor.embed(folder, encoder, name, manifest)
    ledger = store.folder / "ledger.csv"
    report.ledger.to_csv(ledger, index=False)
    if not len(store):
        first = report.ledger.iloc[0]
        raise DataError(f"{folder} holds no readable picture: {first['picture']}: {first['reason']} (all: {ledger}).")
    return store, report


def build(
    folder: str | Path,
    encoder: str = "",
    name: str = "",
    kind: str = "auto",
    recall: float = 0.95,
    manifest: pd.DataFrame | None = None,
) -> tuple[Collection, Report]:
    """Embed what is new in a folder of pictures, and build and save an index of it, unless nothing has changed.

    Args:
        folder: of pictures, sorted into folders or not.
        encoder: as for `embed`.
        name: of the index; empty: that of the folder.
        kind: of the index, see `index.Index.build`.
        recall: share of the true ten nearest neighbours to be found, in (0, 1].
        manifest: see `embeddings.embed.embed`.

    Returns:
        The gallery, ready to be searched, and what happened; printed, one line.

    Raises:
        ValueError: as `embed` and `index.Index.build`, or if an index of other pictures has that name.
        OSError: as `embed`.
    """
    folder, name = _named(folder, name)
    factory.candidates(kind, 1, 0)  # said now, not after an hour of embedding
    if not 0 < recall <= 1:
        raise ArgumentError(f"recall={recall} should be above 0 and at most 1.")
    _refuse_foreign(folder, name)
    store, report = embed(folder, encoder, name, manifest)
    report.seconds["indexing"] = 0.0
    with report.timed("indexing"):
        if not _is_current(name, store, kind, recall):
            build_index(store, kind, recall).save(name)
    return open_collection(name), report


def search(asked: str | Path | Sequence[str | Path], index: str = "", k: int = 10, **options: Any) -> Results:
    """Search an index.

    Args:
        asked: picture files, or pictures of the index by image_id or by path below its folder: these are no answers to
            themselves. A file that is there is always asked as a file.
        index: its name; empty: the only one there is.
        k: answers a picture.
        **options: fields of `options.Options`: where, minimum, distinct, mmr, expand, reciprocal, combine, ….

    Returns:
        The answers; `.frame()` gives a table.

    Raises:
        ValueError: if there is no such index or picture, the encoder of the index is gone, or k or an option does not
            fit.
    """
    return open_collection(index).search(asked, k, **options)


def open_collection(name: str = "") -> Collection:
    """Open a saved index with what belongs to it.

    Args:
        name: of the index; empty: the only one there is.

    Raises:
        ValueError: if there is none of that name, none at all, or none was named of several; or it is damaged.
    """
    names = list(Workspace().cards("indexes"))
    if not names:
        raise ArgumentError("There is no index yet: build one with `rectrio index FOLDER`.")
    if name not in names and (name or len(names) > 1):
        problem = f"There is no index {name!r}" if name else "There are several indexes, and none was named"
        raise ArgumentError(f"{problem}: choose one of {', '.join(names)}.")
    index = Index.load(name or names[0])
    store = store_of(name or names[0], index.encoder_hash)
    encoder, card = encoder_of(index.encoder_hash, store.get("encoder", ""))
    folder = Path(store["folder"]) if store.get("folder") else None
    stand_in = bool(store.get("stand_in") or card.get("stand_in"))
    return Collection(name or names[0], index, encoder, folder, stand_in)


def _usual(name: str) -> str:
    """Return the encoder of the index of that name; of a stand-in its backbone, whose weights may have come by now."""
    made = Workspace().cards("indexes").get(name, {}).get("encoder_hash", "")
    encoder, card = encoder_of(made, store_of(name, made).get("encoder", ""))
    if encoder and (card.get("trained_on") or not card.get("stand_in")):
        return encoder
    return card.get("arguments", {}).get("backbone", BACKBONE)


def _saved(encoder: str) -> str:
    """Return the name of a saved encoder; a pretrained backbone is saved first, once."""
    there = Workspace().cards("encoders")
    name = encoder.replace(":", "-").replace("/", "-")
    card, texts = there.get(name, {}), encoder.startswith("clip:")
    if ":" in encoder and (card.get("stand_in", True) or card.get("texts", False) != texts):  # an older CLIP had none
        save_encoder(load_pretrained(encoder, texts=texts), name)
    elif name not in there:
        known = f"there are {', '.join(there)}, and" if there else "there are none yet, but"
        raise ArgumentError(f"There is no encoder {encoder!r}: {known} pretrained backbones such as {BACKBONE}.")
    return name


def _named(folder: str | Path, name: str) -> tuple[Path, str]:
    """Return the whole path of a folder of pictures, and the name to file them under.

    Raises:
        BadData: if there is no such folder.
        ValueError: if the name cannot be that of a folder.
    """
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. It should hold pictures, in class folders or not.")
    name = name or folder.name
    if not name or len(name) > LONGEST_NAME or re.search(FORBIDDEN, name):
        raise ArgumentError(f"{name!r} cannot be the name of an index: give it a short and plain one (--name).")
    return folder, name


def _refuse_foreign(folder: Path, name: str) -> None:
    card = Workspace().cards("indexes").get(name, {})
    store = store_of(name, card.get("encoder_hash", ""))
    then = store.get("folder", "")
    if store and then != str(folder) and (not then or Path(then).is_dir()):
        owner = f"the pictures in {then}" if then else f"the data set {store['dataset']}"
        raise ArgumentError(f"The index {name} is of {owner}: give this one another name (--name).")


def _is_current(name: str, store: EmbeddingStore, kind: str, recall: float) -> bool:
    """Tell whether the saved index is of just these vectors, and as it was asked for."""
    if name not in Workspace().cards("indexes"):
        return False
    try:
        index = Index.load(name)
        same = index.rows.equals(store.select())
    except ValueError:  # damaged, or of another version: it will be replaced
        return False
    wanted = factory.candidates(kind, index.dim, len(store))[0]
    made = (index.encoder_hash, index.kind) == (store.card["encoder_hash"], wanted)
    return same and made and (index.recall or 0) >= recall


def store_of(index: str, encoder_hash: str) -> Card:
    """Return the card of the embedding store that an index was built from; empty if it is gone."""
    stores = Workspace().cards("embeddings").items()
    return next(
        (c for name, c in stores if c.get("encoder_hash") == encoder_hash and index in (name, c.get("dataset"))), {}
    )


def encoder_of(encoder_hash: str, likely: str = "") -> tuple[str, Card]:
    """Return name and card of the saved encoder with a fingerprint; both empty if there is none.

    Args:
        encoder_hash: the fingerprint.
        likely: name to prefer if several have it.
    """
    same = {name: card for name, card in Workspace().cards("encoders").items() if card.get("hash") == encoder_hash}
    name = likely if likely in same else next(iter(same), "")
    return name, same.get(name, {})
