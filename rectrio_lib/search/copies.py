"""Byte-identical files beside the one that an index names: found by their own path, and by their own label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib.data.layout import describe
from rectrio_lib.index.index import Index
from rectrio_lib.search.filters import matching
from rectrio_lib.search.options import Options

COLUMNS = ["path", "label", "split"]  # in which a copy differs from its image


def copies_of(index: Index, table: Path) -> pd.DataFrame:
    """Return the rows of the copies, with the `position` of their image.

    A label or split that did not come from the folders of the image holds for its copies, too.

    Args:
        index: of a folder of images.
        table: files.parquet of its store; without it there are no copies.
    """
    rows = index.rows
    if not table.is_file() or not {*COLUMNS} <= {*rows.columns}:
        return rows.iloc[:0].assign(position=0)
    files = pd.read_parquet(table, columns=["path", "image_id"])
    place = pd.Index(rows["image_id"].where(~index.removed)).get_indexer(files["image_id"])
    other = (place >= 0) & ~files["path"].isin(rows["path"]).to_numpy()
    copies = rows.iloc[place[other]].assign(position=place[other]).reset_index(drop=True)
    if len(copies):
        told = describe(files["path"].tolist()).set_index(files["path"])
        paths = files["path"][other].tolist()
        for column in ("label", "split"):
            from_folder = copies[column].to_numpy() == told[column].reindex(copies["path"]).to_numpy()
            copies[column] = np.where(from_folder, told.loc[paths, column], copies[column])
        copies["path"] = paths
    return copies


def among(index: Index, copies: pd.DataFrame, options: Options) -> tuple[Options, pd.DataFrame]:
    """Let an image count if one of its copies meets the condition; return the options, and the rows to show.

    Where only a copy meets it, its row is shown.
    """
    if not isinstance(options.where, str) or not len(copies):
        return options, index.rows
    mask, rows = matching(index.rows, options.where), index.rows
    met = copies[matching(copies.drop(columns="position"), options.where)].drop_duplicates("position")
    met = met[~mask[met["position"]]]
    if len(met):
        rows = rows.copy()
        rows.iloc[met["position"], rows.columns.get_indexer(COLUMNS)] = met[COLUMNS].to_numpy()
        mask = mask.copy()
        mask[met["position"]] = True
    return replace(options, where=mask), rows
