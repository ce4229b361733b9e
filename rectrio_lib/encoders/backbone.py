"""Pretrained networks as blocks that training can unfreeze from the end."""

from __future__ import annotations

import re
from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.encoders.weights import State, load_weights

PROBED_SIDE = 96  # pixels of the image that tells how long the features are: a large one takes half a second
NOTHING_FUSED = (), [], None  # versions of the weights, the weights, and the network made of them
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

    several = False  # whether it is several networks, see `families.fused`, which resize images by themselves

    def __init__(
        self,
        network: nn.Module,
        blocks: list[str | tuple[str, ...]],  # names of modules or parameters, one or several a block, first to last
        tail: list[str],  # names of what follows the last block and learns: unfrozen with it
        spatial: str,  # name of the last module whose output has positions: (B, C, h, w), or (1 + h * w, B, C) in a ViT
        resolution: int,  # side in pixels that it was pretrained at
        fixed: bool,  # whether it takes no other resolution
        preprocessing: dict,  # {"mean", "std"} of the pretraining pixels in 0..1, for R, G, B
    ):
        super().__init__()
        self.network, self.blocks, self.tail, self.spatial = network, blocks, tail, spatial
        self.resolution, self.fixed, self.preprocessing = resolution, fixed, preprocessing
        self._probed_side = resolution if fixed else min(resolution, PROBED_SIDE)
        self._fused: tuple = NOTHING_FUSED  # see `_for_inference`; in a tuple, it is no part of the state
        with torch.no_grad():
            self.dim = self.eval().network(torch.zeros(1, 3, self._probed_side, self._probed_side)).shape[1]

    def __getstate__(self) -> dict:
        """Leave out what was fused: a copy makes its own, and may go where this one's device is not."""
        return self.__dict__ | {"_fused": NOTHING_FUSED}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, dim)."""
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # they fuse by themselves
        if self.training or torch.is_grad_enabled() or images.is_meta or traced:
            return self.network(images)
        return self._for_inference(images.device)(images)

    def _for_inference(self, device: torch.device) -> nn.Module:
        """Return the network with its batch norms fused, made again when its weights have changed."""
        before, weights, fused = self._fused
        if fused is None or before != _versions(weights):
            weights = [*self.network.parameters(), *self.network.buffers()]
            probe = torch.rand(1, 3, self._probed_side, self._probed_side, generator=torch.Generator().manual_seed(0))
            with torch.autocast("cpu", enabled=False):
                fused = fuse_batch_norm(self.network, probe.to(device))
            self._fused = _versions(weights), weights, fused
        return fused

    def unfreeze_last(self, count: int) -> None:
        """Make the last `count` blocks and what follows them trainable, and freeze all else."""
        if not 0 <= count <= len(self.blocks):
            raise ArgumentError(f"blocks={count}: this backbone has {len(self.blocks)} blocks, choose 0 to that.")
        trainable = self.names_of_last(count)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(any(name == t or name.startswith(f"{t}.") for t in trainable))

    def names_of_last(self, count: int) -> list[str]:
        """Return the names of the modules or parameters that `unfreeze_last` makes trainable."""
        chosen = [*self.blocks[len(self.blocks) - count :], *self.tail] if count else []
        return [n for block in chosen for n in ([block] if isinstance(block, str) else block)]

    def set_grad_checkpointing(self, on: bool) -> None:
        """Save memory in training: keep only the inputs of blocks, and run each a second time for its gradients."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.checkpointing = on
            elif hasattr(module, "set_grad_checkpointing") and module is not self:  # a model of timm
                module.set_grad_checkpointing(on)

    @property
    def activation(self) -> str:
        """Names of the activations inside, such as "quickgelu": weights mean nothing under another one."""
        named = {type(m).__name__ for m in self.modules() if re.search("ELU|SiLU|swish|ReLU", type(m).__name__)}
        return ", ".join(sorted(named)).lower()


def _versions(weights: list[torch.Tensor]) -> tuple:
    return tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)


def fuse_batch_norm(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a copy for inference whose batch norms are part of the convolutions before them: the same vectors, sooner.

    What follows what is seen on an example (B, 3, H, W), to whose device the copy goes. The network itself is returned
    if it has no such batch norm, if somebody watches it by hooks, or if the copy computes something else.

    Source: Jacob et al., "Quantization and training of neural networks", CVPR 2018 (folding).
    """
    modules = [*network.modules()]
    if any(m._forward_hooks or m._forward_pre_hooks for m in modules):
        return network
    if not any(isinstance(m, nn.BatchNorm2d) for m in modules):  # nothing to fetch from a GPU for
        return network
    copied, made, pairs = deepcopy(network).cpu().eval(), [], []  # a GPU rounds too much to tell whether both agree
    device, example = example.device, example.cpu()

    def note(module: nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        made.append((module, output))

    def pair(module: nn.Module, given: tuple[torch.Tensor]) -> None:
        pairs.extend((convolution, module) for convolution, output in made if output is given[0])

    names = {module: name for name, module in copied.named_modules()}
    hooks = [m.register_forward_hook(note) for m in names if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(pair) for m in names if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        expected = copied(example)
        for hook in hooks:
            hook.remove()
        for convolution, norm in pairs:
            copied.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
            rest = nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()  # timm's activate, too
            copied.set_submodule(names[norm], rest)
        same = pairs and torch.allclose(copied(example), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    return copied.to(device) if same else network


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
