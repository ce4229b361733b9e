"""Pretrained weights: found in a folder or downloaded, read, and loaded where they fit."""

from __future__ import annotations

import re
import sys
import types
import warnings
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError  # what torch.load(weights_only=True) raises: nothing is unpickled here
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rectrio_lib import resources


def find_state(name: str) -> tuple[dict[str, torch.Tensor] | None, str]:
    """Find pretrained weights: a file in `RECTRIO_WEIGHTS`, else the official download.

    A file is found by the network's name: squeezenet1_0-imagenet.safetensors, resnet50-11ad3fa6.pth, ViT-B-32.pt.

    Args:
        name: family and network, such as "clip:ViT-B/32".

    Returns:
        The weights by name, and the file they came from; None, which announces a stand-in, if they are not to be had.

    Raises:
        ValueError: if a file is damaged.
    """
    family, network = name.split(":")
    root, stem = resources.weights_root(), network.replace("/", "-")
    pattern = re.compile(rf"{re.escape(stem)}(-\w+)?\.(safetensors|pth|pt)")
    files = sorted(p for p in root.glob("*") if pattern.fullmatch(p.name)) if root.is_dir() else []
    if files:
        return _read_state(files[0]), str(files[0])
    reason = "downloads are switched off (RECTRIO_OFFLINE=1)"
    if not resources.offline():
        try:
            path = resources.download_weights(*_official(family, network))
            return _read_state(path), str(path)
        except (OSError, HTTPException, RuntimeError) as error:
            reason = f"the download failed ({str(error).strip()})"
    print(f"STAND-IN: {root} holds no {stem} weights and {reason}: using a random network. Its answers mean nothing.")
    return None, ""


def _official(family: str, network: str) -> tuple[str, str]:
    """Return the address of the official weights, and the sha256 (or its beginning) that they must have."""
    if family == "clip":
        url = clip_module().clip._MODELS[network]
        return url, url.split("/")[-2]
    from torchvision import models

    url = models.get_model_weights(network).DEFAULT.url
    return url, Path(urlparse(url).path).stem.rpartition("-")[2]


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read safetensors, a plain state dict, or OpenAI's TorchScript archive."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is damaged or holds no weights: delete it and fetch it again.") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no plain weights: it should map names to tensors and nothing else.")
    return state


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():  # torch.jit is deprecated, but CLIP's files are its archives
            warnings.simplefilter("ignore", FutureWarning)
            return torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError:  # no archive
        return torch.load(path, map_location="cpu", weights_only=True)


def fill(module: nn.Module, state: dict[str, torch.Tensor], where: str | Path) -> None:
    """Load weights that must fit exactly.

    Raises:
        ValueError: if a key is missing, foreign, or of another shape; the message names the first of them.
    """
    wrong = sorted({key for key, _ in _shapes(state) ^ _shapes(module.state_dict())})
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"The weights in {where} are of another architecture: {', '.join(wrong[:5])}{more} do not match."
        )
    module.load_state_dict(state, strict=False)  # old files lack the counters that `_shapes` passes over


def _shapes(state: dict[str, torch.Tensor]) -> set[tuple[str, torch.Size]]:
    return {(key, value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}


def clip_module() -> types.ModuleType:
    """Import OpenAI's `clip`; its older wheels want a name that current setuptools lacks.

    Raises:
        ModuleNotFoundError: if it is not installed, or the package of that name is another one.
    """
    import packaging.version

    before, stand_in = sys.modules.get("pkg_resources"), types.ModuleType("pkg_resources")
    sys.modules["pkg_resources"], stand_in.packaging = stand_in, packaging
    try:
        return _import_clip()
    finally:
        if before is None:
            del sys.modules["pkg_resources"]
        else:
            sys.modules["pkg_resources"] = before


def _import_clip() -> types.ModuleType:
    try:
        import clip
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"CLIP needs a package that is not installed ({error.name}): pip install 'rectrio[clip]'."
        ) from error
    if not hasattr(clip, "tokenize"):
        raise ModuleNotFoundError(
            f"{clip.__file__} is another `clip` than OpenAI's: pip uninstall clip, then pip install 'rectrio[clip]'."
        )
    return clip
