"""Train, validation and test: by file name, by table, by group or by product."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import DataError
from rectrio_lib.data.layout import count_of, nfc
from rectrio_lib.data.places.tables import read_csv

SPLITS = ("train", "val", "test")


def split_by_product(manifest: pd.DataFrame, fractions: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """Split by whole products; what shares a group shares the side.

    Args:
        manifest: as of `split_by_group`; where one image of a product is given to a split, all go, to test before val.
        fractions: share of the products to draw for "test" and "val".
        seed: another seed, another split.
    """
    products = manifest.groupby("label").agg(group=("group", "first")).join(_fixed(manifest, "label"))
    split = split_by_group(products.assign(label=""), fractions, seed)["split"]  # as if all products were of one class
    return manifest.assign(split=manifest["label"].map(split))


def check_classes(manifest: pd.DataFrame) -> None:
    """Raise DataError if there are fewer than two classes, or a class has fewer than two images."""
    counts = manifest["label"].value_counts()
    if len(counts) < 2:
        raise DataError(f"Only one class, {list(counts.index)}: a triplet needs a negative from another.")
    if counts.min() < 2:
        lonely = ", ".join(sorted(counts.index[counts < 2])[:5])
        raise DataError(f"Class {lonely} has a single image, no pair of anchor and positive: add images or remove it.")


def check_splits(manifest: pd.DataFrame, fractions: dict[str, float]) -> None:
    """Raise DataError if a split that was asked for is empty."""
    for split in ("train", *(split for split, fraction in fractions.items() if fraction > 0)):
        if not manifest["split"].eq(split).any():
            sizes = f"{count_of(len(manifest), 'image')} in {count_of(manifest['group'].nunique(), 'group')}"
            told = f"{sizes}, each on one side, are too few for the shares {fractions}"
            advice = f"Add images, raise {split}_fraction, or give a split_file."
            raise DataError(f"The split {split!r} is empty: {told}. {advice}")


def split_by_pattern(frame: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Make a test split of the files with a name, without folders, in which `pattern` is found; `split` is set anew.

    Raises:
        DataError: if the pattern is not a regular expression, or matches no file or every file.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise DataError(f"test_pattern={pattern!r} is not a regular expression: {error}.") from error
    test = np.array([bool(search(PurePosixPath(path).name)) for path in frame["path"]])
    if test.all() or not test.any():
        told = f"{'every' if test.any() else 'no'} file name, such as {PurePosixPath(frame['path'].iloc[0]).name}"
        raise DataError(f"test_pattern={pattern!r} matches {told}: some should be for the test, others for training.")
    return frame.assign(split=np.where(test, "test", None))


def split_by_file(frame: pd.DataFrame, table: Path, left_out: Iterable[str] = ()) -> pd.DataFrame:
    """Take the split from a CSV file with the columns path and split.

    Args:
        frame: with `path`.
        table: the CSV file; paths are relative to the folder of images. What it does not name has no split yet.
        left_out: paths that may be named although the frame lacks them: unreadable images.

    Raises:
        DataError: if the file cannot be read, lacks a column, or names an unknown split, or a path twice or not there.
    """
    table_rows = read_csv(table, f"split_file {table}", dtype=str).fillna("")
    if not {"path", "split"} <= set(table_rows.columns):
        raise DataError(f"split_file {table} has the columns {list(table_rows.columns)[:5]}: it needs path and split.")
    table_rows["path"] = table_rows["path"].str.replace("\\", "/").map(nfc)
    paths = frame["path"].map(nfc)
    complaints = {
        f"a split other than {', '.join(SPLITS)}": ~table_rows["split"].isin(SPLITS),
        "a path twice": table_rows["path"].duplicated(),
        "a path that is not in the folder": ~table_rows["path"].isin([*paths, *map(nfc, left_out)]),
    }
    for complaint, wrong in complaints.items():
        if wrong.any():
            lines = count_of(int(wrong.sum()), "line")
            line = table_rows.loc[wrong, ["path", "split"]].agg(",".join, axis=1).iloc[0]
            raise DataError(f"split_file {table} names {complaint} in {lines}, the first is {line!r}.")
    return frame.assign(split=paths.map(table_rows.set_index("path")["split"]))


def split_by_group(manifest: pd.DataFrame, fractions: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """Split every class by whole groups; a split that the source brings is kept, another is drawn from the rest.

    A group's place follows from a hash of seed and group name, groups of several images last: the split does not depend
    on the order of rows, and groups of likely copies rather train.

    Args:
        manifest: with `label`, `group` and `split` ("train", "val", "test" or empty).
        fractions: share of each class to draw for "test" and "val".
        seed: another seed, another split.

    Returns:
        The manifest with `split` filled, no group on two sides.
    """
    given = manifest["split"].fillna("")
    wanted = {split: fraction for split, fraction in fractions.items() if not given.eq(split).any()}
    groups = manifest.groupby("group").agg(label=("label", "min"), size=("label", "size"))
    groups = groups.join(_fixed(manifest, "group"))
    groups["key"] = [hashlib.blake2b(f"{seed}|{g}".encode(), digest_size=8).hexdigest() for g in groups.index]
    groups["several"] = groups["size"] > 1
    for _, members in groups[groups["split"].isna()].sort_values(["several", "key"]).groupby("label"):
        left, total = list(members.index[:-1]), members["size"].sum()  # the last group always stays in train
        for split, fraction in wanted.items():
            taken = 0
            while left and taken + groups.at[left[0], "size"] / 2 <= fraction * total:
                taken += groups.at[left[0], "size"]
                groups.at[left.pop(0), "split"] = split
    return manifest.assign(split=manifest["group"].map(groups["split"].fillna("train")))


def _fixed(manifest: pd.DataFrame, key: str) -> pd.Series:
    """Return the split of each group or product of which one image is given to test or val; "test" before "val"."""
    return manifest.loc[manifest["split"].isin(["val", "test"])].groupby(key)["split"].min().astype(object)
