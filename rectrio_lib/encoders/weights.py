"""Pretrained weights: found in a folder or downloaded, read, and loaded where they fit."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError  # what torch.load(weights_only=True) raises: nothing is unpickled here

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rectrio_lib.core import download
from rectrio_lib.core.errors import DataError, StorageError
from rectrio_lib.core.workspace import Workspace, offline

LOG = logging.getLogger(__name__)
State = Mapping[str, torch.Tensor]


def find_state(
    name: str, official: Callable[[], tuple[str, str] | State], workspace: Workspace | None = None
) -> tuple[State | None, str]:
    """Find pretrained weights: a file in the weights folder, such as resnet50-11ad3fa6.pth, else the official download.

    Args:
        name: family and network, such as "clip:ViT-B/32".
        official: returns the address of the official weights and their sha256, or its beginning; or fetches them.
        workspace: whose weights folder to use.

    Returns:
        The weights by name, and their file; None, with a warning, if they are unavailable.
    """
    state, where = look_for_state(name, official, workspace)
    if state is None:
        LOG.warning("STAND-IN: %s: using random weights. Results mean nothing.", where)
    return state, "" if state is None else where


def look_for_state(
    name: str, official: Callable[[], tuple[str, str] | State], workspace: Workspace | None = None
) -> tuple[State | None, str]:
    """Find weights as `find_state`; where there are none, return None and the reason, and warn of nothing."""
    workspace, stem = workspace or Workspace(), name.partition(":")[2].replace("/", "-")
    root, pattern = workspace.weights, re.compile(rf"{re.escape(stem)}(-\w+)?\.(safetensors|pth|pt)")
    files = sorted(p for p in root.glob("*") if pattern.fullmatch(p.name)) if root.is_dir() else []
    if files:
        return read_state(files[0]), str(files[0])
    reason = "downloads are switched off (RECTRIO_OFFLINE=1)"
    if not offline():
        try:
            found = official()
            if isinstance(found, Mapping):
                return found, f"the official weights of {name}"
            path = download.download_weights(*found, workspace=workspace)
            return read_state(path), str(path)
        except StorageError:  # random weights would hide that nothing can be kept
            raise
        except (OSError, HTTPException, RuntimeError) as error:
            reason = f"the download failed ({str(error).strip()})"
    return None, f"{root} holds no {stem} weights and {reason}"


def read_state(path: Path) -> State:
    """Read safetensors, a plain state dict, or OpenAI's TorchScript archive; DataError if it is nothing of these."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise DataError(f"{path} is damaged or holds no weights: delete it and fetch it again.") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{path} does not hold plain weights: expected a map of names to tensors and nothing else.")
    return state


def _read_torch(path: Path) -> State:
    try:
        with warnings.catch_warnings():  # torch.jit is deprecated, but CLIP's files are its archives
            warnings.simplefilter("ignore", FutureWarning)
            return torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError:  # not an archive
        return torch.load(path, map_location="cpu", weights_only=True)


def load_weights(module: nn.Module, state: State, where: str | Path) -> None:
    """Load weights that must fit exactly; `where` says in the message where they come from.

    Raises:
        DataError: if a key is missing, foreign, or of another shape; the message names the first of them.
    """
    wrong = sorted({key for key, _ in _shapes(state) ^ _shapes(module.state_dict())})
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DataError(
            f"The weights in {where} are of another architecture: {', '.join(wrong[:5])}{more} do not match."
        )
    module.load_state_dict(state, strict=False)  # old files lack the counters that `_shapes` passes over


def _shapes(state: State) -> set[tuple[str, torch.Size]]:
    return {(key, value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
