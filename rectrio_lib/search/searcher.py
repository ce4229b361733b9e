"""What a user asks: which pictures look like this one, which are like these words, and which words describe it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.core.tables import shortened
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data.image_files import decode
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.registry import fingerprint
from rectrio_lib.index.index import Index
from rectrio_lib.search.options import Options
from rectrio_lib.search.pipeline import answer
from rectrio_lib.search.results import Results

__all__ = [
    *("Options", "Results", "index_names", "index_texts", "search_files", "search_ids", "search_images"),
    *("search_mixed", "search_texts", "search_vectors"),
]
NO_DIRECTION = 1e-3  # length of a mean of unit vectors below which it points nowhere


def search_vectors(
    index: Index,
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
        k: answers a query; where fewer can be given, the rest stays empty, see `Results`.
        query_ids: names of the queries (Q,); None numbers them.
        encoder_hash: fingerprint of the encoder that made the vectors; None trusts the caller.
        **options: fields of `Options`.

    Raises:
        ValueError: if k < 1, another encoder made the index, or the vectors or an option do not fit.
    """
    ids = [str(i) for i in range(len(vectors))] if query_ids is None else list(query_ids)
    return answer(index, vectors, k, ids, encoder_hash, Options(**options), np.empty((len(vectors), 0), np.int64))


def search_ids(index: Index, image_ids: Sequence[str], k: int = 10, **options) -> Results:
    """Search with pictures of the index itself. A picture is no answer to itself; combined, none of them is.

    Args:
        index: where to search.
        image_ids: (Q,).
        k: answers a query.
        **options: fields of `Options`.

    Raises:
        ValueError: if an image_id is not in the index; and as `search_vectors`.
    """
    places = np.flatnonzero(index.rows["image_id"].isin(image_ids).to_numpy() & ~index.removed)
    place_of = dict(zip(index.rows["image_id"].iloc[places], places, strict=True))
    absent = [i for i in image_ids if i not in place_of]
    if absent:
        raise ArgumentError(f"{len(absent)} of {len(image_ids)} pictures are not in the index, such as {absent[0]!r}.")
    positions = np.array([place_of[i] for i in image_ids], np.int64)
    vectors = index.vectors_at(positions)
    return answer(index, vectors, k, list(image_ids), None, Options(**options), positions[:, None])


def search_images(
    index: Index,
    encoder: Encoder,
    images: np.ndarray,
    k: int = 10,
    query_ids: Sequence[str] | None = None,
    encoder_hash: str | None = None,
    **options,
) -> Results:
    """Search with pictures.

    Args:
        index: where to search.
        encoder: the one that made the index.
        images: uint8 (Q, C, H, W).
        k: answers a query.
        query_ids: names of the queries (Q,); None numbers them.
        encoder_hash: the encoder's fingerprint, if it is known already: to compute it for CLIP takes half a second.
        **options: fields of `Options`.

    Raises:
        ValueError: if the index was built with another encoder or the pictures do not fit it; and as `search_vectors`.
    """
    return search_vectors(index, encoder.encode(images), k, query_ids, encoder_hash or fingerprint(encoder), **options)


def search_files(
    index: Index,
    encoder: Encoder,
    paths: Sequence[str | Path],
    k: int = 10,
    encoder_hash: str | None = None,
    **options,
) -> Results:
    """Search with picture files of any size, brought to the encoder's size and colours as its training pictures were.

    Args:
        index: where to search.
        encoder: the one that made the index.
        paths: (Q,).
        k: answers a query.
        encoder_hash: as in `search_images`.
        **options: fields of `Options`.

    Raises:
        BadData: if a file is missing or no picture.
        ValueError: as `search_images`.
    """
    images = read_queries(encoder, paths)
    return search_images(index, encoder, images, k, [str(path) for path in paths], encoder_hash, **options)


