"""Pretrained networks by name, as blocks that training can free from the end: clip:ViT-B/32, torchvision:resnet50, …"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rectrio_lib.texts import checked
from rectrio_lib.weights import clip_module, fill, find_state

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
POOLINGS = ("average", "gem")
FAMILIES = ("convnext", "efficientnet", "mobilenet", "resnet", "resnext", "squeezenet", "vgg", "wide_resnet")

_TEXT = {"context_length": 77, "vocab_size": 49408}
_TEXT_BASE = {**_TEXT, "transformer_width": 512, "transformer_heads": 8, "transformer_layers": 12}
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


class Blocks(nn.Sequential):
    """Blocks in a row. With `checkpointing`, training keeps only their inputs and computes the rest a second time.

    Source: Chen et al., "Training deep nets with sublinear memory cost", 2016, arXiv 1604.06174.
    """

    checkpointing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks one after the other."""
        twice = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in self:
            x = checkpoint(block, x, use_reentrant=False) if twice else block(x)
        return x


class GeM(nn.Module):
    """Generalised-mean pooling: (mean of x^p)^(1/p) over all places, with a learned p of each backbone.

    p = 1 is the average, p to infinity the maximum: the higher it is, the more the strongest places count. What is
    negative counts as (nearly) 0. Computed in float32: a power takes more digits than half precision has.

    Args:
        p: where the exponent starts.

    Source: Radenović, Tolias & Chum, "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2019.
    """

    floor = 1e-6  # at 0 the gradient of the root is infinite

    def __init__(self, p: float = 3.0):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C, 1, 1)."""
        return maps.float().clamp_min(self.floor).pow(self.p).mean((2, 3), keepdim=True).pow(1 / self.p)


class Backbone(nn.Module):
    """A network that turns float32 (B, 3, H, W) into features (B, dim).

    Attributes:
        network: the whole.
        blocks: names of its blocks, first to last.
        tail: names of what follows the last block and learns (final norm, projection, pooling): freed together with it.
        spatial: name of the last module whose output still knows places: (B, C, h, w), or (1 + h * w, B, C) in a ViT.
        dim: length of the features.
        resolution: side in pixels that it was pretrained at.
        fixed: whether it takes no other resolution.
        preprocessing: {"mean", "std"} of the pretraining pixels in 0..1, for R, G, B.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: list[str],
        tail: list[str],
        spatial: str,
        resolution: int,
        fixed: bool,
        preprocessing: dict,
    ):
        super().__init__()
        self.network, self.blocks, self.tail, self.spatial = network, blocks, tail, spatial
        self.resolution, self.fixed, self.preprocessing = resolution, fixed, preprocessing
        with torch.no_grad():
            self.dim = self.eval()(torch.zeros(1, 3, resolution, resolution)).shape[1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, dim)."""
        return self.network(images)

    def free(self, count: int) -> None:
        """Let training change the last `count` blocks and what follows them, and nothing else; 0 freezes all.

        What comes before CLIP's first block stays frozen in any case.

        Raises:
            ValueError: if there are fewer blocks.
        """
        if not 0 <= count <= len(self.blocks):
            raise ValueError(f"blocks={count}: this backbone has {len(self.blocks)} blocks, choose 0 to all of them.")
        freed = [*self.blocks[len(self.blocks) - count :], *self.tail] if count else []
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(any(name == f or name.startswith(f"{f}.") for f in freed))

    def set_checkpointing(self, on: bool) -> None:
        """Trade a second forward pass of each block for the memory of what is inside them."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.checkpointing = on

    @property
    def activation(self) -> str:
        """Names of the activations inside, such as "quickgelu": weights mean nothing under another one."""
        named = {type(m).__name__ for m in self.modules() if re.search("ELU|SiLU|swish|ReLU", type(m).__name__)}
        return ", ".join(sorted(named)).lower()


class ClipTextTower(nn.Module):
    """CLIP's text tower, apart from its pictures: int64 (T, 77), as `tokenize` gives them -> (T, dim), unit length.

    Args:
        model: what `build_clip` or `load_clip` returns; the parts are shared with it.

    Source: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.embed, self.transformer, self.norm = model.token_embedding, model.transformer, model.ln_final
        self.position, self.project = model.positional_embedding, model.text_projection

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read texts; the vector is made of what stands at their end, the token of the highest number."""
        states = (self.embed(tokens) + self.position).transpose(0, 1)  # (77, T, width)
        states = self.norm(self.transformer(states).transpose(0, 1))
        ends = states[torch.arange(tokens.shape[0], device=tokens.device), tokens.argmax(1)]  # (T, width)
        return nn.functional.normalize(ends @ self.project)


def clip_towers(model: nn.Module) -> tuple[Backbone, ClipTextTower]:
    """Take CLIP apart: its picture tower as a backbone, and its text tower."""
    return _clip_backbone(model), ClipTextTower(model)


def tokenize(texts: Sequence[str]) -> torch.Tensor:
    """Turn texts into what CLIP's text tower takes, int64 (T, 77); what is longer is cut off.

    Raises:
        ValueError: as `texts.checked`.
        ModuleNotFoundError: if the `clip` package is not installed.
    """
    return clip_module().tokenize(checked(texts), truncate=True).long()


