"""What a user asks: which pictures look like this one?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from rectrio_lib.answering import Options, Results, answer
from rectrio_lib.encoders import Encoder, fingerprint
from rectrio_lib.indexing import Index
from rectrio_lib.readers import BadData, decode

__all__ = ["Options", "Results", "search_files", "search_ids", "search_images", "search_stream", "search_vectors"]


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
        raise ValueError(f"{len(absent)} of {len(image_ids)} pictures are not in the index, such as {absent[0]!r}.")
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
    channels, size = encoder.preprocessing["channels"], encoder.preprocessing["size"]
    images = np.empty((len(paths), channels, size, size), np.uint8)
    for place, path in enumerate(paths):
        decoded = decode(Path(path), size, channels)
        if isinstance(decoded, str):
            raise BadData(f"{path} cannot be read as a picture: {decoded}")
        images[place] = decoded[0]
    return search_images(index, encoder, images, k, [str(path) for path in paths], encoder_hash, **options)


def search_stream(
    index: Index,
    batches: Iterable[np.ndarray | Sequence[str | Path]],
    k: int = 10,
    encoder: Encoder | None = None,
    **options,
) -> Iterator[Results]:
    """Search with more queries than fit into memory: batch for batch, each when its results are asked for.

    Args:
        index: where to search; not to be changed meanwhile.
        batches: each of vectors (B, dim), pictures uint8 (B, C, H, W), or files (B,); the first two are numbered on.
        k: answers a query.
        encoder: the one that made the index; pictures and files need it.
        **options: fields of `Options`.

    Yields:
        The results of one batch.

    Raises:
        BadData: if a file is missing or no picture.
        ValueError: if pictures or files come without an encoder; and as `search_vectors`.
    """
    encoder_hash, start = encoder and fingerprint(encoder), 0
    options["where"] = Options(**options).mask(index)
    for batch in batches:
        arrays = isinstance(batch, np.ndarray)
        ids = [str(i) for i in range(start, start + len(batch))]
        start += len(batch)
        if arrays and batch.ndim == 2:
            yield search_vectors(index, batch, k, ids, encoder_hash, **options)
        elif encoder is None:
            raise ValueError("These batches are no vectors (B, dim): pictures and files need the encoder of the index.")
        elif arrays:
            yield search_images(index, encoder, batch, k, ids, encoder_hash, **options)
        else:
            yield search_files(index, encoder, batch, k, encoder_hash, **options)
