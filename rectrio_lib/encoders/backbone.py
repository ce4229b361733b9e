"""Pretrained networks as blocks that training can unfreeze from the end."""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.encoders.weights import State, load_weights

PROBED_SIDE = 96  # pixels of the image that tells how long the features are: a large one takes half a second
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Blocks(nn.Sequential):
    """Blocks in a row. With `checkpointing`, training keeps only their inputs and computes the rest again.

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
    """Generalised-mean pooling: (mean of x^p)^(1/p) over all positions, with one learned p, given its initial value.

    p = 1 is the average, p to infinity the maximum. Computed in float32: a power needs its digits.

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
    """A network that turns float32 (B, 3, H, W) into features (B, dim)."""

    def __init__(
        self,
        network: nn.Module,
        blocks: list[str],  # names, first to last
        tail: list[str],  # names of what follows the last block and learns: unfrozen with it
        spatial: str,  # name of the last module whose output has positions: (B, C, h, w), or (1 + h * w, B, C) in a ViT
        resolution: int,  # side in pixels that it was pretrained at
        fixed: bool,  # whether it takes no other resolution
        preprocessing: dict,  # {"mean", "std"} of the pretraining pixels in 0..1, for R, G, B
    ):
        super().__init__()
        self.network, self.blocks, self.tail, self.spatial = network, blocks, tail, spatial
        self.resolution, self.fixed, self.preprocessing = resolution, fixed, preprocessing
        side = resolution if fixed else min(resolution, PROBED_SIDE)
        with torch.no_grad():
            self.dim = self.eval()(torch.zeros(1, 3, side, side)).shape[1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, dim)."""
        return self.network(images)

    def unfreeze_last(self, count: int) -> None:
        """Make the last `count` blocks and what follows them trainable, and freeze all else."""
        if not 0 <= count <= len(self.blocks):
            raise ArgumentError(f"blocks={count}: this backbone has {len(self.blocks)} blocks, choose 0 to that.")
        trainable = [*self.blocks[len(self.blocks) - count :], *self.tail] if count else []
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(any(name == t or name.startswith(f"{t}.") for t in trainable))

    def set_grad_checkpointing(self, on: bool) -> None:
        """Save memory in training: keep only the inputs of blocks, and run each a second time for its gradients."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.checkpointing = on

    @property
    def activation(self) -> str:
        """Names of the activations inside, such as "quickgelu": weights mean nothing under another one."""
        named = {type(m).__name__ for m in self.modules() if re.search("ELU|SiLU|swish|ReLU", type(m).__name__)}
        return ", ".join(sorted(named)).lower()


def official_weights(network: str) -> tuple[str, str]:
    """Return the address of torchvision's default weights of a network, and the beginning of their sha256."""
    from torchvision import models

    url = models.get_model_weights(network).DEFAULT.url
    return url, url.rpartition("-")[2].partition(".")[0]


def torchvision_backbone(
    network: str, state: State | None = None, where: str = "", pooling: str = "average"
) -> Backbone:
    """Cut a torchvision network into blocks, with weights if a state is given, else with random ones."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.get_model(network, weights=None)
    if state is not None:
        load_weights(model, state, where)
    return pooled_backbone(_stages(model), pooling, 224, IMAGENET)


def pooled_backbone(stages: list[nn.Module], pooling: str, resolution: int, preprocessing: dict) -> Backbone:
    """Make a backbone of convolutional blocks in a row, their last maps pooled by "average" or "gem"."""
    pool, tail = (GeM(), ["1"]) if pooling == "gem" else (nn.AdaptiveAvgPool2d(1), [])
    network = nn.Sequential(Blocks(*stages), pool, nn.Flatten()).to(memory_format=torch.channels_last)
    blocks = [f"0.{i}" for i in range(len(stages))]
    return Backbone(network, blocks, tail, blocks[-1], resolution, False, preprocessing)


def _stages(model: nn.Module) -> list[nn.Module]:
    """Cut a convolutional network into blocks that begin where parameters do; the classifier is left out."""
    if hasattr(model, "layer4"):
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        return [stem, *model.layer1, *model.layer2, *model.layer3, *model.layer4]
    groups: list[nn.Sequential] = []
    for child in model.features:
        if any(True for _ in child.parameters()):
            groups.append(nn.Sequential())
        groups[-1].append(child)
    return groups