def build_backbone(name: str, tiny: bool = False, pooling: str = "average") -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: family and network: "clip:ViT-B/32", "torchvision:squeezenet1_0".
        tiny: for CLIP, the stand-in: four blocks, 64 pixels.
        pooling: how torchvision's last maps become features, "average" or "gem" (see `GeM`); CLIP pools in its own way,
            and takes "average" only.

    Raises:
        ValueError: if the name or the pooling is unknown, the message lists what there is; or they do not go together.
    """
    family, network = _split_name(name)
    _check_pooling(name, pooling)
    if family == "clip":
        return _clip_backbone(build_clip(network, tiny))
    return _torchvision_backbone(network, pooling=pooling)


def load_backbone(name: str, pooling: str = "average") -> tuple[Backbone, bool]:
    """Load a pretrained backbone: from a file in `RECTRIO_WEIGHTS`, else by the official download, else a stand-in.

    Args:
        name: see `build_backbone`.
        pooling: see `build_backbone`.

    Returns:
        The backbone in evaluation mode, and whether it is a stand-in: random weights, which announces itself.

    Raises:
        ValueError: see `build_backbone`; or a file holds weights of another architecture, the message names the keys.
        ModuleNotFoundError: if the name is CLIP's and the `clip` package is not installed.
    """
    family, network = _split_name(name)
    _check_pooling(name, pooling)
    if family == "clip":
        model, stand_in = load_clip(network)
        return _clip_backbone(model), stand_in
    state, where = find_state(name)
    backbone = _torchvision_backbone(network, state, where, pooling)
    return backbone, state is None


def load_clip(network: str) -> tuple[nn.Module, bool]:
    """Load CLIP with both towers, in float32, in evaluation mode.

    Args:
        network: such as "ViT-B/32".

    Returns:
        The model, and whether it is a tiny stand-in with random weights.

    Raises:
        ValueError, ModuleNotFoundError: see `load_backbone`.

    Source: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021.
    """
    _split_name(f"clip:{network}")
    clip_module()  # said now, not after a download
    state, where = find_state(f"clip:{network}")
    model = build_clip(network, tiny=state is None)
    if state is not None:
        extra = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's archives, no weights
        fill(model, {k: v.float() for k, v in state.items() if k not in extra}, where)
    return model.eval(), state is None


def build_clip(network: str, tiny: bool = False) -> nn.Module:
    """Build CLIP with random weights from a fixed seed; tiny keeps the length of the vectors."""
    sizes = {**CLIP_NETWORKS[network], **(_TINY[network[:3]] if tiny else {})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return clip_module().model.CLIP(**sizes)


@torch.inference_mode()
def encode_texts(model: nn.Module, texts: list[str]) -> torch.Tensor:
    """Turn texts into unit vectors float32 (T, D) with CLIP's text tower; what exceeds 77 tokens is cut off."""
    device = model.token_embedding.weight.device
    tokens = clip_module().tokenize(texts, truncate=True).to(device)
    return nn.functional.normalize(model.encode_text(tokens).float())


def _split_name(name: str) -> tuple[str, str]:
    from torchvision import models

    known = {
        "clip": list(CLIP_NETWORKS),
        "torchvision": [n for n in models.list_models(models) if n.startswith(FAMILIES)],
    }
    family, _, network = name.partition(":")
    if network not in known.get(family, []):
        names = [f"{f}:{n}" for f, networks in known.items() for n in networks]
        raise ValueError(f"backbone={name!r} is unknown: choose one of {', '.join(names)}.")
    return family, network


def _check_pooling(name: str, pooling: str) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r} is unknown: choose one of {', '.join(POOLINGS)}.")
    if pooling != "average" and name.startswith("clip:"):
        raise ValueError(f"pooling={pooling!r}: {name} pools in its own way; leave pooling at 'average', its default.")


def _clip_backbone(model: nn.Module) -> Backbone:
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
    return Backbone(visual, blocks, tail, spatial, visual.input_resolution, True, CLIP)


def _torchvision_backbone(
    network: str, state: dict | None = None, where: str = "", pooling: str = "average"
) -> Backbone:
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.get_model(network, weights=None)
    if state is not None:
        fill(model, {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, where)
    stages = _stages(model)
    pool, tail = (GeM(), ["1"]) if pooling == "gem" else (nn.AdaptiveAvgPool2d(1), [])
    network_ = nn.Sequential(Blocks(*stages), pool, nn.Flatten()).to(memory_format=torch.channels_last)
    blocks = [f"0.{i}" for i in range(len(stages))]
    return Backbone(network_, blocks, tail, blocks[-1], 224, False, IMAGENET)


def _stages(model: nn.Module) -> list[nn.Module]:
    """Cut a convolutional network into blocks that begin where parameters do; the classifier is left out."""
    if hasattr(model, "layer4"):
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        return [stem, *model.layer1, *model.layer2, *model.layer3, *model.layer4]
    groups: list[list[nn.Module]] = []
    for child in model.features:
        if any(True for _ in child.parameters()):
            groups.append([])
        groups[-1].append(child)
    return [nn.Sequential(*group) for group in groups]
