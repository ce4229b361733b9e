"""Adding images to a saved index, removing them, and training its encoder, seen by every process at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.files import expanded
from rectrio_lib.core.workspace import Card, Workspace
from rectrio_lib.data import image_files
from rectrio_lib.data.places.place import is_address
from rectrio_lib.embeddings.writer import writing
from rectrio_lib.index.opening import open_index
from rectrio_lib.search.options import listed
from rectrio_lib.search.searcher import Searcher

if TYPE_CHECKING:  # PyTorch is imported when something is trained, not before
    from rectrio_lib.search.ranking.calibration import Calibration
    from rectrio_lib.training.fine_tuning import FineTuned

LOG = logging.getLogger(__name__)
BATCH = 128  # images that `add` encodes at once
TRAINED_SIDE = 128  # pixels of a torchvision network: a compromise between what it sees and how long training takes


def trained_size(backbone: str) -> tuple[int, int]:
    """Return the side to which images are cut for training, and that to which the backbone scales them, 0: its own."""
    alone = backbone.startswith("torchvision:") and "+" not in backbone
    return (TRAINED_SIDE, TRAINED_SIDE) if alone else (224, 0)


class Changeable(Searcher):
    """A searcher whose index lies in a workspace under a name, and can be changed there; see `Collection`."""

    name: str
    made_from: Card
    folder: Path | None
    workspace: Workspace

    def __repr__(self) -> str:
        return f"{self.name}: {self.index.info()}; encoder {self.made_from.get('encoder') or 'unknown'}"

    def add(self, images: str | Path | Sequence[str | Path]) -> int:
        """Embed image files that are not in the collection yet, and save it; another process sees them at once.

        Args:
            images: files, or a folder; in class folders they get labels. The next `build` follows its own folder alone.

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
        for image in listed("images", images):
            if is_address(image):
                raise ArgumentError(f"{image} cannot be added, only files of this machine: `build` takes addresses.")
            place = expanded(str(image)).resolve()
            home, paths = place.parent, [place.name]
            if place.is_dir():
                home, paths = place, image_files.list_images(place)["path"]
            for file in map(home.joinpath, paths):
                files.append((self.folder if self.folder and file.is_relative_to(self.folder) else home, file))
        paths = [file.relative_to(home).as_posix() for home, file in files]
        named = [p if home == self.folder else file.as_posix() for p, (home, file) in zip(paths, files, strict=True)]
        return image_files.describe(paths).assign(file=[str(file) for _, file in files], path=named)

    def remove(self, images: str | Sequence[str]) -> None:
        """Take images out, by image_id or path, and save; the next `build` takes in what still lies in the folder.

        Raises:
            ArgumentError: if one of them is not in the collection, or was uploaded to its service; none is removed.
            StoreInUseError: if another process is changing the collection.
        """
        names = listed("images", images)
        with self._changing():
            place = self.positions(names)
            absent = [name for name in names if name not in place]
            if absent:
                raise ArgumentError(f"{len(absent)} of {len(names)} images are not in the index, such as {absent[0]}.")
            rows = self.index.rows.iloc[sorted({place[name] for name in names})]
            for image_id in rows["image_id"][rows.get("uploaded", pd.Series(False, rows.index)).eq(True)]:
                how = f"delete it on its page, or by DELETE /images/{image_id}"
                raise ArgumentError(f"{image_id} was uploaded to the service, which would bring it back: {how}.")
            self.index.remove(rows["image_id"].tolist())

    def train(self, backbone: str = "", **options: int) -> FineTuned:
        """Fine-tune a pretrained backbone on the class folders, and rebuild the index if validation images rank better.

        The encoder is saved as <name>-tuned; where it is not better, collection and index stay as they are.

        Args:
            backbone: such as "clip:ViT-B/32"; empty: that of the encoder, or else `building.BACKBONE`.
            **options: epochs, blocks and seed, see `fine_tuning.fine_tune`.

        Returns:
            Encoders, their validation figures, and which is best, see `FineTuned`.

        Raises:
            ArgumentError: if the images are not files.
            DataError: if the folder is gone, or has too few classes or images.
            MissingArtefactError: if there are no pretrained weights.
        """
        from rectrio_lib.data.dataset import prepare
        from rectrio_lib.encoders.pretrained import load_pretrained
        from rectrio_lib.encoders.registry import save_encoder
        from rectrio_lib.search import building, provenance
        from rectrio_lib.training.fine_tuning import FROZEN, fine_tune

        place, tuned = {"workspace": self.workspace}, f"{self.name}-tuned"
        card = self.workspace.cards("encoders").get(self.encoder_name, {})
        backbone = backbone or provenance.backbone_of(card) or building.BACKBONE
        building.saved_encoder(backbone, self.random_weights, self.workspace)  # refuses random weights
        size, resolution = trained_size(backbone)
        folder, sides = str(self.images_folder()), {"val_fraction": 1 / 8}
        data, _ = prepare(self.name, "folder", folder, size, 3, **sides, **place)
        frozen = load_pretrained(backbone, size, resolution, **place)
        checkpoints = self.workspace.outputs / "checkpoints" / tuned
        run = fine_tune(frozen, data, checkpoints, **options, **place)
        shown = ", ".join(f"{name} {figures['map_at_r']:.3f}" for name, figures in run.figures.items())
        if run.best == FROZEN:
            LOG.info("Training was not better on validation images (mAP@R: %s): %s stays as it is.", shown, self.name)
            return run
        LOG.info("Validation images rank best after %s (mAP@R: %s), saved as %s.", run.best, shown, tuned)
        save_encoder(frozen, f"{tuned}-frozen", **place)
        save_encoder(run.encoders[run.best], tuned, run.data.hash, options.get("seed", 0), **place)
        again = type(self).build(self.place, tuned, self.name, manifest=run.data.manifest, **place)
        self.__dict__.clear()  # the old encoder and what its scores mean among it
        self.__dict__.update(again.__dict__)
        return run

    @cached_property
    def calibration(self) -> Calibration | None:
        """What scores mean here, if it was learned, see `calibrate`."""
        from rectrio_lib.search.ranking import calibration

        return calibration.saved(self)

    def calibrate(self) -> Calibration:
        """Learn from the labels, or else from altered copies of images, how probable it is that a result is right.

        It is saved with the index; from then on results have a `probability`, and `sure=0.9` ends them.

        Raises:
            ArgumentError: if there are neither labels nor enough images.
        """
        from rectrio_lib.search.ranking import calibration

        self.calibration = calibration.of_collection(self)
        return self.calibration

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the index as it is on disk now, and save it if the block ends without an error."""
        with writing(self.workspace.path("indexes", self.name)):
            before = self.index
            self.index = open_index(self.name, self.workspace)
            try:
                if self.index.encoder_hash != before.encoder_hash:  # built again by another process
                    for made in ("encoder", "calibration"):
                        self.__dict__.pop(made, None)
                    self.made_from = self.index.made_from
                yield
                self.index.save(self.name, self.workspace)
            except BaseException:
                self.index = before
                raise
