"""Any torch module as an encoder, saved by reference to the code that builds it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.weights import load_weights

REFERENCE = re.compile(r"(?!__main__)[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # package.module:name

TRUST = "RECTRIO_TRUST"  # references that a card may name, separated by commas
_named: set[str] = set()  # those that this process gave to `from_module`


class ModuleEncoder(Encoder):
    """A torch module that maps float32 images (B, C, H, W) to vectors (B, D); arguments as for `from_module`."""

    kind = "module"

    def __init__(
        self,
        size: int,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        channels: int = 3,
        reference: str = "",
        arguments: dict[str, Any] | None = None,
        module: nn.Module | None = None,
    ):
        mean, std = (np.asarray(value, float).tolist() for value in (mean, std))
        scaling = {"size": size, "mean": mean, "std": std, "channels": channels}
        super().__init__(**scaling, reference=reference, arguments=arguments or {})
        self.module = _build(reference, arguments or {}) if module is None else module
        self.eval()
        weights = next(self.parameters(), torch.empty(0))
        with torch.no_grad():
            vectors = self.module(torch.zeros(1, channels, size, size, device=weights.device))
        shape = tuple(vectors.shape) if isinstance(vectors, torch.Tensor) else (type(vectors).__name__,)
        if len(shape) != 2 or shape[0] != 1:
            raise ArgumentError(f"The module turns one image into {shape}: expected a tensor of shape (1, dimensions).")
        self.dim = vectors.shape[1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, dim), unit length."""
        return F.normalize(self.module(images).float())


def from_module(
    module: nn.Module,
    size: int,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    channels: int = 3,
    reference: str = "",
    arguments: dict[str, Any] | None = None,
) -> ModuleEncoder:
    """Use a torch module as an encoder: trained, searched with and saved like any other.

    Opening a saved one imports and calls `reference`. A card could name any function that way, so another process does
    it only if you name the same reference there: in RECTRIO_TRUST, or by calling `from_module` with it first.

    Args:
        module: maps float32 images (B, C, size, size) to vectors (B, D); they are scaled to unit length.
        size: side of the square images in pixels.
        mean: subtracted from pixels in 0..1; one number, or one per channel.
        std: what they are divided by then.
        channels: 1 for grey, 3 for colour.
        reference: "package.module:name" of the class or function that builds the module; needed to save it.
        arguments: keywords that it is called with, as JSON can hold them.

    Raises:
        ArgumentError: if the module does not give one vector per image, or the reference builds something else.
    """
    if reference:
        _named.add(reference)
        try:
            json.dumps(arguments)
            load_weights(_build(reference, arguments or {}), module.state_dict(), "the module")
        except (DataError, TypeError) as error:
            raise ArgumentError(f"reference={reference!r} does not build this module: {error}") from error
    return ModuleEncoder(size, mean, std, channels, reference, arguments, module)


def _build(reference: str, arguments: dict[str, Any]) -> nn.Module:
    if not isinstance(reference, str) or not REFERENCE.fullmatch(reference):
        raise DataError(f"{reference!r} is not the import path of a class or function, such as 'mypackage.nets:build'.")
    if reference not in _named | {*os.environ.get(TRUST, "").split(",")}:
        raise DataError(
            f"To open this encoder, {reference} would be imported and called, and you have not named it: if you trust "
            f"that code, set {TRUST}={reference}."
        )
    package, _, name = reference.partition(":")
    try:
        factory = getattr(import_module(package), name)
        module = factory(**arguments)
    except (ImportError, AttributeError) as error:
        raise DataError(f"{reference} cannot be imported ({error}): install or restore it.") from error
    except TypeError as error:
        raise DataError(f"{reference} is not callable with {arguments}: {error}.") from error
    if not isinstance(module, nn.Module):
        raise DataError(f"{reference} builds a {type(module).__name__}: expected a torch module.")
    return module
