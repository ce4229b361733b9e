"""One network in OpenVINO: converted, quantised, compiled for the processor, and compared with torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rectrio_lib.core.errors import MissingPackageError

NEIGHBOURS = 10
TIE = 1e-5  # similarities closer than this are equal but for the order of additions
CALIBRATION = 300  # inputs that int8 looks at; more changes little
Tower = Callable[[torch.Tensor], torch.Tensor]


def convert(module: nn.Module, inputs: torch.Tensor, precision: str) -> Any:
    """Convert a network to an `openvino.Model` that takes batches of any size.

    Args:
        module: the network; one tensor in, one out.
        inputs: what it takes (N, …); int8 is calibrated on them.
        precision: "int8" quantises; the others differ in how they are saved and compiled.

    Raises:
        ModuleNotFoundError: if openvino, or nncf for int8, is not installed.
    """
    openvino = package("openvino")
    shape = openvino.PartialShape([-1, *inputs.shape[1:]])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter traces with torch.jit, which is deprecated
        model = openvino.convert_model(module.eval(), example_input=inputs[:2], input=[shape])
    return model if precision != "int8" else _quantise(module, model, inputs)


def _quantise(module: nn.Module, model: Any, inputs: torch.Tensor) -> Any:
    nncf = package("nncf")
    attention = any(isinstance(part, nn.MultiheadAttention) for part in module.modules())
    return nncf.quantize(
        model,
        nncf.Dataset([one[None].numpy() for one in inputs]),
        model_type=nncf.ModelType.TRANSFORMER if attention else None,
        subset_size=min(CALIBRATION, len(inputs)),
    )


def compiled(model: Any, precision: str, **properties: Any) -> Tower:
    """Compile an `openvino.Model` for the processor: a function of tensors.

    Args:
        model: the model, or the path of its .xml file.
        precision: "fp32" computes in float32; the others leave it to OpenVINO, which takes what is fastest here.
        **properties: more of the compiled model, by OpenVINO's names.

    Raises:
        ModuleNotFoundError: if openvino is not installed.
    """
    core = package("openvino").Core()
    core.set_property({"ENABLE_MMAP": False})  # Windows could not replace files that are mapped
    exact = {"INFERENCE_PRECISION_HINT": "f32"} if precision == "fp32" else {}
    network = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **exact, **properties})
    return lambda batch: torch.from_numpy(network(np.ascontiguousarray(batch.cpu().numpy()))[0])


def agreement(
    vectors: torch.Tensor, exported: torch.Tensor, galleries: tuple[torch.Tensor, torch.Tensor] | None = None
) -> dict[str, float]:
    """Compare unit vectors of the same queries from two networks.

    Args:
        vectors: (Q, D), the right ones.
        exported: (Q, D).
        galleries: of the two networks (N, D), to search in; None searches among the queries, each without itself.

    Returns:
        {"cosine": the least, "mean cosine", "same top-10": share of queries whose ten nearest are ten nearest by the
        right vectors too, "neighbours kept": share of neighbours that are}; neighbours within TIE count as equal.
    """
    cosine = F.cosine_similarity(vectors, exported)
    scores, found = (a @ b.T for a, b in zip((vectors, exported), galleries or (vectors, exported), strict=True))
    if galleries is None:
        for similarities in (scores, found):
            similarities.fill_diagonal_(-torch.inf)
    tenth = scores.topk(NEIGHBOURS).values[:, -1:]
    kept = (scores.gather(1, found.topk(NEIGHBOURS).indices) >= tenth - TIE).double()
    figures = {"cosine": cosine.min(), "mean cosine": cosine.mean()}
    figures |= {"same top-10": kept.prod(1).mean(), "neighbours kept": kept.mean()}
    return {name: float(figure) for name, figure in figures.items()}


def package(name: str) -> ModuleType:
    """Import openvino or nncf.

    Raises:
        ModuleNotFoundError: if it is not installed; the message says how to install it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"OpenVINO needs a package that is not installed ({error.name}): pip install 'rectrio[openvino]'."
        ) from error
