"""A folder of images that can be searched: built, opened, changed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import image_files
from rectrio_lib.embeddings.writer import writing
from rectrio_lib.index import factory
from rectrio_lib.index.index import Index
from rectrio_lib.search import building, provenance
from rectrio_lib.search.searcher import Searcher

if TYPE_CHECKING:  # PyTorch is imported when something is embedded, not before
    from rectrio_lib.embeddings.embed import Report
    from rectrio_lib.embeddings.store import EmbeddingStore
    from rectrio_lib.encoders.base import Encoder

LOG = logging.getLogger(__name__)
BACKBONE = "torchvision:squeezenet1_0"  # five megabytes, and quick on any processor
BATCH = 128  # images that `add` encodes at once


class Collection(Searcher):
    """A saved index with what belongs to it; `search` takes files, arrays, image_ids, paths and texts.

    Attributes:
        name: of the index, below outputs/indexes/.
        index: what is searched.
        made_from: what the index card says of encoder, store and data set, see `Index`.
        folder: of the images; None if they are not files.
        report: what the last `build` or `add` found; None before.
        workspace: where all of it lives.
    """

    def __init__(self, name: str, index: Index, folder: str | Path | None = None, workspace: Workspace | None = None):
        super().__init__(index)
        self.name, self.workspace, self.report = name, workspace or Workspace(), None
        card = {"made_from": index.made_from, "encoder_hash": index.encoder_hash}
        self.made_from = provenance.of_index(name, card, self.workspace)
        home = folder or self.made_from.get("folder")
        self.folder = Path(home).expanduser().resolve() if home else None

    @classmethod
    def open(cls, name: str = "", folder: str | Path | None = None, workspace: Workspace | None = None) -> Collection:
        """Open a saved collection.

        Args:
            name: of the collection; empty: the only one there is.
            folder: where its images are now, if they have moved.
            workspace: where to look; None: `Workspace()`.

        Raises:
            MissingArtefactError: if there is none of that name, or none at all.
            ArgumentError: if there are several, and none is named.
            DataError: if its files are damaged.
        """
        workspace = workspace or Workspace()
        names = list(workspace.cards("indexes"))
        if not names:
            raise MissingArtefactError("There is no index yet: build one with `rectrio index FOLDER`.")
        if name and name not in names:
            raise MissingArtefactError(f"There is no index {name!r}: choose one of {', '.join(names)}.")
        if not name and len(names) > 1:
            raise ArgumentError(f"There are several indexes: name one of {', '.join(names)}.")
        return cls(name or names[0], Index.load(name or names[0], workspace), folder, workspace)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        encoder: str = "",
        name: str = "",
        kind: str = "auto",
        recall: float = 0.95,
        manifest: pd.DataFrame | None = None,
        allow_random_weights: bool = False,
        workspace: Workspace | None = None,
    ) -> Collection:
        """Embed what is new in a folder of images, and build and save an index of exactly these, unless it is there.

        Args:
            folder: of images, in class folders or not.
            encoder: see `embed`.
            name: of the collection; empty: that of the folder.
            kind: of the index, see `Index.build`.
            recall: share of the true ten nearest neighbours that a search should find, in (0, 1].
            manifest: see `from_folder.embed_folder`.
            allow_random_weights: see `embed`.
            workspace: where to keep it; None: `Workspace()`.

        Returns:
            The collection; its `report` says what happened.

        Raises:
            ArgumentError: if an argument is out of range, or the name belongs to other images; and as `embed`.
        """
        workspace, (folder, name) = workspace or Workspace(), building.folder_and_name(folder, name)
        factory.candidates(kind, 1, 0)  # said now, not after an hour of embedding
        if not 0 < recall <= 1:
            raise ArgumentError(f"recall={recall} should be above 0 and at most 1.")
        building.refuse_other_images(folder, name, workspace)
        store, report = embed(folder, encoder, name, manifest, allow_random_weights, workspace)
        report.seconds["indexing"] = 0.0
        with report.timed("indexing"), writing(workspace.path("indexes", name)):
            made_from = provenance.of_store(store)
            index = building.current_index(name, store, kind, recall, workspace)
            if index is None:
                vectors, rows, made_by = store.vectors(), store.select(), store.card["encoder_hash"]
                index = Index.build(kind, vectors, rows, made_by, recall, made_from=made_from)
                index.save(name, workspace)
            elif index.made_from != made_from:  # an index of an older version
                index.made_from = made_from
                index.save(name, workspace)
        collection = cls.open(name, workspace=workspace)
        collection.report = report
        return collection

    def _load_encoder(self) -> tuple[Encoder, str]:
        from rectrio_lib.encoders.registry import load_encoder

        name = self.encoder_name
        try:
            card = self.workspace.cards("encoders").get(name, {})
            if card.get("hash") != self.index.encoder_hash:
                raise MissingArtefactError("it was trained anew" if card else "it is gone")
            return load_encoder(name, **building.place(self.workspace)), card[
                "hash"
            ]  # which checks its weights against the card
        except (MissingArtefactError, DataError) as error:
            command = provenance.command(name, card, self.folder)
            raise MissingArtefactError(
                f"The encoder {name} of index {self.name} cannot be used: {error}. `{command}` makes it; image_ids can "
                "be searched for without it."
            ) from error

    @property
    def encoder_name(self) -> str:
        """Name of the encoder that made the index, below outputs/encoders/; empty if unknown."""
        return self.made_from.get("encoder", "")

    @property
    def random_weights(self) -> bool:
        """Whether the vectors come from random weights, so that results mean nothing."""
        return bool(self.made_from.get("random_weights"))

    @property
    def generated_images(self) -> bool:
        """Whether the images are generated drawings."""
        return bool(self.made_from.get("generated_images"))

    @property
    def stand_in(self) -> bool:
        """Whether random weights or generated images stood in."""
        return self.random_weights or self.generated_images

    def info(self) -> dict[str, Any]:
        """Return what the collection holds, as one row of a table."""
        exact, measured = self.index.kind == "flat", self.index.recall
        return {
            "name": self.name,
            "images": len(self.index),
            "kind": self.index.kind,
            "recall": "exact" if exact else "not measured" if measured is None else measured,
            "encoder": self.encoder_name or "unknown",
            "stand-in": provenance.stand_in(self.made_from),
            "folder": str(self.folder or ""),
            "columns": ", ".join(map(str, self.index.rows.columns)),
        }

    def add(self, images: str | Path | Sequence[str | Path]) -> int:
        """Embed image files that are not in the collection yet, and save it; another process sees them at once.

        The next `build` follows the folder alone: what was added from elsewhere must be added again.

        Args:
            images: files, or a folder; in class folders they get labels.

        Returns:
            How many were added; `report` lists what was left out.

        Raises:
            DataError: if a folder holds no image.
            StoreInUseError: if another process is changing the collection.
        """
        from rectrio_lib.embeddings.embed import Report

        files, left_out, fresh = self._described(images), [], []
        with self._changing():
            known, wanted = set(self.index.rows["image_id"][~self.index.removed]), self.encoder.preprocessing
            sizes = wanted["size"], wanted["channels"]
            for number, read in enumerate(image_files.read_ahead(Path(), files["file"], *sizes, known, 2 * BATCH)):
                if read.reason or read.image_id in known:
                    left_out.append((read.path, read.reason or "copy of an image of the collection"))
                else:
                    known.add(read.image_id)
                    fresh.append((number, read))
                if len(fresh) == BATCH:
                    self._append(files, fresh)
                    fresh = []
            self._append(files, fresh)
        ledger, bad = image_files.make_ledger(left_out), sum(not reason.startswith("copy of") for _, reason in left_out)
        added = len(files) - len(left_out)
        self.report = Report(len(files), added, len(left_out) - bad, bad, ledger=ledger)
        return added

    def _append(self, files: pd.DataFrame, fresh: list[tuple[int, image_files.ImageFile]]) -> None:
        if fresh:
            rows = files.iloc[[number for number, _ in fresh]].assign(image_id=[read.image_id for _, read in fresh])
            rows[["width", "height"]] = [read.shape for _, read in fresh]
            vectors = self.encoder.encode(np.stack([read.pixels for _, read in fresh]))
            self.index.add(vectors, rows.reindex(columns=self.index.rows.columns))

    def _described(self, images: str | Path | Sequence[str | Path]) -> pd.DataFrame:
        """Return one row per file to add: file, path as in the rows, label and split from the folders it lies in."""
        files = []
        for image in [images] if isinstance(images, str | Path) else images:
            place = Path(image).expanduser().resolve()
            paths = image_files.list_images(place)["path"] if place.is_dir() else [place.name]
            files += [(place if place.is_dir() else place.parent, path) for path in paths]
        if self.folder is not None:
            own = [(home / path).is_relative_to(self.folder) for home, path in files]
            files = [
                (self.folder, (home / path).relative_to(self.folder).as_posix()) if inside else (home, path)
                for inside, (home, path) in zip(own, files, strict=True)
            ]
        frame = image_files.describe([path for _, path in files])
        frame["file"] = [str(home / path) for home, path in files]
        return frame.assign(path=[p if home == self.folder else (home / p).as_posix() for home, p in files])

    def remove(self, images: str | Sequence[str]) -> None:
        """Take images out, by image_id or path, and save the collection; their files stay.

        The next `build` takes in again what still lies in the folder.

        Raises:
            ArgumentError: if one of them is not in the collection; then none is removed.
            StoreInUseError: if another process is changing the collection.
        """
        names = [images] if isinstance(images, str) else list(images)
        with self._changing():
            place = self.positions(names)
            absent = [name for name in names if name not in place]
            if absent:
                raise ArgumentError(f"{len(absent)} of {len(names)} images are not in the index, such as {absent[0]}.")
            self.index.remove(self.index.rows["image_id"].iloc[sorted({place[name] for name in names})].tolist())

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the index as it is on disk now, and save it if the block ends without an error."""
        with writing(self.workspace.path("indexes", self.name)):
            before = self.index
            self.index = Index.load(self.name, self.workspace)
            try:
                if self.index.encoder_hash != before.encoder_hash:  # built again by another process
                    self.__dict__.pop("encoder", None)
                    self.made_from = self.index.made_from
                yield
                self.index.save(self.name, self.workspace)
            except BaseException:
                self.index = before
                raise

    def positions(self, names: Sequence[str]) -> dict[str, int]:
        """Return where images lie in `index.rows`, by image_id or path; copies by any of their paths."""
        found = super().positions(names)
        others = [name for name in names if name not in found]
        table = self.workspace.path("embeddings", self.made_from.get("store") or "none") / "files.parquet"
        if others and table.is_file():
            files = pd.read_parquet(table, columns=["path", "image_id"]).set_index("path")["image_id"]
            copies = {name: files[name] for name in others if name in files.index}
            places = super().positions(list(copies.values()))
            found |= {name: places[image_id] for name, image_id in copies.items() if image_id in places}
        return found

    def own_id(self, file: Path) -> str:
        """Return the image_id of a file below the folder, by its content, if it is in the index; else nothing."""
        if self.folder is None or not file.resolve().is_relative_to(self.folder):
            return ""
        known = set(self.index.rows["image_id"])
        read = image_files.read_image(file.parent, file.name, 1, 1, known)
        return read.image_id if read.image_id in known else ""

    def row(self, image: str) -> pd.Series:
        """Return the metadata of an image of the collection, by image_id or path.

        Raises:
            ArgumentError: if it is not there.
        """
        place = self.positions([image])
        if image not in place:
            raise ArgumentError(f"{image} is not an image_id or path of an image in {self.name}.")
        return self.index.rows.iloc[place[image]]

    def file(self, image: str | Path) -> Path:
        """Return the file of an image: itself, or where an image of the collection lies.

        Raises:
            ArgumentError: if it is neither, or the images are not files.
        """
        path = Path(image).expanduser()
        return path if path.is_file() else self.images_folder() / self.row(str(image))["path"]

    def images_folder(self) -> Path:
        """Return the folder of the images, which must be there.

        Raises:
            DataError: if it is gone, or the images are not files.
        """
        if self.folder is None:
            raise DataError(f"The images of {self.name} are not files: name the folder that holds them (--folder DIR).")
        if not self.folder.is_dir():
            raise DataError(f"{self.folder} is gone: where are the images of {self.name} now (--folder DIR)?")
        return self.folder


