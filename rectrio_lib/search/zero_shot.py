"""Indexes of texts and of class names, to be searched with images (zero-shot classification)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from rectrio_lib.data.captions import prompts
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.registry import fingerprint
from rectrio_lib.index.index import Index
from rectrio_lib.search.searcher import texts_to_vectors


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
    return Index.build("flat", texts_to_vectors(encoder, texts), rows, fingerprint(encoder))


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
    return Index.build("flat", told.means(texts_to_vectors(encoder, told.texts)), rows, fingerprint(encoder))
