"""Encoders for Intel processors: exported to OpenVINO, compared with torch, and loaded back as encoders like any other.

An export lies below its encoder, in outputs/encoders/<name>/openvino-<precision>/, and carries its fingerprint, so that
its indexes accept the vectors. fp32 computes in float32 and is refused if it ranks images differently from torch. fp16
takes half the disk, computes in 16 bits where the processor has them, and is refused if its vectors deviate.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError, needing
from rectrio_lib.core.files import replaced_folder, restore_folder, write_json
from rectrio_lib.core.workspace import Workspace, read_card
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.registry import build_encoder, encoder_card, load_encoder

REQUIRED = {"fp32": {"cosine": 0.999, "same top-10": 0.99}, "fp16": {"cosine": 0.999}}
TOWERS = ("pictures", "texts")  # names of the exported files
BATCH = 32
NEIGHBOURS = 10
TIE = 1e-5  # similarities closer than this differ only by the order of additions
Images = np.ndarray | Sequence[np.ndarray]
Tower = Callable[[torch.Tensor], torch.Tensor]


class OpenVinoEncoder(Encoder):
    """An encoder whose network runs in OpenVINO on the processor, made from its source and {"pictures": tower, …}."""

    kind = "openvino"

    def __init__(self, source: Encoder, towers: Mapping[str, Tower], stamp: str):
        super().__init__(**source.arguments)
        self.dim, self.preprocessing, self.prepare = source.dim, source.preprocessing, source.prepare
        self.activation, self.stand_in, self.stamp = source.activation, source.stand_in, stamp
        self.image_tower = towers["pictures"]
        if "texts" in towers:
            self.text_tower, self.tokenize = towers["texts"], source.tokenize

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, dim), unit length, on the CPU."""
        return self.image_tower(images)


def export_encoder(
    name: str, images: Images, texts: Sequence[str] = (), precision: str = "fp32", workspace: Workspace | None = None
) -> pd.DataFrame:
    """Export the towers of a saved encoder, and compare them with torch; if refused, the previous export stays.

    Args:
        name: of the encoder, below outputs/encoders/.
        images: some hundred of the user's own images, uint8 (N, C, H, W) as the encoder takes them.
        texts: some descriptions, for an encoder with a text tower.
        precision: "fp32" or "fp16".
        workspace: where the encoder lies.

    Returns:
        One row per tower: how many inputs were compared, their `agreement` with torch in float32, and megabytes.

    Raises:
        ArgumentError: if the vectors differ too much, images or texts are too few, or the precision is unknown.
        MissingPackageError: if openvino is not installed.
        MissingArtefactError: if there is no such encoder.
    """
    folder, openvino = exported_folder(name, precision, workspace), _openvino()
    encoder = load_encoder(name, workspace)
    if len(images) <= NEIGHBOURS:
        raise ArgumentError(f"{len(images)} readable images cannot show whether neighbours stay the same: give 100.")
    inputs = {"pictures": encoder.prepare(torch.from_numpy(np.array(images)))}
    if getattr(encoder, "text_tower", None) is not None:
        if len(texts) < 2:
            raise ArgumentError("This encoder has a text tower: give descriptions to compare it on (--texts FILE).")
        inputs["texts"] = encoder.tokenize(list(texts))
    with replaced_folder(folder) as fresh:
        for tower, batch in inputs.items():
            model = convert(_tower(encoder, tower), batch)
            openvino.save_model(model, fresh / f"{tower}.xml", compress_to_fp16=precision == "fp16")
        report = _compare(encoder, fresh, precision, inputs)
        _refuse(report, name, precision)
        source = encoder_card(name, workspace)["hash"]
        card = {"name": name, "precision": precision, "made_from": source, "hash": source, "files": _digests(fresh)}
        card |= {"report": report.to_dict("records")}
        card["versions"] = {package: version(package) for package in ("rectrio", "torch", "openvino")}
        write_json(fresh / "card.json", card)
    return report


def load_exported(name: str, precision: str = "fp32", workspace: Workspace | None = None) -> OpenVinoEncoder:
    """Open an exported encoder; arguments as for `export_encoder`.

    Raises:
        MissingArtefactError: if it was not exported in that precision.
        DataError: if the export is damaged, or belongs to an earlier encoder of that name.
        MissingPackageError: if openvino is not installed.
    """
    folder = exported_folder(name, precision, workspace)
    command = f"`rectrio export {name} FOLDER --precision {precision}`"
    _openvino()
    restore_folder(folder)
    if not folder.is_dir():
        raise MissingArtefactError(f"{folder} is missing: {command} makes it.")
    card, source = read_card(folder / "card.json"), encoder_card(name, workspace)
    if card.get("made_from") != source["hash"]:
        was = f"{folder} was made from encoder {card.get('made_from')}"
        raise DataError(f"{was}, but {name} is {source['hash']}: make it again, {command}.")
    towers = [tower for tower in TOWERS if (folder / f"{tower}.xml").is_file()]
    if "pictures" not in towers or card.get("files") != _digests(folder):
        raise DataError(f"{folder} is damaged: make it again, {command}.")
    with torch.device("meta"):  # the source without memory for weights, which OpenVINO holds
        shell = build_encoder(source, folder.parent)
    return OpenVinoEncoder(shell, {t: compiled(folder / f"{t}.xml", precision) for t in towers}, source["hash"])


