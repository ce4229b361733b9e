"""A pretrained backbone with a projection head: the encoder that fine-tuning produces."""

from __future__ import annotations

import difflib

import torch
import torch.nn.functional as F
from torch import nn

from rectrio_lib.core.device import best_device
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.backbone import Backbone, official_weights, torchvision_backbone
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.families import clip, fused, lite, timm
from rectrio_lib.encoders.weights import find_state

POOLINGS = ("average", "gem")
FAMILIES = ("convnext", "efficientnet", "mobilenet", "resnet", "resnext", "squeezenet", "vgg", "wide_resnet")
AUTO, LARGE, LIGHT = "auto", "clip:ViT-B/32", "lite:efficientnet_lite0"


def choose_backbone(name: str, workspace: Workspace | None = None) -> tuple[str, str]:
    """Return the name of a backbone, and why it is this one: "auto" is CLIP where there is a GPU, else the light one.

    A network of CLIP's size takes seconds for what the light one does in one on a processor.
    """
    if name != AUTO:
        return name, "it was named"
    if best_device() == "cpu":
        return LIGHT, f"there is no GPU, on which {LARGE} would be taken"
    reason = clip.why_unavailable(LARGE.partition(":")[2], workspace)
    return (LIGHT, f"there is a GPU, but no {LARGE}: {reason}") if reason else (LARGE, "there is a GPU")


def full_name(name: str) -> str:
    """Return the name of a backbone with the family of each part: of "lite:efficientnet_lite0+squeezenet1_0", two."""
    parts = name.split("+")
    if len(parts) == 1:
        return name
    known = {full.partition(":")[2]: full for full in backbone_names()}
    return "+".join(known.get(part, part) for part in parts)


def build_backbone(name: str, tiny: bool = False, pooling: str = "average", resolution: int = 0) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: family and network: "clip:ViT-B/32", "lite:efficientnet_lite0", "torchvision:squeezenet1_0", or
            "timm:NAME" of any image model of timm; or several, joined by "+", see `fused`.
        tiny: for CLIP, the stand-in: four blocks, 64 pixels.
        pooling: of the last feature maps, "average" or "gem" (see `GeM`); CLIP pools in its own way.
        resolution: of the parts of several, as far as they take it; 0: each that of its own pretraining.

    Raises:
        ArgumentError: if name or pooling is unknown, or they do not fit.
    """
    if "+" in name:
        return _fused([build_backbone(part, tiny, pooling) for part in full_name(name).split("+")], resolution)
    family, network = _checked(name, pooling)
    if family == "clip":
        return clip.clip_backbone(clip.build_clip(network, tiny))
    build = {"lite": lite.lite_backbone, "timm": timm.timm_backbone, "torchvision": torchvision_backbone}[family]
    return build(network, pooling=pooling)


def load_backbone(
    name: str, pooling: str = "average", workspace: Workspace | None = None, resolution: int = 0
) -> tuple[Backbone, bool]:
    """Load a pretrained backbone: a file in the weights folder, else the official download, else random weights.

    Returns:
        The backbone in evaluation mode, and whether its weights, or those of a part, are random, which is logged.

    Raises:
        ArgumentError: as `build_backbone`, whose arguments these are.
        DataError: if a file holds weights of another architecture.
        MissingPackageError: if `clip`, timm, or the package with Lite's weights is not installed.
    """
    if "+" in name:
        names = full_name(name).split("+")
        loaded = [load_backbone(part, pooling, workspace) for part in names]
        if any(random for _, random in loaded):  # then CLIP is as tiny as it will be when the encoder is opened
            loaded = [(build_backbone(part, True), True) if part.startswith("clip:") else backbone
                      for part, backbone in zip(names, loaded, strict=True)]  # fmt: skip
        return _fused([backbone for backbone, _ in loaded], resolution), any(random for _, random in loaded)
    family, network = _checked(name, pooling)
    if family == "clip":
        model, random = clip.load_clip(network, workspace)
        return clip.clip_backbone(model), random
    if family == "lite":
        return lite.lite_backbone(network, pooling, pretrained=True), False
    if family == "timm":
        state, where = timm.find_timm_state(network, workspace)
        return timm.timm_backbone(network, pooling, state, where), state is None
    state, where = find_state(name, lambda: official_weights(network), workspace)
    return torchvision_backbone(network, state, where, pooling), state is None


def backbone_names() -> list[str]:
    """Return the names of all backbones but those of timm, which has more than a thousand."""
    from torchvision import models

    torchvision = [n for n in models.list_models(models) if n.startswith(FAMILIES)]
    known = {"clip": clip.CLIP_NETWORKS, "lite": lite.NETWORKS, "torchvision": torchvision}
    return [f"{family}:{network}" for family, networks in known.items() for network in networks]


def _fused(parts: list[Backbone], resolution: int) -> Backbone:
    sides = [part.resolution if part.fixed else resolution or part.resolution for part in parts]
    return fused.fuse(parts, sides)


def _checked(name: str, pooling: str = "average") -> tuple[str, str]:
    if name.startswith("timm:"):
        timm.check_name(name.removeprefix("timm:"))
    elif name not in (names := backbone_names()):
        near = difflib.get_close_matches(name, names, 5, 0.5) or names
        raise ArgumentError(f"backbone={name!r} is unknown: choose one of {', '.join(near)}, or timm:NAME.")
    if pooling not in POOLINGS:
        raise ArgumentError(f"pooling={pooling!r} is unknown: choose one of {', '.join(POOLINGS)}.")
    family, _, network = name.partition(":")
    if pooling != "average" and family == "clip":
        raise ArgumentError(f"pooling={pooling!r}: {name} pools in its own way; leave pooling at 'average'.")
    return family, network


class ProjectionHead(Encoder):
    """Turns features (B, features), whatever their length, into unit vectors (B, dim); hidden=0: no hidden layer."""

    kind = "projection-head"

    def __init__(self, features: int, dim: int = 128, hidden: int = 0):
        super().__init__(features=features, dim=dim, hidden=hidden)
        self.dim, self.preprocessing = dim, {"features": features}
        layers = [nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(True)] if hidden else []
        self.project = nn.Sequential(*layers, nn.Linear(hidden or features, dim, bias=False))

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Take features as they are."""
        return images.float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, F) -> (B, dim), unit length; in float32: what whitening enlarges would be lost in 16 bits."""
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(self.project(F.normalize(images.float())))


class Headed(Encoder):
    """A pretrained backbone, or its last blocks, with a projection head or without (None).

    The batch-norm statistics of the backbone stay those of its pretraining.
    """

    backbone: nn.Module
    head: ProjectionHead | None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, dim), unit length."""
        features = self.backbone(images).float()
        return self.head(features) if self.head else F.normalize(features)

    def train(self, mode: bool = True) -> Headed:
        """Switch the mode; a frozen backbone, and any batch norm in one, stays in evaluation mode."""
        super().train(mode)
        frozen = not any(p.requires_grad for p in self.backbone.parameters())
        for module in self.backbone.modules():
            if frozen or isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = False
        return self

    def parameter_groups(self, learning_rate: float, backbone_rate: float) -> list[dict]:
        """Return head and unfrozen backbone, the latter at `backbone_rate` times the learning rate."""
        parts = [(self.head, learning_rate), (self.backbone, learning_rate * backbone_rate)]
        groups = [{"params": [p for p in m.parameters() if p.requires_grad], "lr": lr} for m, lr in parts if m]
        return [group for group in groups if group["params"]]


