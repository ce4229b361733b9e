"""All kinds of encoders: saved, loaded, told apart by a fingerprint."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rectrio_lib.core import files
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.base import Encoder, RawPixels
from rectrio_lib.encoders.convnet import ConvNet
from rectrio_lib.encoders.dual import DualEncoder
from rectrio_lib.encoders.pretrained import Pretrained
from rectrio_lib.encoders.weights import load_weights

GOLDEN_TOLERANCE = 1e-4  # above the rounding of float32; GELU in the place of QuickGELU moves vectors by 2e-4 and more
KINDS: dict[str, type[Encoder]] = {cls.kind: cls for cls in (RawPixels, ConvNet, Pretrained, DualEncoder)}


def count_parameters(encoder: Encoder) -> int:
    """Count the numbers that training may change."""
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def variants(name: str) -> list[str]:
    """Return the saved encoders called <name>-…, such as the untrained one that a trained one is compared with."""
    return sorted(p.parent.name for p in (Workspace().outputs / "encoders").glob(f"{name}-*/encoder.json"))


def save_encoder(encoder: Encoder, name: str, trained_on: str = "", seed: int | None = None) -> Path:
    """Write weights.safetensors and encoder.json to outputs/encoders/<name>/.

    Args:
        encoder: what to save.
        name: such as "fashion-triplet".
        trained_on: hash of the training data's manifest; empty for an untrained encoder.
        seed: the seed it was trained with.
    """
    folder = Workspace().outputs / "encoders" / name
    with files.replaced_folder(folder) as fresh:
        save_file({k: v.contiguous().cpu() for k, v in encoder.state_dict().items()}, fresh / "weights.safetensors")
        card = {"name": name, "kind": encoder.kind, "arguments": encoder.arguments, "dim": encoder.dim}
        card |= {
            "preprocessing": encoder.preprocessing,
            "activation": encoder.activation,
            "stand_in": encoder.stand_in,
            "texts": getattr(encoder, "text_tower", None) is not None,
            "golden": _golden(encoder),
        }
        card |= {"trained_on": trained_on, "seed": seed, "hash": fingerprint(encoder)}
        card["versions"] = {package: version(package) for package in ("rectrio", "torch")}
        files.write_json(fresh / "encoder.json", card)
    return folder


def load_encoder(name: str, made_by: str = "02_train_fashion_triplet") -> Encoder:
    """Open a saved encoder, in evaluation mode, on the CPU.

    Args:
        name: as given to `save_encoder`.
        made_by: the chapter that makes it, for the error message.

    Raises:
        resources.MissingArtefact: if it is not there.
        ValueError: if the kind is unknown, the weights are damaged, or do not fit it; the message names the keys.
    """
    folder = Workspace().require("encoders", name, f"rectrio run --only {made_by[:2]}")
    card = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    if card["kind"] not in KINDS:
        raise ArgumentError(f"{folder} holds an encoder of kind {card['kind']!r}; known kinds: {', '.join(KINDS)}.")
    encoder = KINDS[card["kind"]](**card["arguments"])
    try:
        state = load_file(folder / "weights.safetensors")
    except SafetensorError as error:
        raise ArgumentError(f"{folder / 'weights.safetensors'} is damaged: train the encoder again.") from error
    load_weights(encoder, state, folder)
    if fingerprint(encoder) != card["hash"]:
        raise ArgumentError(f"The weights in {folder} are not the ones its encoder.json describes: train it again.")
    then, golden = card["activation"], card.get("golden", 0)
    if encoder.activation != then or not np.allclose(_golden(encoder), golden, atol=GOLDEN_TOLERANCE):
        raise ArgumentError(
            f"{folder} gives other vectors than when it was saved, with {card['versions']}: another version of a "
            f"package builds another network (activation then {then!r}, now {encoder.activation!r}). Train it again."
        )
    return encoder


@torch.inference_mode()
def _golden(encoder: Encoder) -> list[list[float]]:
    """The beginning of the vectors of two pictures that never change."""
    channels, size = encoder.preprocessing["channels"], encoder.preprocessing["size"]
    pixels = (torch.arange(2 * channels * size * size) ** 2 // 97 % 256).to(torch.uint8)
    images = encoder.cpu().eval().prepare(pixels.view(2, channels, size, size))
    return encoder(images)[:, :16].double().numpy().round(6).tolist()


def fingerprint(encoder: Encoder) -> str:
    """Hash of kind, arguments, preprocessing and weights: equal vectors come from equal fingerprints.

    An exported encoder, whose weights lie elsewhere, carries its fingerprint with it.
    """
    if encoder.stamp:
        return encoder.stamp
    digest = hashlib.sha256(json.dumps([encoder.kind, encoder.arguments, encoder.preprocessing]).encode())
    for key, value in sorted(encoder.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