def read_queries(encoder: Encoder, paths: Sequence[str | Path]) -> np.ndarray:
    """Read files as the encoder takes them, uint8 (Q, C, H, W)."""
    channels, size = encoder.preprocessing["channels"], encoder.preprocessing["size"]
    images = np.empty((len(paths), channels, size, size), np.uint8)
    for place, path in enumerate(paths):
        decoded = decode(Path(path), size, channels)
        if isinstance(decoded, str):
            raise DataError(f"{path} cannot be read as a picture: {decoded}")
        images[place] = decoded[0]
    return images


def search_texts(
    index: Index,
    encoder: Encoder,
    texts: Sequence[str],
    k: int = 10,
    encoder_hash: str | None = None,
    **options,
) -> Results:
    """Search with words: "a warm coat with long sleeves".

    Args:
        index: where to search.
        encoder: the one that made the index, with a text tower.
        texts: (Q,).
        k: answers a query.
        encoder_hash: as in `search_images`.
        **options: fields of `Options`.

    Raises:
        ValueError: if the encoder has no text tower, a text is empty or of unknown words only; and as `search_vectors`.
    """
    vectors = texts_to_vectors(encoder, texts)
    return search_vectors(index, vectors, k, texts, encoder_hash or fingerprint(encoder), **options)


def search_mixed(
    index: Index,
    encoder: Encoder,
    parts: Sequence[tuple[str | Path | np.ndarray, float]],
    k: int = 10,
    encoder_hash: str | None = None,
    **options,
) -> Results:
    """Search with one question of several parts: like this picture, but red: [(picture, 1), ("red", 1)].

    Args:
        index: where to search.
        encoder: the one that made the index, with a text tower if a part is a text.
        parts: what is asked, and its weight: texts, picture files as `Path`, or pictures uint8 (C, H, W). A negative
            weight stands for "without"; only the ratio of the weights counts.
        k: answers.
        encoder_hash: as in `search_images`.
        **options: fields of `Options`.

    Raises:
        BadData: if a file is missing or no picture.
        ValueError: if no weight is positive, one is not finite, or the parts cancel each other; and as `search_texts`
            and `search_images`.
    """
    weights = np.array([weight for _, weight in parts], np.float32)
    if not np.isfinite(weights).all() or not (weights > 0).any():
        given = ", ".join(f"{weight:g}" for weight in weights) or "none"
        raise ArgumentError(
            f"The weights should be finite and one of them positive, to say what to look for, not {given}."
        )
    total = weights / abs(weights).sum() @ np.concatenate([_encode(encoder, part) for part, _ in parts])
    length = np.linalg.norm(total)
    if length < NO_DIRECTION:
        raise ArgumentError("The parts of this question cancel each other: change one of them, or its weight.")
    asked = " ".join(f"{weight:+g} {_name(part)}" for part, weight in parts)
    return search_vectors(index, (total / length)[None], k, [asked], encoder_hash or fingerprint(encoder), **options)


def _encode(encoder: Encoder, part: str | Path | np.ndarray) -> np.ndarray:
    if isinstance(part, str):
        return texts_to_vectors(encoder, [part])
    return encoder.encode(read_queries(encoder, [part]) if isinstance(part, Path) else part[None])


def _name(part: str | Path | np.ndarray) -> str:
    if isinstance(part, np.ndarray):
        return "picture"
    return part.name if isinstance(part, Path) else repr(shortened(part))


def texts_to_vectors(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Encode texts, or say which saved encoders could."""
    if getattr(encoder, "text_tower", None) is None:
        able = ", ".join(name for name, card in Workspace().cards("encoders").items() if card.get("texts"))
        raise ArgumentError(
            f"This encoder, of kind {encoder.kind!r}, has no text tower and finds nothing by words. Of the saved "
            f"encoders, {able or 'none'} can; `rectrio index FOLDER --backbone clip:ViT-B/32` makes an index that can."
        )
    return encoder.encode_texts(texts)
