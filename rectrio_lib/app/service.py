"""The service behind the routes: one collection, kept up to date with the database and with newly built indexes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import numpy as np
from sqlalchemy import Engine

from rectrio_lib.app import certainty, querying, upkeep
from rectrio_lib.app.generation import Generation, uploads_of
from rectrio_lib.app.images.uploads import (
    CleanImage,
    UploadError,
    Uploads,
    apart,
    check_image,
    display_name,
    read_query,
)
from rectrio_lib.app.records.database import ImageRow
from rectrio_lib.app.records.history import Searches
from rectrio_lib.app.records.judgements import Judgements
from rectrio_lib.app.records.saved import Saved
from rectrio_lib.app.schemas import Example, Metadata, SearchAnswer, SearchRequest, Uploaded
from rectrio_lib.app.web.metrics import SECONDS
from rectrio_lib.core.errors import ArgumentError, MissingArtefactError, RectrioError
from rectrio_lib.data.image_files import content_id
from rectrio_lib.index.live import Snapshot
from rectrio_lib.search.collection import Collection
from rectrio_lib.search.pipeline import weighted_mean
from rectrio_lib.search.searcher import WITHOUT

LOG = logging.getLogger(__name__)
SHOWN = 100  # results that the history keeps


class Service:
    """A served collection.

    SQL is the truth: a change is committed there first, and reaches the index by the sequence of changes, the same way
    whether this process made it or another one. See `catalogue` and `generation`.

    Args:
        collection: as opened.
        engine: see `database.open_database`.
        batch: largest number of queries encoded at once.
        threads: see `Generation`.

    Attributes:
        now: the present generation.
        cold: why nothing can be encoded; empty once the encoder is loaded.
    """

    def __init__(self, collection: Collection, engine: Engine, batch: int = 32, threads: int = 1):
        self.name, self.engine, self._folder = collection.name, engine, collection.uri
        self._encoding = batch, threads
        self.workspace, self.searches = collection.workspace, Searches(engine, collection.name)
        self.judgements, self.saved = Judgements(engine, collection.name), Saved(engine, collection.name)
        self.uploads = Uploads(uploads_of(collection))
        self._card = self.workspace.path("indexes", self.name) / "card.json"
        self._stamp, self._changing, self.cold = self._stamp_of_card(), asyncio.Lock(), "The encoder is being loaded."
        self.asked = 0  # queries so far
        self.now = Generation.of(collection, engine, *self._encoding)

    # --- queries

    async def search(self, request: SearchRequest, files: Sequence[bytes], owner: str) -> SearchAnswer:
        """Answer a query; the parts of it that are files refer to `files` by number.

        Raises:
            ArgumentError: if the query does not fit the collection.
            MissingArtefactError: if an image of the query is not in the collection.
            UploadError: if a file is no readable image.
            BusyError: if too many queries wait.
        """
        begun, now, self.asked = time.perf_counter(), self.now, self.asked + 1
        snapshot = now.live.current
        parts = [*request.like, *request.without]
        found = await asyncio.gather(*(self.vector_of(now, snapshot, part, files) for part in parts))
        # an uploaded file, unlike an id, may be its own result: so people see that it is in the collection
        own = [at for part, (_, at) in zip(parts, found, strict=True) if part.id is not None]
        query = _mixed(request, [vector for vector, _ in found]) if parts else None
        asked = request
        if not (request.sure is request.minimum_probability is None):
            request = await asyncio.to_thread(certainty.with_minimum, now, request)
        with SECONDS.labels("search").time():
            plain = query is not None and request.where is request.distinct is request.mmr is request.words is None
            call = now.quick if plain and request.sort == "score" else asyncio.to_thread
            results, total, more = await call(querying.search, snapshot, request, query, own)
        certainty.add_probabilities(now, request, results)
        reason = None
        if not (results or asked is request):
            reason = await asyncio.to_thread(certainty.reason, now, snapshot, asked, query, own)
        shown = [result.id for result in results[:SHOWN]]
        seconds, search = round(time.perf_counter() - begun, 4), None
        if (parts or request.words) and not request.offset:
            search = self.searches.record(owner, asked, shown, seconds, results[0].score if results else None)
        return SearchAnswer.model_construct(
            results=results, total=total, next=request.offset + request.k if more else None, search=search,
            reason=reason, seconds=seconds, random_weights=now.collection.random_weights,
        )  # fmt: skip

    async def vector_of(
        self, now: Generation, snapshot: Snapshot, part: Example, files: Sequence[bytes]
    ) -> tuple[np.ndarray, int]:
        """Return the vector of one part of a query, and its position if the collection holds it, else -1."""
        if part.text is not None:
            with SECONDS.labels("encode text").time():
                return await now.texts(part.text), -1
        if part.id is not None:
            name = part.id
        else:
            if part.file >= len(files):
                raise ArgumentError(f"The query speaks of file {part.file}, but {len(files)} came; they count from 0.")
            name = await asyncio.to_thread(content_id, files[part.file])
        place = snapshot.positions([name])
        if name in place:
            return (await now.quick(snapshot.vectors_at, np.array([place[name]])))[0], place[name]
        if part.id is not None:
            raise MissingArtefactError(f"There is no image {part.id} in this collection.")
        return await self._encode(now, files[part.file]), -1

    async def _encode(self, now: Generation, data: bytes) -> np.ndarray:
        with SECONDS.labels("decode").time():
            pixels = await apart(self._pixels, now, data)
        with SECONDS.labels("encode image").time():
            return await now.images(pixels)

    @staticmethod
    def _pixels(now: Generation, data: bytes) -> np.ndarray:
        wanted = now.encoder.preprocessing
        return read_query(data, wanted["size"], wanted["channels"])

    @property
    def texts(self) -> bool:
        """Whether words can be searched for."""
        card = self.workspace.cards("encoders").get(self.now.collection.encoder_name, {})
        return bool(card.get("texts"))

    # --- changes

    async def upload(
        self, files: Sequence[tuple[str, bytes]], said: Sequence[Metadata]
    ) -> tuple[list[Uploaded], list[UploadError]]:
        """Store images and make them findable; return what became of each, and why some were refused."""
        now = self.now
        outcomes = await asyncio.gather(
            *(self._accept(now, name, data) for name, data in files), return_exceptions=True
        )
        fresh: dict[str, tuple[CleanImage, np.ndarray, Metadata]] = {}
        answers, refusals = [], []
        for (name, _), outcome, metadata in zip(files, outcomes, said, strict=True):
            answer = Uploaded(name=display_name(name), status="known", id=None)
            if isinstance(outcome, UploadError):
                refusals.append(outcome)
                answer.status, answer.reason = "refused", str(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            elif isinstance(outcome, str):
                answer.id = outcome
            else:
                answer.id = outcome[0].image_id
                if answer.id not in fresh:
                    answer.status, fresh[answer.id] = "added", (*outcome, metadata)
            answers.append(answer)
        if fresh:
            await asyncio.to_thread(self._keep, now, list(fresh.values()))
            await self.catch_up()
        return answers, refusals

    async def _accept(self, now: Generation, name: str, data: bytes) -> str | tuple[CleanImage, np.ndarray]:
        """Return the id of an image that is there already, or a checked image with its vector."""
        known = await asyncio.to_thread(content_id, data)
        if now.live.current.positions([known]) and await asyncio.to_thread(now.catalogue.holds, known):
            return known
        clean = await apart(check_image, data, name)
        return clean, await self._encode(now, data)

    def _keep(self, now: Generation, images: Sequence[tuple[CleanImage, np.ndarray, Metadata]]) -> None:
        """Write files, then rows: killed in between, nothing is promised and a file lies about that nobody sees."""
        rows = []
        for clean, vector, said in images:
            values = said.model_dump(exclude_none=True)
            path = self.uploads.place(clean.image_id, clean.suffix).relative_to(self.uploads.folder).as_posix()
            rows.append(ImageRow(
                image_id=clean.image_id, path=path, uploaded=True,
                width=clean.width, height=clean.height, vector=vector.astype(np.float16).tobytes(),
                encoder_hash=now.collection.index.encoder_hash, **values,
            ))  # fmt: skip
        self.now.catalogue.add(rows, lambda: [self.uploads.save(clean) for clean, _, _ in images])

    async def change(self, image_id: str, said: Metadata) -> None:
        """Change what is said of an image; MissingArtefactError if it is not there."""
        values = said.model_dump(exclude_unset=True)
        if await asyncio.to_thread(self.now.catalogue.change, image_id, values) is None:
            raise MissingArtefactError(f"There is no image {image_id} in this collection.")
        await self.catch_up()

    async def remove(self, image_id: str) -> None:
        """Take an image out; an uploaded file is deleted, one of the folder stays. MissingArtefactError if absent."""
        row = await asyncio.to_thread(self.now.catalogue.remove, image_id)
        if row is None:
            raise MissingArtefactError(f"There is no image {image_id} in this collection.")
        await self.catch_up()
        if row.uploaded:
            delete = partial(self.uploads.delete, image_id)
            await asyncio.to_thread(self.now.catalogue.if_removed, image_id, delete)

    async def catch_up(self) -> None:
        """Let the index learn what changed in the database."""
        now = self.now
        if await asyncio.to_thread(now.catch_up):
            await self.reload(now)

    # --- new generations

    async def reload(self, before: Generation | None = None) -> None:
        """Open the collection as it is on disk now, beside the present one, and put it in its place.

        Args:
            before: the generation to replace; another task may have done so already. None: whichever serves.
        """
        async with self._changing:
            if before not in (None, self.now):
                return
            stamp, calibrated = self._stamp_of_card(), self.now.collection.calibration is not None
            opened = await asyncio.to_thread(Collection.open, self.name, self._folder, self.workspace)
            self.now, self._stamp = await asyncio.to_thread(Generation.of, opened, self.engine, *self._encoding), stamp
        if calibrated:  # what scores mean for another encoder is learned anew
            with suppress(RectrioError):
                await asyncio.to_thread(self.now.calibrate)

    async def reindex(self) -> None:
        """Build a new index of everything, beside the present one, and swap."""
        await asyncio.to_thread(upkeep.reindex, self.now)
        await self.reload()

    def rebuilt_elsewhere(self) -> bool:
        """Tell whether another process has replaced the index since it was opened, or changed it on its server."""
        return self._stamp_of_card() not in (None, self._stamp) or self.now.is_outdated

    def warm_up(self) -> None:
        """Load the encoder, which takes seconds; without it only images of the collection can be searched for."""
        try:
            self.now.encoder  # noqa: B018
            self.cold = ""
        except RectrioError as error:
            self.cold = str(error)
            LOG.warning("%s", error)

    def _stamp_of_card(self) -> tuple[int, int] | None:
        with suppress(OSError):
            found = self._card.stat()
            return found.st_mtime_ns, found.st_ino
        return None


def _mixed(request: SearchRequest, vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Join the vectors of what is wanted and what is not, in this order, to one query."""
    weights = [part.weight for part in request.like] + [WITHOUT * part.weight for part in request.without]
    if not request.like:  # what is least like the unwanted parts
        vectors, weights = [-vector for vector in vectors], [part.weight for part in request.without]
    return vectors[0] if len(vectors) == 1 else weighted_mean(np.stack(vectors), np.array(weights))
