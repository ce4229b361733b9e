"""An index on disk: vectors.faiss, rows.parquet and card.json, complete or refused by name."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from rectrio_lib.core import files
from rectrio_lib.core.errors import DataError
from rectrio_lib.core.workspace import MADE_FROM, Workspace, check_card
from rectrio_lib.core.workspace import read_card as read_json
from rectrio_lib.index.factory import KINDS
from rectrio_lib.index.faiss_vectors import FaissVectors

FORMAT = 2  # of the files: another number is not read
SCHEMA = {"format": int, "kind": str, "dim": int, "encoder_hash": str, "effort": int, "count": int}
SCHEMA |= {"recall": float | int | None, "made_from?": MADE_FROM, "checksums?": dict, "memory_limit?": int | None}
MOST = 2**31 - 1  # what FAISS can count
CALIBRATION = "calibration.json"  # what scores mean, learned later; see `search.ranking.calibration`


def write(folder: Path, vectors: FaissVectors, rows: pd.DataFrame, card: dict[str, Any]) -> None:
    """Write vectors, rows and card; whatever stops it, a StorageError among others, the old ones stay complete."""
    with files.replaced_folder(folder) as fresh:
        names = vectors.write(fresh)
        rows.to_parquet(fresh / "rows.parquet")
        sums = {name: files.checksum(fresh / name) for name in (*names, "rows.parquet")}
        files.write_json(fresh / "card.json", {"format": FORMAT, **card, "checksums": sums})
        carry_over(folder, fresh, card["encoder_hash"])


def carry_over(folder: Path, fresh: Path, encoder_hash: str) -> None:
    """Copy what was learned of an index into the folder that replaces its own, unless it is of another encoder."""
    with suppress(DataError):
        if read_json(folder / CALIBRATION).get("encoder_hash") == encoder_hash:
            shutil.copyfile(folder / CALIBRATION, fresh / CALIBRATION)


def folder_of(name: str | Path, workspace: Workspace | None) -> Path:
    """Return the folder of a saved index; a `Path` is the folder itself."""
    if isinstance(name, Path):
        return name
    return (workspace or Workspace()).require("indexes", name, "rectrio index FOLDER")


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card of an index; DataError if it is missing, damaged, foreign, or of another format."""
    path = folder / "card.json"
    card = read_json(path)
    number = card.get("format", 1)
    if type(number) is int and number != FORMAT:
        remedy = "update RecTrio" if number > FORMAT else "build it again"
        raise DataError(f"{path} is of format {number}, but this version reads format {FORMAT}: {remedy}.")
    check_card(card, SCHEMA, path)
    in_range = 1 <= card["dim"] <= MOST // 4 and 1 <= card["effort"] <= MOST and 0 <= card["count"] <= MOST
    if card["kind"] not in KINDS or not in_range or not 0 <= (card["recall"] or 0) <= 1:
        raise _damaged(path, "not the card of an index")
    return {"made_from": {}, "memory_limit": None} | card


def open_files(folder: Path, card: dict[str, Any], vectors: FaissVectors) -> BinaryIO:
    """Map the vectors into memory and open the table of rows, which is read later: a large one takes its time.

    Both stay open: when another process replaces the folder, vectors and rows still belong together. `vectors` are none
    yet, of the kind and dimension that `card` names.

    Raises:
        DataError: if a file is missing or damaged, or they do not belong together.
    """
    for name in {"vectors.faiss", *card.get("checksums", {})} - {"rows.parquet"}:
        files.check_sum(folder / name, card.get("checksums", {}))
    like = vectors.faiss
    try:
        vectors.open(folder)
    except (RuntimeError, MemoryError, OSError, ValueError) as error:
        raise _damaged(folder / "vectors.faiss", "not a FAISS index") from error
    index = vectors.faiss
    try:
        table = parquet.read_metadata(folder / "rows.parquet")
    except (OSError, pa.ArrowException) as error:
        raise _damaged(folder / "rows.parquet", "not a table") from error
    if "image_id" not in table.schema.names:
        raise _damaged(folder / "rows.parquet", "without the column image_id")
    same_kind = isinstance(index, type(like)) and (index.d, index.metric_type) == (like.d, like.metric_type)
    if not same_kind or not index.ntotal == table.num_rows == card["count"]:
        raise DataError(f"{folder}: vectors.faiss, rows.parquet and card.json do not belong together: build it again.")
    return (folder / "rows.parquet").open("rb")


def read_rows(file: BinaryIO, checksums: dict[str, str]) -> pd.DataFrame:
    """Read the table of rows from its open file; DataError if it is damaged or not the one of the checksums."""
    path = Path(file.name)
    files.check_sum(path, checksums, file)
    try:
        rows = pd.read_parquet(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, "not a table") from error
    if len(rows) and not pd.api.types.is_string_dtype(rows["image_id"]):
        raise _damaged(path, "not a table of image_id in text")
    return rows


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(f"{path} is damaged or {problem}: build it again.")
