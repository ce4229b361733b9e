"""Indexes of texts and of class names, to be searched with images (zero-shot classification)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from rectrio_lib.data.captions import prompts
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.registry import fingerprint
from rectrio_lib.index.index import Index
from rectrio_lib.search.searcher import encode_texts


def index_texts(encoder: Encoder, texts: Sequence[str], labels: Sequence[str] | None = None) -> Index:
    """Make an index of texts, to be searched with images: which of these descriptions fits this image best?

    Args:
        encoder: with a text tower.
        texts: (N,), each once; names of things will do. They are the `image_id` of the results.
        labels: the `label` of each text (N,).
    """
    rows = pd.DataFrame({"image_id": list(texts)} | ({} if labels is None else {"label": list(labels)}))
    return Index.build("flat", encode_texts(encoder, texts), rows, fingerprint(encoder))


def index_names(encoder: Encoder, names: Sequence[str]) -> Index:
    """Make an index of class names, to be searched with images (zero-shot classification).

    Args:
        encoder: trained on captions of all kinds: CLIP.
        names: of things (N,), each once; `image_id` of the mean of their phrasings, see `captions.prompts`.

    Source: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021,
        section 3.1.4 (prompt ensembles).
    """
    phrased = prompts(names)
    rows = pd.DataFrame({"image_id": list(names)})
    return Index.build("flat", phrased.means(encode_texts(encoder, phrased.texts)), rows, fingerprint(encoder))
