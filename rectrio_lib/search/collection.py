"""A folder of images that can be searched: built, opened, changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd

from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError, needing
from rectrio_lib.core.files import file_at
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import image_files
from rectrio_lib.data.places.place import Place, place_of
from rectrio_lib.embeddings.store import files_of
from rectrio_lib.embeddings.writer import writing
from rectrio_lib.index.base import VectorIndex
from rectrio_lib.index.opening import open_index
from rectrio_lib.search import building, provenance
from rectrio_lib.search.changes import Changeable
from rectrio_lib.search.options import Options, among, copies_of
from rectrio_lib.search.searcher import normal

if TYPE_CHECKING:  # PyTorch is imported when something is embedded, not before
    from rectrio_lib.app.server import NotebookService
    from rectrio_lib.encoders.base import Encoder


class Collection(Changeable):
    """A saved index with what belongs to it; `search` takes files, arrays, image_ids, paths and texts.

    Attributes:
        name: of the index, below outputs/indexes/.
        index: what is searched.
        made_from: what the index card says of encoder, store and data set, see `Index`.
        place: of the images; None if they are not files.
        report: what the last `build` or `add` found; None before.
        workspace: where all of it lives.
    """

    def __init__(
        self, name: str, index: VectorIndex, folder: str | Path | None = None, workspace: Workspace | None = None
    ):
        super().__init__(index)
        self.name, self.workspace, self.report = name, workspace or Workspace(), None
        card = {"made_from": index.made_from, "encoder_hash": index.encoder_hash}
        self.made_from = provenance.of_index(name, card, self.workspace)
        home = folder or self.made_from.get("folder")
        self.place = place_of(home) if home else None

    @classmethod
    def open(cls, name: str = "", folder: str | Path | None = None, workspace: Workspace | None = None) -> Collection:
        """Open a saved collection.

        Args:
            name: of the collection; empty: the only one there is.
            folder: where its images are now, if they have moved.
            workspace: where to look; None: `Workspace()`.

        Raises:
            RectrioError: if there is none of that name, there are several and none is named, or its files are damaged.
        """
        workspace = workspace or Workspace()
        name = building.chosen_index(name, workspace)
        return cls(name, open_index(name, workspace), folder, workspace)

    @classmethod
    def build(
        cls,
        folder: str | Path | Place,
        encoder: str = "",
        name: str = "",
        kind: str = "",
        recall: float | None = None,
        manifest: pd.DataFrame | None = None,
        allow_random_weights: bool = False,
        workspace: Workspace | None = None,
        vectors: str = "",
        memory_limit: int | str | None = None,
        ray: str = "",
        whiten: bool | int | str | None = None,
        mirror: bool | None = None,
    ) -> Collection:
        """Embed what is new in a folder of images, and build and save an index of exactly these, unless it is there.

        Args:
            folder: of images, in class folders or not; or an address or archives, see `embeddings.embed.embed`.
            encoder: see `building.embed`.
            name: of the collection; empty: that of the folder.
            kind: of the index, see `Index.build`; empty: as was asked for before, else "auto".
            recall: share of the true ten nearest neighbours to be found, in (0, 1]; None: as before, else 0.95.
            manifest: see `building.embed`.
            allow_random_weights: see `building.embed`.
            workspace: where to keep it; None: `Workspace()`.
            vectors: address of a server that keeps them, postgresql://… or http://… (Qdrant), where `kind` and `recall`
                do not count; "faiss": in the workspace; empty: where those of this name are, else in the workspace.
            memory_limit: of the index, see `Index.build`; None: as before; "none": no more.
            ray: see `building.embed`.
            whiten: weigh all directions of the vectors alike, those of queries, too: True, a number of dimensions,
                or "auto" if labels say that it helps, see `whitening.whiten`; None: as the index of this name, if no
                encoder is named, else False. It helps to find the very same thing, and harms classes.
            mirror: see `building.embed`.

        Returns:
            The collection; its `report` says what happened.

        Raises:
            ArgumentError: if an argument is out of range, or the name belongs to other images; and as `building.embed`.
        """
        workspace, (place, name) = workspace or Workspace(), building.place_and_name(folder, name)
        asked = building.asked_for(name, kind, recall, memory_limit, workspace)  # refused now, not after an hour
        vectors = building.server_of(vectors, name, workspace)
        building.refuse_other_images(place, name, workspace)
        whiten = (not encoder and building.usual_whitening(name, workspace)) if whiten is None else whiten
        store, report = building.embed(place, encoder, name, manifest, allow_random_weights, workspace, ray, mirror)
        report.seconds["indexing"] = 0.0
        with report.timed("indexing"), writing(workspace.path("indexes", name)):
            building.bring_up_to_date(name, store, asked, workspace, vectors, memory_limit, whiten)
        collection = cls.open(name, workspace=workspace)
        collection.report = report
        return collection

    def _load_encoder(self) -> tuple[Encoder, str]:
        from rectrio_lib.encoders.registry import load_encoder

        name = self.encoder_name
        try:
            card = self.workspace.cards("encoders").get(name, {})
            if card.get("hash") != self.index.encoder_hash:
                raise MissingArtefactError("it was trained again" if card else "it is gone")
            return load_encoder(name, self.workspace), card["hash"]  # which checks its weights against the card
        except (MissingArtefactError, DataError) as error:
            command = provenance.command(name, card, self.uri)
            raise MissingArtefactError(
                f"The encoder {name} of index {self.name} cannot be used: {error}. `{command}` makes it; image_ids can "
                "be searched for without it."
            ) from error

    @property
    def encoder_name(self) -> str:
        """Name of the encoder that made the index, below outputs/encoders/; empty if unknown."""
        return self.made_from.get("encoder", "")

    @property
    def folder(self) -> Path | None:
        """Folder of the images; None if they are not files of this machine, each for itself: see `place`."""
        return getattr(self.place, "folder", None)

    @property
    def uri(self) -> str:
        """Folder or address of the images, as text; empty if they are not files."""
        return self.place.uri if self.place else ""

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
            "whitening": self.made_from.get("whitening", {}).get("why", "none"),
            "stand-in": provenance.stand_in(self.made_from),
            "folder": self.uri,
            "columns": ", ".join(map(str, self.index.rows.columns)),
        }

    def serve(self, port: int = 0, height: int = 800) -> NotebookService:
        """Serve the collection from a thread of this process; in a notebook its page is shown below the cell.

        Args:
            port: to listen on, at 127.0.0.1; 0 takes any that is free.
            height: of the page in a notebook, in pixels.

        Raises:
            MissingPackageError: if the packages of the service are not installed.
        """
        return _service().NotebookService(self, port, height)

    def feedback(self) -> pd.DataFrame:
        """Return what people said of the images, on the page or over the API, oldest first.

        Returns:
            One row per judgement: image_id, kind (like, dislike, different or click), anchor (what it was compared
            with), owner ("local": who needs no key), created (UTC), path and label (missing if not in the index).

        Raises:
            MissingPackageError: if the packages of the service are not installed.
        """
        return _service().feedback(self)

    def positions(self, names: Sequence[str]) -> dict[str, int]:
        """Return where images lie in `index.rows`, by image_id or path; copies by any of their paths."""
        found = super().positions(names)
        others = {normal(name): name for name in names if name not in found}
        if others:
            copies = self._copies()
            copies = copies[copies["path"].map(normal).isin(others)]
            pairs = zip(copies["path"], copies["position"], strict=True)
            found |= {others[normal(path)]: int(at) for path, at in pairs}
        return found

    def _copies(self) -> pd.DataFrame:
        return copies_of(self.index, files_of(self.workspace.path("embeddings", self.made_from.get("store") or "none")))

    def _among(self, options: Options) -> tuple[Options, pd.DataFrame]:
        return among(self.index, self._copies(), options) if isinstance(options.where, str) else super()._among(options)

    def own_id(self, file: Path) -> str:
        """Return the image_id of a file below the folder, by its content, if it is in the index; else nothing."""
        if self.folder is None or not file.resolve().is_relative_to(self.folder):
            return ""
        known = set(self.index.rows["image_id"])
        read = image_files.read_image(file.parent, file.name, 1, 1, known)
        return read.image_id if read.image_id in known else ""

    def row(self, image: str) -> pd.Series:
        """Return the metadata of an image of the collection, by image_id or path."""
        place = self.positions([image])
        if image not in place:
            raise ArgumentError(f"{image} is not an image_id or path of an image in {self.name}.")
        return self.index.rows.iloc[place[image]]

    def located(self, image: str | Path) -> tuple[Path | Place, str]:
        """Return where an image lies, as `image_files.read_image` takes it: a file, or an image of the collection."""
        file = file_at(image)
        return (file.parent, file.name) if file else (self.images_place(), self.row(str(image))["path"])

    def images_place(self) -> Place:
        """Return the place of the images; refuse if it is gone, or they are not files."""
        if self.place is None:
            raise DataError(f"The images of {self.name} are not files: name the folder that holds them (--folder DIR).")
        if not self.place.there():
            raise DataError(f"{self.uri} is gone: where are the images of {self.name} now (--folder DIR)?")
        return self.place

    def images_folder(self) -> Path:
        """Return the folder of the images; refuse as `images_place`, and if it is none of this machine."""
        place = self.images_place()
        if self.folder is None:
            raise DataError(f"Training needs a folder of this machine: copy the images of {place.uri} to one.")
        return self.folder


def _service() -> ModuleType:
    with needing("The service", "app"):
        from rectrio_lib.app import server
    return server
