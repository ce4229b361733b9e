"""Encoders for Intel processors: exported to OpenVINO, compared with torch, and loaded back as encoders like any other.

An export lies below the encoder that it was made from, in outputs/encoders/<name>/openvino-<precision>/, and goes when
that one is saved anew. fp32 computes in float32, and is refused if it would find other pictures than torch. fp16 takes
half the disk, computes in 16 bits where the processor has them, and is refused if vectors turn away. Both carry the
fingerprint of the encoder, so its indexes take their vectors. int8 has weights and activations of eight bits,
calibrated on pictures; what it loses is told. Its fingerprint is its own: it needs an index of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from rectrio_lib.core import errors
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.files import replaced_folder, restore_folder, write_json
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import image_files
from rectrio_lib.encoders import openvino_network
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.openvino_network import NEIGHBOURS, Tower
from rectrio_lib.encoders.registry import KINDS, load_encoder

REQUIRED = {"fp32": {"cosine": 0.999, "same top-10": 0.99}, "fp16": {"cosine": 0.999}, "int8": {}}
MOST_PICTURES = 512  # taken from a folder
BATCH = 32


class OpenVinoEncoder(Encoder):
    """An encoder whose network runs in OpenVINO on the processor. It takes the pictures that its source takes.

    Args:
        source: the encoder that was exported; its weights are not used.
        towers: {"pictures": tower}, and {"texts": tower} of a source that has one: `text_tower`, with `tokenize`.
        stamp: fingerprint of its vectors.
    """

    kind = "openvino"

    def __init__(self, source: Encoder, towers: Mapping[str, Tower], stamp: str):
        super().__init__(**source.arguments)
        self.dim, self.preprocessing, self.prepare = source.dim, source.preprocessing, source.prepare
        self.activation, self.stand_in, self.stamp = source.activation, source.stand_in, stamp
        self.picture_tower = towers["pictures"]
        if "texts" in towers:
            self.text_tower, self.tokenize = towers["texts"], source.tokenize

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, dim), unit length, on the CPU."""
        return self.picture_tower(images)


def export_encoder(
    name: str, images: np.ndarray | str | Path, texts: Sequence[str] = (), precision: str = "fp32"
) -> pd.DataFrame:
    """Export the towers of a saved encoder, for batches of any size, and compare what was written with torch.

    int8 is calibrated on every other picture and compared on the rest. An export that is refused leaves the one before
    it in place.

    Args:
        name: of the encoder, below outputs/encoders/.
        images: some hundred of the user's own pictures: uint8 (N, C, H, W) as the encoder takes them, or a folder.
        texts: the same for the text tower of an encoder that has one.
        precision: "fp32", "fp16" or "int8".

    Returns:
        One row a tower: how many were compared, the figures of `openvino_network.agreement` with torch in
        float32 (texts are searched among the pictures), and megabytes.

    Raises:
        ValueError: if the vectors differ too much for the precision, there are too few pictures, no texts for a text
            tower, or no such precision.
        ModuleNotFoundError: if openvino, or nncf for int8, is not installed.
        resources.MissingArtefact: if there is no such encoder.
    """
    folder, openvino = exported_folder(name, precision), openvino_network.package("openvino")
    encoder, step = load_encoder(name), 2 if precision == "int8" else 1
    inputs = _inputs(encoder, images, texts)
    asked = {tower: batch[step - 1 :: step] for tower, batch in inputs.items()}
    if len(asked["pictures"]) <= NEIGHBOURS:
        count = len(inputs["pictures"])
        raise ArgumentError(
            f"{count} readable pictures cannot show whether the nearest stay the same: give some hundred."
        )
    with replaced_folder(folder) as fresh:
        for tower, batch in inputs.items():
            model = openvino_network.convert(_tower(encoder, tower), batch[::step], precision)
            openvino.save_model(model, fresh / f"{tower}.xml", compress_to_fp16=precision == "fp16")
        report = _compare(encoder, fresh, precision, asked)
        _refuse(report, name, precision)
        _write_card(fresh, name, precision, report)
    return report


