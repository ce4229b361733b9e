"""One verb for every query: images, image_ids, words, or a mix of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.core.files import file_at
from rectrio_lib.core.tables import shortened
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import image_files
from rectrio_lib.data.layout import nfc
from rectrio_lib.data.places.place import Place
from rectrio_lib.index.base import VectorIndex, check_encoder
from rectrio_lib.search.options import Options, listed, real
from rectrio_lib.search.pipeline import answer, weighted_mean
from rectrio_lib.search.results import Results

if TYPE_CHECKING:  # PyTorch is imported when an image or a text must be encoded, not before
    from rectrio_lib.encoders.base import Encoder
    from rectrio_lib.search.ranking.calibration import Calibration

WITHOUT = -0.5  # weight of an unwanted text: enough to turn away, too little to lead elsewhere
Image = str | Path | np.ndarray


class Searcher:
    """Searches an index; the only place where encoder and index are compared.

    Args:
        index: where to search.
        encoder: the one that made the index; None if only image_ids are searched for.
    """

    place: Place | None = None  # where the paths in the rows of the index start
    calibration: Calibration | None = None  # what scores mean, if that is known

    def __init__(self, index: VectorIndex, encoder: Encoder | None = None):
        self.index, self._given = index, encoder

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the index; that it made the index is checked once."""
        encoder, encoder_hash = self._load_encoder()
        check_encoder(self.index, encoder_hash)
        return encoder

    def _load_encoder(self) -> tuple[Encoder, str]:
        if self._given is None:
            raise ArgumentError("Without an encoder only image_ids can be searched for: use Searcher(index, encoder).")
        from rectrio_lib.encoders.registry import fingerprint

        return self._given, fingerprint(self._given)

    def search(
        self,
        images: Image | Sequence[Image] | None = None,
        text: str | Sequence[str] | None = None,
        without: str | Sequence[str] | None = None,
        k: int = 10,
        weights: Sequence[float] | None = None,
        **options,
    ) -> Results:
        """Find the images most similar to queries.

        Several images, or several texts, are several queries. Images with text, anything with `without` or `weights`
        are one query: the weighted mean of all parts. An image of the index is never a result of its own query.

        Args:
            images: files; arrays uint8 (C, H, W) or (Q, C, H, W) of the encoder's size; image_ids; paths in the index.
            text: what to look for; needs an encoder with a text tower.
            without: what to turn away from.
            k: results per query; where there are fewer, the last places stay empty, see `Results`.
            weights: of images, texts and (else -0.5) `without`, in this order; their ratio counts, negative turns away.
            **options: fields of `Options`: where, minimum, distinct, mmr, expand, reciprocal, combine, ….

        Raises:
            ArgumentError: if nothing is asked for, an image is not to be found, or encoder or argument do not fit.
            DataError: if a file is not a readable image.
        """
        (chosen, rows), texts, unwanted = self._among(Options(**options)), _listed(text), _listed(without)
        if images is None or texts or unwanted:
            chosen.calibrated(None)  # similarities to words were not calibrated
        chosen = chosen.calibrated(self.calibration)
        if images is None and text is None and not unwanted:
            raise ArgumentError("There is nothing to search for: give an image, an image_id or a text.")
        if images is None and weights is None and not unwanted:
            names, vectors, own = texts, encode_texts(self.encoder, texts), np.full((len(texts), 0), -1)
        else:
            names, vectors, own = self.encode_images([] if images is None else images)
            if texts or unwanted or weights is not None:
                names, vectors = self._mix(names, vectors, texts, unwanted, weights)
                own = own.reshape(1, -1)
        results = answer(self.index, vectors, k, names, chosen, own)
        known = self.calibration is not None and not (images is None or texts or unwanted or chosen.expand)
        probabilities = self.calibration.probability(results.scores) if known else None
        return replace(results, rows=rows, place=self.place, probabilities=probabilities)

    def recommend(
        self,
        like: Image | Sequence[Image] = (),
        dislike: Image | Sequence[Image] = (),
        seen: str | Sequence[str] = (),
        k: int = 10,
        **taste,
    ) -> Results:
        """Find what will be liked next, by what was liked and disliked; without likes, images that differ.

        Args:
            like: images as `search` takes them; names that are not to be found are ignored, see `Results.ignored`.
            dislike: likewise; an image that is liked and disliked counts as neither.
            seen: image_ids or paths that are no results, as those liked and disliked are none.
            k: most results.
            **taste: fields of `Taste`: strategy, where, minimum, distinct, mmr, group_by, per_group, pool.

        Raises:
            ArgumentError: if an argument is out of its range, or a column is not there.
            DataError: if a file is not a readable image.
        """
        from rectrio_lib.search.ranking import recommend  # which looks into a searcher

        return replace(recommend.answer(self, like, dislike, seen, k, recommend.Taste(**taste)), place=self.place)

    def _mix(self, names, vectors, texts, unwanted, weights) -> tuple[list[str], np.ndarray]:
        """Join vectors of images and texts to one query; return its name and its vector (1, dim)."""
        words, wanted = [*texts, *unwanted], len(names) + len(texts)
        given = [1.0] * wanted if weights is None else np.array(weights, object).ravel()
        weights = np.array([real("weights", weight) for weight in given], np.float32)
        if len(weights) == wanted:
            weights = np.append(weights, np.full(len(unwanted), WITHOUT, np.float32))
        if len(weights) != len(names) + len(words):
            raise ArgumentError(f"{len(weights)} weights for {len(names) + len(words)} parts: give one each.")
        parts = np.concatenate([vectors, encode_texts(self.encoder, words)]) if words else vectors
        mean = weighted_mean(parts, weights)
        shown = [*(Path(name).name for name in names), *(repr(shortened(word)) for word in words)]
        name = " ".join(f"{weight:+g} {part}" for weight, part in zip(weights, shown, strict=True))
        return [name], mean[None]

    def encode_images(self, images: Image | Sequence[Image]) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Return names (Q), vectors (Q, dim), and positions in the index int64 (Q, 1), -1 for images from elsewhere."""
        if isinstance(images, np.ndarray) and images.ndim:
            images = _checked(images[None] if images.ndim == 3 else images)
            return [str(i) for i in range(len(images))], self.encoder.encode(images), np.full((len(images), 0), -1)
        images = listed("images", images)
        names = [f"image {i}" if isinstance(image, np.ndarray) else str(image) for i, image in enumerate(images)]
        files = {name: file for name in names if (file := file_at(name))}
        aliases = {name: self.own_id(files[name]) if name in files else name for name in names}
        place = self.positions([alias for alias in aliases.values() if alias])
        own = np.array([place.get(aliases[name], -1) for name in names], np.int64)
        vectors = np.empty((len(images), self.index.dim), np.float32)
        vectors[own >= 0] = self.index.vectors_at(own[own >= 0])
        others = [(image, name) for image, name, at in zip(images, names, own, strict=True) if at < 0]
        for image, name in others:
            if not isinstance(image, np.ndarray) and name not in files:
                raise ArgumentError(f"{name} is not a file, nor an image_id or path of an image in the index.")
        pixels = [_checked(i) if isinstance(i, np.ndarray) else self._read(files[name]) for i, name in others]
        if len({image.shape for image in pixels}) > 1:
            raise ArgumentError(f"Arrays should have one shape, not {pixels[0].shape} and {pixels[-1].shape}, say.")
        if pixels:
            vectors[own < 0] = self.encoder.encode(np.stack(pixels))
        return names, vectors, own[:, None] if (own >= 0).any() else own[:, None][:, :0]

    def _read(self, file: Path) -> np.ndarray:
        """Read a file as the images of an index are read, uint8 (C, H, W)."""
        wanted = self.encoder.preprocessing
        read = image_files.read_image(file.parent, file.name, wanted["size"], wanted["channels"])
        if read.pixels is None:
            raise DataError(f"{file} cannot be read as an image: {read.reason}")
        return read.pixels

    def positions(self, names: Sequence[str]) -> dict[str, int]:
        """Return where images lie in `index.rows`, by image_id or path; names that are not there are left out."""
        rows, wanted, found = self.index.rows, {normal(name): name for name in names}, {}
        for column in ("path", "image_id"):  # an image_id goes before a path
            if column in rows:
                values = rows[column] if all(map(str.isascii, wanted)) else rows[column].map(normal)
                places = np.flatnonzero(values.isin(list(wanted)).to_numpy() & ~self.index.removed)
                found |= {wanted[values.iloc[place]]: int(place) for place in places[::-1]}
        return found

    def _among(self, options: Options) -> tuple[Options, pd.DataFrame]:
        """Return the options to search with, and the rows to show."""
        return options, self.index.rows

    def own_id(self, file: Path) -> str:
        """Return the image_id of a file that belongs to the collection; empty for one from elsewhere."""
        return ""


def search_vectors(
    index: VectorIndex,
    vectors: np.ndarray,
    k: int = 10,
    query_ids: Sequence[str] | None = None,
    encoder_hash: str | None = None,
    **options,
) -> Results:
    """Search with vectors.

    Args:
        index: where to search.
        vectors: unit vectors (Q, dim).
        k: results per query; where there are fewer, the last places stay empty, see `Results`.
        query_ids: names of the queries (Q,); None numbers them.
        encoder_hash: fingerprint of the encoder that made the vectors; None trusts the caller.
        **options: fields of `Options`.

    Raises:
        ArgumentError: if k < 1, another encoder made the index, or the vectors or an option do not fit.
    """
    check_encoder(index, encoder_hash)
    ids = [str(i) for i in range(len(vectors))] if query_ids is None else list(query_ids)
    return answer(index, vectors, k, ids, Options(**options), np.empty((len(vectors), 0), np.int64))


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Encode texts, or say which saved encoders can, as an ArgumentError."""
    if getattr(encoder, "text_tower", None) is None:
        able = ", ".join(name for name, card in Workspace().cards("encoders").items() if card.get("texts"))
        raise ArgumentError(
            f"This encoder, of kind {encoder.kind!r}, has no text tower and finds nothing by words. Of the saved "
            f"encoders, {able or 'none'} can; `rectrio index FOLDER --backbone clip:ViT-B/32` makes an index that can."
        )
    return encoder.encode_texts(texts)


def _listed(text: str | Sequence[str] | None) -> list[str]:
    texts = [] if text is None else [text] if isinstance(text, str) or not isinstance(text, Iterable) else list(text)
    if not all(isinstance(one, str) for one in texts):
        raise ArgumentError(f"{shortened(repr(text))} is neither a text nor a list of texts.")
    return texts


def _checked(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8:  # 0..1 would be taken for black
        raise ArgumentError(f"An array of {pixels.dtype} is not an image: expected uint8, 0 to 255.")
    return pixels


def normal(name: str) -> str:
    """Return a path as paths are compared: with slashes, and accents in one form."""
    return nfc(str(name)).replace("\\", "/")
