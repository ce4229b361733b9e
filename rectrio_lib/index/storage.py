"""An index on disk: vectors.faiss, rows.parquet and card.json, whole or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import faiss
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from rectrio_lib.core import files
from rectrio_lib.core.errors import DataError

FORMAT = 2  # of the files: another number is not read
CARD_KEYS = {"format", "kind", "dim", "encoder_hash", "effort", "recall", "count"}


def write(folder: Path, index: faiss.Index, rows: pd.DataFrame, card: dict) -> None:
    """Write the three files so that a killed run leaves the old ones whole."""
    with files.replaced_folder(folder) as fresh:
        faiss.write_index(index, str(fresh / "vectors.faiss"))
        rows.to_parquet(fresh / "rows.parquet")
        files.write_json(fresh / "card.json", {"format": FORMAT, **card})


def read_card(folder: Path) -> dict:
    """Read what an index says of itself.

    Raises:
        ValueError: if the card is missing, damaged, foreign, or of another format.
    """
    path = folder / "card.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, "no card") from error
    written = card.get("format", 1) if isinstance(card, dict) else None
    if isinstance(written, int) and written != FORMAT:
        remedy = "update RecTrio" if written > FORMAT else "build it again"
        raise DataError(f"{path} is of format {written}, but this version reads format {FORMAT}: {remedy}.")
    if written is None or not card.keys() >= CARD_KEYS:
        raise _damaged(path, "no card of an index")
    if not isinstance(card.setdefault("made_from", {}), dict):  # absent in cards of older versions
        raise _damaged(path, "no card of an index")
    return card


def open_files(folder: Path, card: dict, like: faiss.Index) -> tuple[faiss.Index, BinaryIO]:
    """Map the vectors into memory and open the table of rows, which is read later: a large one takes its time.

    Both stay open: when another process replaces the folder, vectors and rows still belong together.

    Args:
        folder: of the index.
        card: what it says of itself.
        like: an empty FAISS index of that kind and dimension.

    Raises:
        ValueError: if a file is missing or damaged, or they do not belong together.
    """
    try:
        found = faiss.read_index(str(folder / "vectors.faiss"), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise _damaged(folder / "vectors.faiss", "no FAISS index") from error
    try:
        count = parquet.read_metadata(folder / "rows.parquet").num_rows
    except (OSError, pa.ArrowException) as error:
        raise _damaged(folder / "rows.parquet", "no table") from error
    as_told = isinstance(found, type(like)) and (found.d, found.metric_type) == (like.d, like.metric_type)
    if not as_told or not found.ntotal == count == card["count"]:
        raise DataError(
            f"{folder}: vectors.faiss, rows.parquet and card.json do not belong together: build it again."
        )
    return found, (folder / "rows.parquet").open("rb")


def read_rows(file: BinaryIO) -> pd.DataFrame:
    """Read the table of rows from its open file.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        return pd.read_parquet(file)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(Path(file.name), "no table") from error


def _damaged(path: Path, otherwise: str) -> DataError:
    return DataError(f"{path} is damaged or {otherwise}: build it again.")
