"""CLIP: its image tower as a backbone, and its text tower."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from rectrio_lib.core.errors import MissingPackageError, needing
from rectrio_lib.core.tables import shortened
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.backbone import Backbone, Blocks
from rectrio_lib.encoders.base import validate_texts
from rectrio_lib.encoders.weights import find_state, load_weights, look_for_state

LOG = logging.getLogger(__name__)
CLIP_PIXELS = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
_TEXT_BASE = {"context_length": 77, "vocab_size": 49408}
_TEXT_BASE |= {"transformer_width": 512, "transformer_heads": 8, "transformer_layers": 12}
_VIT = {**_TEXT_BASE, "embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768}
_RN = {"embed_dim": 1024, "image_resolution": 224, "vision_width": 64, "vision_patch_size": None}
CLIP_NETWORKS = {
    "ViT-B/32": {**_VIT, "vision_patch_size": 32},
    "ViT-B/16": {**_VIT, "vision_patch_size": 16},
    "RN50": {**_TEXT_BASE, **_RN, "vision_layers": (3, 4, 6, 3)},
}
_TINY_TEXT = {"transformer_width": 64, "transformer_heads": 1, "transformer_layers": 1, "image_resolution": 64}
_TINY = {  # same classes of network, small enough to stand in within seconds
    "ViT": {**_TINY_TEXT, "vision_layers": 4, "vision_width": 64, "vision_patch_size": 16},
    "RN5": {**_TINY_TEXT, "vision_layers": (1, 1, 1, 1), "vision_width": 16},
}


class ClipTextTower(nn.Module):
    """CLIP's text tower alone, sharing the model's parameters: int64 (T, 77) of `tokenize` -> (T, dim), unit length.

    Source: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.embed, self.transformer, self.norm = model.token_embedding, model.transformer, model.ln_final
        self.position, self.project = model.positional_embedding, model.text_projection

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode texts; the vector comes from the state at their end token, which has the highest id."""
        states = (self.embed(tokens) + self.position).transpose(0, 1)  # (77, T, width)
        states = self.norm(self.transformer(states).transpose(0, 1))
        ends = states[torch.arange(tokens.shape[0], device=tokens.device), tokens.argmax(1)]  # (T, width)
        return nn.functional.normalize(ends @ self.project)


def tokenize(texts: Sequence[str]) -> torch.Tensor:
    """Turn texts into what CLIP's text tower takes, int64 (T, 77); longer texts are truncated, with a warning each."""
    clip, texts = clip_module(), validate_texts(texts)
    tokens = clip.tokenize(texts, truncate=True).long()
    for text, row in zip(texts, tokens, strict=True):
        if row[-1] and len(clip.clip._tokenizer.encode(text)) + 2 > len(row):  # two mark the ends
            LOG.warning("CLIP reads the first %d tokens only of %r.", len(row), shortened(text))
    return tokens


def load_clip(network: str, workspace: Workspace | None = None) -> tuple[nn.Module, bool]:
    """Load CLIP with both towers, in float32 and evaluation mode; also tell whether it is a tiny random stand-in."""
    clip_module()  # reported now, not after a download
    state, where = find_state(f"clip:{network}", lambda: official_weights(network), workspace)
    model = build_clip(network, tiny=state is None)
    if state is not None:
        extra = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's archives, no weights
        load_weights(model, {k: v.float() for k, v in state.items() if k not in extra}, where)
    return model.eval(), state is None


def why_unavailable(network: str, workspace: Workspace | None = None) -> str:
    """Say why CLIP or its weights cannot be had here; empty if they can."""
    try:
        state, where = look_for_state(f"clip:{network}", lambda: official_weights(network), workspace)
        clip_module()
    except MissingPackageError as error:
        return str(error)
    return where if state is None else ""


def official_weights(network: str) -> tuple[str, str]:
    """Return the address of OpenAI's weights, and their sha256."""
    url = clip_module().clip._MODELS[network]
    return url, url.split("/")[-2]


def build_clip(network: str, tiny: bool = False) -> nn.Module:
    """Build CLIP with random weights from a fixed seed; tiny keeps the length of the vectors."""
    sizes = {**CLIP_NETWORKS[network], **(_TINY[network[:3]] if tiny else {})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return clip_module().model.CLIP(**sizes)


def clip_backbone(model: nn.Module) -> Backbone:
    """Take the image tower of CLIP as a backbone of blocks."""
    visual = model.visual
    if hasattr(visual, "transformer"):
        visual.transformer.resblocks = Blocks(*visual.transformer.resblocks)
        blocks = [f"transformer.resblocks.{i}" for i in range(len(visual.transformer.resblocks))]
        tail, spatial = ["ln_post", "proj"], f"{blocks[-1]}.ln_1"
    else:
        layers = ("layer1", "layer2", "layer3", "layer4")
        for layer in layers:
            setattr(visual, layer, Blocks(*getattr(visual, layer)))
        blocks = [f"{layer}.{i}" for layer in layers for i in range(len(getattr(visual, layer)))]
        tail, spatial = ["attnpool"], "layer4"
    return Backbone(visual, blocks, tail, spatial, visual.input_resolution, True, CLIP_PIXELS)


@cache
def clip_module() -> types.ModuleType:
    """Import OpenAI's `clip`, once; its older wheels import a name from pkg_resources that current setuptools lacks."""
    import packaging.version

    before, substitute = sys.modules.get("pkg_resources"), types.ModuleType("pkg_resources")
    sys.modules["pkg_resources"], substitute.packaging = substitute, packaging
    try:
        with needing("CLIP", "clip"):
            import clip
    finally:
        sys.modules.pop("pkg_resources", None)
        if before is not None:
            sys.modules["pkg_resources"] = before
    if not hasattr(clip, "tokenize"):
        raise MissingPackageError(
            f"{clip.__file__} is another `clip` than OpenAI's: pip uninstall clip, then pip install 'rectrio[clip]'."
        )
    return clip
