"""Random pictures and small networks."""

import numpy as np
import torch

from makers.processes import in_another_process
from rectrio_lib.encoders.convnet import ConvNet
from rectrio_lib.encoders.pretrained import Pretrained
from rectrio_lib.encoders.registry import save_encoder

SQUEEZENET, RESNET, VIT, RN = "torchvision:squeezenet1_0", "torchvision:resnet18", "clip:ViT-B/32", "clip:RN50"
LITE = "lite:efficientnet_lite0"
ENCODE = """
import sys, numpy as np
from rectrio_lib import load_encoder
from rectrio_lib.core import device
device.best_precision = lambda device: "no"
np.save(sys.argv[2], load_encoder("net").encode(np.load(sys.argv[1])))
"""


def pictures(count=7, channels=1, size=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def small(seed=0, **changes):
    """A small network that has seen a few batches, so that its running statistics are not the initial ones."""
    torch.manual_seed(seed)
    network = ConvNet(**{"size": 12, "plan": (8, "M", 16), "dim": 10, "mean": 0.4, "std": 0.3, **changes})
    channels, size = network.preprocessing["channels"], network.preprocessing["size"]
    with torch.no_grad():
        for step in range(3):
            network.train()(network.prepare(torch.as_tensor(pictures(20, channels, size, step))))
    return network.eval()


def pretrained(backbone=SQUEEZENET, **options):
    """A backbone with random weights; CLIP as the small network that stands in for it, which takes 64 pixels only."""
    clip = backbone.startswith("clip:")
    return Pretrained(backbone, **{"size": 32, "resolution": 0 if clip else 32, "stand_in": clip, **options}).eval()


def same_in_a_new_process(encoder, images, folder):
    """Save an encoder as "net", and see that another process opens it with the same vectors, in full precision."""
    save_encoder(encoder, "net")
    np.save(folder / "images.npy", images)
    in_another_process(ENCODE, folder / "images.npy", folder / "vectors.npy")
    np.testing.assert_allclose(np.load(folder / "vectors.npy"), encoder.eval().encode(images), rtol=0, atol=1e-5)
