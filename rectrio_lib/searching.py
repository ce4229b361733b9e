"""What a user asks: which pictures look like this one, which are like these words, and which words describe it?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib import inventory
from rectrio_lib.answering import Options, Results, answer
from rectrio_lib.captions import prompts
from rectrio_lib.encoders import Encoder, fingerprint
from rectrio_lib.indexing import Index
from rectrio_lib.readers import BadData, decode
from rectrio_lib.texts import shortened

__all__ = [
    *("Options", "Results", "index_names", "index_texts", "search_files", "search_ids", "search_images"),
    *("search_mixed", "search_stream", "search_texts", "search_vectors"),
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
    images = _read(encoder, paths)
    return search_images(index, encoder, images, k, [str(path) for path in paths], encoder_hash, **options)


def _read(encoder: Encoder, paths: Sequence[str | Path]) -> np.ndarray:
    """Read files as the encoder takes them, uint8 (Q, C, H, W)."""
    channels, size = encoder.preprocessing["channels"], encoder.preprocessing["size"]
    images = np.empty((len(paths), channels, size, size), np.uint8)
    for place, path in enumerate(paths):
        decoded = decode(Path(path), size, channels)
        if isinstance(decoded, str):
            raise BadData(f"{path} cannot be read as a picture: {decoded}")
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
    vectors = _encode_texts(encoder, texts)
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
        raise ValueError(
            f"The weights should be finite and one of them positive, to say what to look for, not {given}."
        )
    total = weights / abs(weights).sum() @ np.concatenate([_encode(encoder, part) for part, _ in parts])
    length = np.linalg.norm(total)
    if length < NO_DIRECTION:
        raise ValueError("The parts of this question cancel each other: change one of them, or its weight.")
    asked = " ".join(f"{weight:+g} {_name(part)}" for part, weight in parts)
    return search_vectors(index, (total / length)[None], k, [asked], encoder_hash or fingerprint(encoder), **options)


def _encode(encoder: Encoder, part: str | Path | np.ndarray) -> np.ndarray:
    if isinstance(part, str):
        return _encode_texts(encoder, [part])
    return encoder.encode(_read(encoder, [part]) if isinstance(part, Path) else part[None])


def _name(part: str | Path | np.ndarray) -> str:
    if isinstance(part, np.ndarray):
        return "picture"
    return part.name if isinstance(part, Path) else repr(shortened(part))


def _encode_texts(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Encode texts, or say which saved encoders could."""
    if getattr(encoder, "text_tower", None) is None:
        able = ", ".join(name for name, card in inventory.cards("encoders").items() if card.get("texts"))
        raise ValueError(
            f"This encoder, of kind {encoder.kind!r}, has no text tower and finds nothing by words. Of the saved "
            f"encoders, {able or 'none'} can; `rectrio index FOLDER --backbone clip:ViT-B/32` makes an index that can."
        )
    return encoder.encode_texts(texts)


def index_texts(encoder: Encoder, texts: Sequence[str], labels: Sequence[str] | None = None) -> Index:
    """Make an index of texts, to be searched with pictures: which of these descriptions fits this picture best?

    Args:
        encoder: with a text tower.
        texts: (N,), each once; names of things will do. They are the `image_id` of the answers.
        labels: what the answers are to carry as `label` (N,).

    Raises:
        ValueError: as `search_texts`, or if a text comes twice.
    """
    rows = pd.DataFrame({"image_id": list(texts)} | ({} if labels is None else {"label": list(labels)}))
    return Index.build("flat", _encode_texts(encoder, texts), rows, fingerprint(encoder))


def index_names(encoder: Encoder, names: Sequence[str]) -> Index:
    """Make an index of classes that exist by being named, to be searched with pictures (zero-shot classification).

    Args:
        encoder: that has read captions of all kinds: CLIP.
        names: of things (N,), each once. Each is put into several phrasings, see `captions.prompts`, whose mean
            direction it gets; the names are the `image_id` of the answers.

    Raises:
        ValueError: as `index_texts`.

    Source: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021,
        section 3.1.4 (prompt ensembles).
    """
    told = prompts(names)
    rows = pd.DataFrame({"image_id": list(names)})
    return Index.build("flat", told.means(_encode_texts(encoder, told.texts)), rows, fingerprint(encoder))


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