def embed(
    folder: str | Path,
    encoder: str = "",
    name: str = "",
    manifest: pd.DataFrame | None = None,
    allow_random_weights: bool = True,
    workspace: Workspace | None = None,
) -> tuple[EmbeddingStore, Report]:
    """Embed what is new in a folder of images; what was left out is listed in ledger.csv of the store.

    Args:
        folder: of images, in class folders or not.
        encoder: name of a saved encoder, or a pretrained backbone such as "clip:ViT-B/32", which is saved; empty: what
            made the index of that name, else BACKBONE.
        name: of the images; empty: that of the folder.
        manifest: see `from_folder.embed_folder`.
        allow_random_weights: whether random weights may stand in for a backbone whose weights are not there.
        workspace: where to keep it; None: `Workspace()`.

    Returns:
        The store, and what happened.

    Raises:
        ArgumentError: if there is no such encoder, or the name belongs to other images.
        DataError: if there is no readable image.
        MissingArtefactError: if the weights are random, and should not be.
        StorageError: if the store cannot be written, or is being written by another process.
    """
    from rectrio_lib.embeddings.from_folder import embed_folder
    from rectrio_lib.encoders.registry import load_encoder

    workspace, (folder, name) = workspace or Workspace(), building.folder_and_name(folder, name)
    encoder = building.saved_encoder(
        encoder or building.usual_encoder(name, BACKBONE, workspace), allow_random_weights, workspace
    )
    place = building.place(workspace)
    store, report = embed_folder(load_encoder(encoder, **place), encoder, folder, name, manifest, **place)
    ledger = store.folder / "ledger.csv"
    report.ledger.to_csv(ledger, index=False)
    if not len(store):
        first = report.ledger.iloc[0]
        raise DataError(f"{folder} holds no readable image: {first['picture']}: {first['reason']} (all: {ledger}).")
    return store, report