def exported_folder(name: str, precision: str, workspace: Workspace | None = None) -> Path:
    """Return where the export of an encoder lies, or would lie."""
    if precision not in REQUIRED:
        raise ArgumentError(f"precision={precision!r}: choose one of {', '.join(REQUIRED)}.")
    return (workspace or Workspace()).path("encoders", name) / f"openvino-{precision}"


def convert(module: nn.Module, inputs: torch.Tensor) -> Any:
    """Convert a network, one tensor in, one out, to an `openvino.Model` for batches of any size, like `inputs`."""
    openvino = _openvino()
    shape = openvino.PartialShape([-1, *inputs.shape[1:]])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter traces with torch.jit, which is deprecated
        return openvino.convert_model(module.eval(), example_input=inputs[:2], input=[shape])


def compiled(model: Any, precision: str, **properties: Any) -> Tower:
    """Compile an `openvino.Model`, or its .xml file, for the processor: a function of tensors."""
    core = _openvino().Core()
    core.set_property({"ENABLE_MMAP": False})  # Windows could not replace files that are mapped
    exact = {"INFERENCE_PRECISION_HINT": "f32"} if precision == "fp32" else {}
    network = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **exact, **properties})
    return lambda batch: torch.from_numpy(network(np.ascontiguousarray(batch.cpu().numpy()))[0])


def agreement(
    vectors: torch.Tensor, exported: torch.Tensor, galleries: tuple[torch.Tensor, torch.Tensor] | None = None
) -> dict[str, float]:
    """Compare unit vectors (Q, D) of the same queries from two networks, of which the first is the reference.

    Each searches in its own of the galleries (N, D); by default among the queries, each without itself.

    Returns:
        {"cosine": the lowest, "mean cosine", "same top-10": share of queries whose ten nearest are also the ten nearest
        by the reference, "neighbours kept": share of neighbours that are}; neighbours within TIE count as equal.
    """
    cosine = F.cosine_similarity(vectors, exported)
    pairs = zip((vectors, exported), galleries or (vectors, exported), strict=True)
    expected, actual = (queries @ gallery.T for queries, gallery in pairs)
    if galleries is None:
        for similarities in (expected, actual):
            similarities.fill_diagonal_(-torch.inf)
    tenth = expected.topk(NEIGHBOURS).values[:, -1:]
    kept = (expected.gather(1, actual.topk(NEIGHBOURS).indices) >= tenth - TIE).double()
    figures = {"cosine": cosine.min(), "mean cosine": cosine.mean()}
    figures |= {"same top-10": kept.prod(1).mean(), "neighbours kept": kept.mean()}
    return {name: float(figure) for name, figure in figures.items()}


def _tower(encoder: Encoder, name: str) -> nn.Module:
    return encoder if name == "pictures" else encoder.text_tower


def _compare(encoder: Encoder, folder: Path, precision: str, inputs: dict[str, torch.Tensor]) -> pd.DataFrame:
    rows, galleries = [], None
    for tower, batch in inputs.items():
        towers = _tower(encoder, tower), compiled(folder / f"{tower}.xml", precision)
        with torch.inference_mode():
            pair = tuple(torch.cat([run(part).float() for part in batch.split(BATCH)]) for run in towers)
        rows.append({"tower": tower, "compared": len(batch), **agreement(*pair, galleries)})
        rows[-1]["MB"] = round((folder / f"{tower}.bin").stat().st_size / 1e6, 1)
        galleries = galleries or pair
    return pd.DataFrame(rows)


def _refuse(report: pd.DataFrame, name: str, precision: str) -> None:
    for row in report.to_dict("records"):
        low = [f"{k} {row[k]:.4f} (at least {x})" for k, x in REQUIRED[precision].items() if not row[k] >= x]
        if low:
            raise ArgumentError(
                f"{name} is not exported in {precision}: OpenVINO agrees too little with torch on {row['compared']} "
                f"{row['tower']}: {', '.join(low)}."
            )


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted([*folder.glob("*.xml"), *folder.glob("*.bin")])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _openvino() -> ModuleType:
    # Where this module is there, each conversion is reported to the makers of OpenVINO; images are nobody's business.
    sys.modules.setdefault("openvino_telemetry", None)
    with needing("OpenVINO", "openvino"):
        return import_module("openvino")