class Pretrained(Headed):
    """A pretrained backbone (see `backbone`), with a projection head or without.

    The constructor gives random weights: `load_pretrained` gives the real ones.

    Args:
        backbone: such as "clip:ViT-B/32"; see `build_backbone`.
        size: side in pixels of the square colour images it takes.
        resolution: side to which they are resized for the backbone; 0: that of its pretraining.
        dim: length of the vectors; 0 leaves the head out, and the vectors are the features.
        hidden: of the head.
        stand_in: whether the weights are random; CLIP is then a tiny network of its kind.
        texts: keep CLIP's text tower, `text_tower`, as well; a head would leave its space.
        pooling: see `build_backbone`.

    Raises:
        ArgumentError: if the backbone is unknown, or does not support the resolution, the pooling or texts.
    """

    kind = "pretrained"
    tokenize = staticmethod(clip.tokenize)  # what the text tower takes

    def __init__(
        self,
        backbone: str,
        size: int = 224,
        resolution: int = 0,
        dim: int = 0,
        hidden: int = 0,
        stand_in: bool = False,
        texts: bool = False,
        pooling: str = "average",
    ):
        backbone = full_name(backbone)
        arguments = {"backbone": backbone, "size": size, "resolution": resolution, "dim": dim, "hidden": hidden}
        # Default values are left out: encoders saved before these options existed keep their fingerprints.
        named = ({"texts": True} if texts else {}) | ({} if pooling == "average" else {"pooling": pooling})
        super().__init__(**arguments, stand_in=stand_in, **named)
        if texts:
            model = clip.build_clip(_network_with_texts(backbone, dim), stand_in)
            self.backbone, self.text_tower = clip.clip_backbone(model), clip.ClipTextTower(model)
        else:
            self.backbone = build_backbone(backbone, stand_in, pooling, resolution)
        native, self.stand_in = self.backbone.resolution, stand_in
        if self.backbone.fixed and not stand_in and resolution not in (0, native):
            raise ArgumentError(
                f"resolution={resolution}: {backbone} takes {native} only (or 0, which means the same)."
            )
        resolution = native if self.backbone.fixed else resolution or native
        self.preprocessing |= {"channels": 3, "resolution": resolution, **self.backbone.preprocessing}
        self.head = ProjectionHead(self.backbone.dim, dim, hidden) if dim else None
        self.dim = dim or self.backbone.dim

    @property
    def activation(self) -> str:
        """Names of the activations inside the backbone."""
        return self.backbone.activation

    def resize(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, size, size) -> (B, 3, resolution, resolution), bicubic; several backbones do it by themselves."""
        return images if self.backbone.several else fused.resized(images, self.preprocessing["resolution"])


def _network_with_texts(backbone: str, dim: int) -> str:
    if not backbone.startswith("clip:") or "+" in backbone or dim:
        given = f"{backbone} with a head of {dim} dimensions" if dim else backbone
        raise ArgumentError(f"{given} cannot read texts: take a CLIP backbone (clip:ViT-B/32) without a head (dim=0).")
    return _checked(backbone)[1]


def load_pretrained(
    backbone: str,
    size: int = 224,
    resolution: int = 0,
    dim: int = 0,
    hidden: int = 0,
    texts: bool = False,
    pooling: str = "average",
    workspace: Workspace | None = None,
) -> Pretrained:
    """Make an encoder of a pretrained backbone and an untrained head; see `Pretrained` and `load_backbone`."""
    if texts:
        model, random = clip.load_clip(_network_with_texts(backbone, dim), workspace)
        encoder = Pretrained(backbone, size, resolution, stand_in=random, texts=True)
        encoder.backbone, encoder.text_tower = clip.clip_backbone(model), clip.ClipTextTower(model)
    else:
        loaded, random = load_backbone(backbone, pooling, workspace, resolution)
        encoder = Pretrained(backbone, size, resolution, dim, hidden, random, pooling=pooling)
        encoder.backbone = loaded
    return encoder.eval()
