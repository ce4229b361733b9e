"""Two towers, one space: a small CNN for images and a bidirectional LSTM for texts, trained together from scratch."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.tables import shortened
from rectrio_lib.encoders.base import Encoder, validate_texts
from rectrio_lib.encoders.convnet import ConvNet

LOG = logging.getLogger(__name__)

PAD, UNKNOWN, FIRST = 0, 1, 2  # token ids: padding, unknown word, first word of the vocabulary


def words(text: str) -> list[str]:
    """Split a text into lower-case words; hyphens and apostrophes stay inside: t-shirt is one word."""
    return re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", unicodedata.normalize("NFKC", text).casefold())


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Return all words of some texts, each once, in alphabetical order."""
    return sorted({word for text in texts for word in words(text)})


def token_ids(texts: Sequence[str], known: Sequence[str], length: int) -> torch.Tensor:
    """Turn texts (N,), cut off after `length` words, into token ids of the vocabulary `known`, int64 (N, length).

    Raises:
        ArgumentError: see `validate_texts`; or if none of the words read of a text is in the vocabulary.
    """
    texts, id_of = validate_texts(texts), {word: number for number, word in enumerate(known, FIRST)}
    tokens = torch.full((len(texts), length), PAD)
    for row, text in zip(tokens, texts, strict=True):
        if len(words(text)) > length:
            LOG.warning("%r is longer than the %d words that this encoder reads.", shortened(text), length)
        ids = [id_of.get(word, UNKNOWN) for word in words(text)[:length]]
        if all(number == UNKNOWN for number in ids):
            raise ArgumentError(
                f"{shortened(text)!r} holds no word that this encoder knows among its first {length}: use some of the "
                f"{len(known)} known words, such as {', '.join(known[:: max(1, len(known) // 6)][:6])}."
            )
        row[: len(ids)] = torch.tensor(ids)
    return tokens


PLAN = (16, 32, "M", 64, 64, "M", 128, 128, "M", 256)  # four blocks of convolutions
LOWEST = 0.01  # temperature; training becomes unstable below, as CLIP's authors found


class TextTower(nn.Module):
    """Word embedding, bidirectional LSTM, mean and maximum over the words, and a linear map to the unit sphere.

    In training, some words are replaced by UNKNOWN: no single word decides, and UNKNOWN learns a meaning.

    Args:
        count: words in the vocabulary.
        dim: length of the unit vectors.
        embedding: dimensions of a word.
        hidden: dimensions of the LSTM's state in each direction.
        hide: share of the words replaced in training.

    Source: Graves and Schmidhuber, "Framewise phoneme classification with bidirectional LSTM", 2005; Iyyer et al.,
        "Deep unordered composition rivals syntactic methods", ACL 2015 (hidden words).
    """

    def __init__(self, count: int, dim: int = 256, embedding: int = 64, hidden: int = 128, hide: float = 0.2):
        super().__init__()
        self.hide = hide
        self.embed = nn.Embedding(FIRST + count, embedding, padding_idx=PAD)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True, bidirectional=True)
        self.project = nn.Linear(4 * hidden, dim, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 (N, L), as `DualEncoder.tokenize` gives them -> (N, dim), unit length."""
        present = (tokens != PAD)[..., None]  # (N, L, 1)
        if self.training:
            hidden = (torch.rand(tokens.shape) < self.hide).to(tokens.device)
            tokens = tokens.masked_fill(hidden & present[..., 0], UNKNOWN)
        states, _ = self.lstm(self.embed(tokens))  # (N, L, 2 * hidden)
        mean = (states * present).sum(1) / present.sum(1)
        maximum = states.masked_fill(~present, -1).amax(1)  # an LSTM's states lie in -1..1
        return F.normalize(self.project(torch.cat([mean, maximum], 1)))


class DualEncoder(Encoder):
    """Images and texts as unit vectors of one space; encodes images like any other encoder.

    Args:
        vocabulary: the words that the text tower knows.
        channels, size, plan, dim, mean, std, looks: see `ConvNet`.
        embedding, hidden, hide: see `TextTower`.
        length: words read per text.

    Source: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021 (two
        towers and a learned temperature).
    """

    kind = "dual"
    activation = "relu"

    def __init__(
        self,
        vocabulary: Sequence[str],
        channels: int = 1,
        size: int = 28,
        plan: Sequence[int | str] = PLAN,
        dim: int = 256,
        mean: float = 0.0,
        std: float = 1.0,
        looks: int = 1,
        embedding: int = 64,
        hidden: int = 128,
        hide: float = 0.2,
        length: int = 16,
    ):
        images = {"channels": channels, "size": size, "plan": list(plan), "dim": dim, "mean": mean, "std": std}
        images["looks"] = looks
        texts = {"embedding": embedding, "hidden": hidden, "hide": hide}
        super().__init__(vocabulary=list(vocabulary), **images, **texts, length=length)
        self.dim, self.vocabulary, self.length = dim, list(vocabulary), length
        self.picture_tower = ConvNet(**images)  # a name inside saved weights
        self.text_tower = TextTower(len(self.vocabulary), dim, **texts)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))

    @property
    def temperature(self) -> torch.Tensor:
        """Learned divisor of the similarities before the softmax."""
        return self.log_temperature.exp().clamp_min(LOWEST)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, dim), unit length."""
        return self.picture_tower(images)

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Turn texts into token ids, int64 (N, length); see `token_ids`."""
        return token_ids(texts, self.vocabulary, self.length)

    def parameter_groups(self, learning_rate: float, backbone_rate: float) -> list[dict]:
        """Return both towers, and the temperature, which takes no weight decay."""
        towers = [*self.picture_tower.parameters(), *self.text_tower.parameters()]
        temperature = {"params": [self.log_temperature], "lr": learning_rate, "weight_decay": 0.0}
        return [{"params": towers, "lr": learning_rate}, temperature]
