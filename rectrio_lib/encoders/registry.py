"""All kinds of encoders: saved, loaded, identified by a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rectrio_lib.core import files
from rectrio_lib.core.errors import ArgumentError, DataError, MissingPackageError
from rectrio_lib.core.workspace import Card, Workspace, read_card
from rectrio_lib.encoders.adapted import Adapted
from rectrio_lib.encoders.base import Encoder, RawPixels
from rectrio_lib.encoders.convnet import ConvNet
from rectrio_lib.encoders.dual import DualEncoder
from rectrio_lib.encoders.families.clip import CLIP_NETWORKS
from rectrio_lib.encoders.module import ModuleEncoder
from rectrio_lib.encoders.pretrained import Pretrained
from rectrio_lib.encoders.weights import load_weights

GOLDEN_TOLERANCE = 1e-4  # above the rounding of float32; GELU in the place of QuickGELU moves vectors by 2e-4 and more
CLASSES = (RawPixels, ConvNet, Pretrained, DualEncoder, ModuleEncoder, Adapted)
KINDS: dict[str, type[Encoder]] = {c.kind: c for c in CLASSES}
FAMILIES = ("clip", "lite", "timm", "torchvision")
CARD = {"kind": str, "arguments": dict, "preprocessing": {"size": int, "channels": int}, "activation": str}
CARD |= {"golden": list, "hash": str}
CHAPTERS = {"fashion-triplet": "02", "animals": "03", "fashion-dual": "06", "products": "07"}


def count_parameters(encoder: Encoder) -> int:
    """Count the trainable parameters."""
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def variants(name: str, workspace: Workspace | None = None) -> list[str]:
    """Return the saved encoders called <name>-…, such as the untrained one that a trained one is compared with."""
    home = (workspace or Workspace()).outputs / "encoders"
    return sorted(p.parent.name for p in home.glob(f"{name}-*/encoder.json"))


def save_encoder(
    encoder: Encoder, name: str, trained_on: str = "", seed: int | None = None, workspace: Workspace | None = None
) -> Path:
    """Write weights.safetensors and encoder.json to outputs/encoders/<name>/.

    Args:
        encoder: what to save.
        name: such as "fashion-triplet".
        trained_on: hash of the training data's manifest; empty for an untrained encoder.
        seed: the seed it was trained with.
        workspace: where to save it.

    Raises:
        ArgumentError: if it could not be loaded again: an unknown kind, or a module without a reference.
        StorageError: if the folder cannot be written; what was there stays.
    """
    if encoder.kind not in KINDS or encoder.arguments.get("reference") == "":
        raise ArgumentError(
            f"An encoder of kind {encoder.kind!r} without a reference cannot be saved (kinds that can: "
            f"{', '.join(KINDS)}): give from_module the import path of what builds it, reference='package.module:name'."
        )
    folder = (workspace or Workspace()).path("encoders", name)
    shown = ("kind", "arguments", "dim", "preprocessing", "activation", "stand_in")
    card = {key: getattr(encoder, key) for key in shown}
    card |= {"name": name, "random_weights": encoder.stand_in, "golden": _golden(encoder)}
    card |= {"texts": getattr(encoder, "text_tower", None) is not None, "hash": fingerprint(encoder)}
    card |= {"trained_on": trained_on, "seed": seed, "versions": {p: version(p) for p in ("rectrio", "torch")}}
    with files.replaced_folder(folder) as fresh:
        save_file({k: _bare(v).clone() for k, v in encoder.state_dict().items()}, fresh / "weights.safetensors")
        files.write_json(fresh / "encoder.json", card)
    return folder


def load_encoder(name: str, workspace: Workspace | None = None) -> Encoder:
    """Open what `save_encoder` wrote, in evaluation mode, on the CPU.

    Raises:
        MissingArtefactError: if it is not there; the message names the command that makes it.
        DataError: if its files are damaged or were changed, or it cannot be built as it was; the message names them.
        MissingPackageError: if it needs a package that is not installed.
    """
    card, folder = encoder_card(name, workspace), (workspace or Workspace()).path("encoders", name)
    path, again = folder / "weights.safetensors", f"make it again, `{_command(name)}`."
    try:
        state = load_file(path)
        digest = _digest([card["kind"], card["arguments"], card["preprocessing"]], state)
    except (SafetensorError, OSError, RecursionError) as error:
        raise DataError(f"{path} is missing or damaged: {again}") from error
    if digest != card["hash"]:
        raise DataError(f"{path} or encoder.json beside it was changed, or they are of two encoders: {again}")
    encoder = build_encoder(card, folder)
    load_weights(encoder, state, path)
    encoder.eval()
    if not _as_saved(encoder, card):
        raise DataError(
            f"{folder} gives other vectors than when it was saved, with {card.get('versions')}: a package changed "
            f"(activation then {card['activation']!r}, now {encoder.activation!r}); {again}"
        )
    return encoder


def encoder_card(name: str, workspace: Workspace | None = None) -> Card:
    """Read the card of a saved encoder; errors as for `load_encoder`."""
    return read_card((workspace or Workspace()).require("encoders", name, _command(name)) / "encoder.json", CARD)


def build_encoder(card: Card, folder: Path) -> Encoder:
    """Build the encoder that a card describes, with random weights; errors as for `load_encoder`."""
    path, kind = folder / "encoder.json", card["kind"]
    if kind not in KINDS:
        raise DataError(f"{path} holds an encoder of kind {kind!r}; known kinds: {', '.join(KINDS)}.")
    try:
        return KINDS[kind](**card["arguments"])
    except MissingPackageError:
        raise
    except Exception as error:  # a card may hold anything
        raise DataError(f"{path} describes an encoder that cannot be built here: {error}") from error


def backbone_called(name: str) -> str:
    """Return the backbone that is saved as "lite-efficientnet_lite0", say, once it is used; empty: none is."""
    parts = []
    for part in name.split("+"):
        family, _, network = part.partition("-")
        if family not in FAMILIES:
            return ""
        network = next((n for n in CLIP_NETWORKS if n.replace("/", "-") == network), network)
        parts.append(f"{family}:{network}")
    return "+".join(parts)


def _command(name: str) -> str:
    if name.endswith("-tuned"):
        return "rectrio build FOLDER"
    for ending, option in {"-whitened": " --whiten yes", "-mirrored": " --mirror"}.items():
        if name.endswith(ending):
            return f"rectrio index FOLDER{option}"
    if backbone := backbone_called(name):
        return f"rectrio index FOLDER --backbone {backbone}"
    chapter = next((number for start, number in CHAPTERS.items() if name.startswith(start)), "")
    return f"rectrio run --only {chapter}" if chapter else f"rt.save_encoder(encoder, {name!r})"


def _as_saved(encoder: Encoder, card: Card) -> bool:
    preprocessing = json.loads(json.dumps(encoder.preprocessing))
    if (encoder.activation, preprocessing) != (card["activation"], card["preprocessing"]):
        return False
    try:
        return np.allclose(_golden(encoder), card["golden"], atol=GOLDEN_TOLERANCE)
    except (TypeError, ValueError):  # not numbers, or not as many
        return False


def _golden(encoder: Encoder) -> list[list[float]]:
    """The beginning of the vectors of two images that never change."""
    channels, size = encoder.preprocessing["channels"], encoder.preprocessing["size"]
    pixels = (torch.arange(2 * channels * size * size) ** 2 // 97 % 256).to(torch.uint8)
    encoder.cpu().eval()  # not in inference mode, see `Encoder.encode`
    with torch.inference_mode():
        vectors = encoder(encoder.prepare(pixels.view(2, channels, size, size)))
    return vectors[:, :16].double().numpy().round(6).tolist()


def fingerprint(encoder: Encoder) -> str:
    """Hash of kind, arguments, preprocessing and weights: equal vectors come from equal fingerprints."""
    described = [encoder.kind, encoder.arguments, encoder.preprocessing]
    return encoder.stamp or _digest(described, encoder.state_dict())


def _digest(described: list[Any], state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(described).encode())
    for key, value in sorted(state.items()):
        digest.update(key.encode() + _bare(value).flatten().view(torch.uint8).numpy().tobytes())  # bfloat16 too
    return digest.hexdigest()[:16]


def _bare(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().contiguous()