def load_exported(name: str, precision: str = "fp32") -> OpenVinoEncoder:
    """Open an exported encoder.

    Args:
        name: of the encoder that was exported.
        precision: as it was exported.

    Raises:
        resources.MissingArtefact: if it was not exported in that precision.
        ValueError: if it was made from another encoder than the one that is there now, or is damaged.
        ModuleNotFoundError: if openvino is not installed.
    """
    folder, how = exported_folder(name, precision), f"`rectrio export {name} FOLDER --precision {precision}`"
    openvino_network.package("openvino")
    restore_folder(folder)
    if not folder.is_dir():
        raise errors.MissingArtefactError(f"{folder} is missing: make it with {how}.")
    card, source = (json.loads(path.read_text(encoding="utf-8")) for path in (folder / "card.json", _card_of(name)))
    if card["made_from"] != source["hash"]:
        told = f"{folder} was made from encoder {card['made_from']}, but {name} is {source['hash']}"
        raise ArgumentError(f"{told}: make it again, {how}.")
    if card["files"] != _digests(folder):
        raise ArgumentError(f"{folder} is damaged: make it again, {how}.")
    with torch.device("meta"):  # the source without memory for weights, which OpenVINO holds
        shell = KINDS[source["kind"]](**source["arguments"])
    towers = [row["tower"] for row in card["report"]]
    return OpenVinoEncoder(
        shell, {t: openvino_network.compiled(folder / f"{t}.xml", precision) for t in towers}, card["hash"]
    )


def exported_folder(name: str, precision: str) -> Path:
    """Return where the export of an encoder lies, or would.

    Raises:
        ValueError: if there is no such precision.
    """
    if precision not in REQUIRED:
        raise ArgumentError(f"precision={precision!r}: choose one of {', '.join(REQUIRED)}.")
    return Workspace().outputs / "encoders" / name / f"openvino-{precision}"


def _inputs(encoder: Encoder, images: np.ndarray | str | Path, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Turn pictures, and texts if there is a tower for them, into what the towers take."""
    images = images if isinstance(images, np.ndarray) else _read(Path(images).expanduser(), encoder)
    inputs = {"pictures": encoder.prepare(torch.from_numpy(np.array(images)))}
    if getattr(encoder, "text_tower", None) is not None:
        if len(texts) < 2:
            raise ArgumentError(
                "This encoder has a text tower: give some descriptions to compare it on (--texts FILE)."
            )
        inputs["texts"] = encoder.tokenize(list(texts))
    return inputs


def _read(folder: Path, encoder: Encoder) -> np.ndarray:
    """Read pictures of a folder, drawn by chance, at the encoder's size: uint8 (N, C, H, W)."""
    channels, size = encoder.preprocessing["channels"], encoder.preprocessing["size"]
    paths = image_files.list_images(folder)["path"].sample(frac=1, random_state=0)[:MOST_PICTURES]
    read = image_files.read_ahead(folder, paths, size, channels, (), BATCH)
    return np.array([file.pixels for file in read if file.pixels is not None]).reshape(-1, channels, size, size)


def _tower(encoder: Encoder, name: str) -> nn.Module:
    return encoder if name == "pictures" else encoder.text_tower


def _compare(encoder: Encoder, folder: Path, precision: str, asked: dict[str, torch.Tensor]) -> pd.DataFrame:
    rows, galleries = [], None
    for tower, batch in asked.items():
        exported = openvino_network.compiled(folder / f"{tower}.xml", precision)
        pair = _vectors(_tower(encoder, tower), batch), _vectors(exported, batch)
        rows.append({"tower": tower, "compared": len(batch), **openvino_network.agreement(*pair, galleries)})
        rows[-1]["MB"] = round((folder / f"{tower}.bin").stat().st_size / 1e6, 1)
        galleries = galleries or pair
    return pd.DataFrame(rows)


@torch.inference_mode()
def _vectors(tower: Tower, inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([tower(inputs[start : start + BATCH]).float() for start in range(0, len(inputs), BATCH)])


def _refuse(report: pd.DataFrame, name: str, precision: str) -> None:
    for row in report.to_dict("records"):
        low = [f"{k} {row[k]:.4f} (at least {x})" for k, x in REQUIRED[precision].items() if not row[k] >= x]
        if low:
            told = f"{name} is not exported in {precision}: OpenVINO agrees too little with torch"
            raise ArgumentError(f"{told} on {row['compared']} {row['tower']}: {', '.join(low)}.")


def _write_card(folder: Path, name: str, precision: str, report: pd.DataFrame) -> None:
    made_from, files = json.loads(_card_of(name).read_text(encoding="utf-8"))["hash"], _digests(folder)
    own = hashlib.sha256(json.dumps([made_from, files]).encode()).hexdigest()[:16]
    card = {"name": name, "precision": precision, "made_from": made_from, "files": files}
    card |= {"hash": own if precision == "int8" else made_from, "report": report.to_dict("records")}
    card["versions"] = {package: version(package) for package in ("rectrio", "torch", "openvino")}
    write_json(folder / "card.json", card)


def _card_of(name: str) -> Path:
    return Workspace().outputs / "encoders" / name / "encoder.json"


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.suffix in (".xml", ".bin"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
