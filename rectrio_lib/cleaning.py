"""What must not mislead a figure: copies, near copies on both sides of a split, classes without triplets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image

from rectrio_lib.readers import BadData

HASH_SIDE = 32  # the perceptual hash looks at so many pixels a side
FLAT_CONTRAST = 4.0  # standard deviation of grey levels, 0..255: below it, noise decides the bits of a hash
SPLITS = ("train", "val", "test")


def remove_copies(
    manifest: pd.DataFrame, reason: str = "copy of a picture labelled {kept}"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep one of pictures that are equal to the byte, the test picture where there is one.

    Args:
        manifest: with `image_id`, `row`, `label` and `split`.
        reason: what the ledger says, with the labels of both where it has {kept} and {own}.

    Returns:
        The manifest without copies, and a ledger of what was left out.
    """
    order = manifest.assign(_late=manifest["split"].ne("test")).sort_values(["_late", "label", "row"]).index
    copy = manifest.loc[order].duplicated("image_id").reindex(manifest.index)
    kept = manifest[~copy].reset_index(drop=True)
    twin = kept.set_index("image_id")["label"]
    ledger = pd.DataFrame(
        {
            "picture": manifest.loc[copy].get("path", manifest.loc[copy, "row"]).astype(str),
            "reason": [
                reason.format(kept=twin[i], own=label)
                for i, label in manifest.loc[copy, ["image_id", "label"]].itertuples(index=False)
            ],
        }
    )
    return kept, ledger


def near_copies(pixels: np.ndarray, manifest: pd.DataFrame, bits: int) -> np.ndarray:
    """Find pairs of pictures that are one photograph: recompressed, resized, recoloured a little, with a watermark.

    The perceptual hash of a picture holds 64 bits; unrelated photographs differ in about 32 of them. Pictures of
    (nearly) one colour have no pair: nothing but rounding would decide their bits.

    Args:
        pixels: uint8 (N, C, H, W), C 1 or 3.
        manifest: the pictures to compare, by their `row` in `pixels`.
        bits: in how many bits the hashes of copies differ at most, 0..64.

    Returns:
        Pairs of positions in the manifest int64 (P, 2), the lower one first.

    Source: Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010 (the DCT hash).
    """
    from faiss import IndexBinaryFlat

    hashes = [_hash(pixels[row]) for row in manifest["row"]]  # one picture at a time: a copy of all might not fit
    known = np.flatnonzero([h is not None for h in hashes])
    if not len(known):
        return np.empty((0, 2), np.int64)
    codes = np.stack([hashes[i] for i in known])
    index = IndexBinaryFlat(codes.shape[1] * 8)
    index.add(codes)
    limits, _, right = index.range_search(codes, bits + 1)  # FAISS leaves out the radius itself
    left = np.repeat(np.arange(len(codes)), np.diff(limits.astype(np.int64)))
    return np.column_stack([known[left], known[right]])[left < right]


def _hash(picture: np.ndarray) -> np.ndarray | None:
    """Return the perceptual hash of a picture (C, H, W) as uint8 (8,), or None for one without contrast."""
    from imagehash import phash

    grey = Image.fromarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)).convert("L")
    return np.packbits(phash(grey).hash) if np.asarray(grey).std() >= FLAT_CONTRAST else None


def group_near_copies(pixels: np.ndarray, manifest: pd.DataFrame, bits: int) -> pd.DataFrame:
    """Give near copies one group, so that no split tears them apart.

    Pictures below 32 pixels a side keep their groups: shrunk that far, different things look like copies.

    Args:
        pixels: uint8 (N, C, H, W), C 1 or 3.
        manifest: with `row` (into `pixels`) and `group`.
        bits: in how many bits of 64 the hashes of copies differ at most; see `near_copies`.

    Returns:
        The manifest with groups joined.
    """
    if min(pixels.shape[2:]) < HASH_SIDE:
        return manifest
    return join_groups(manifest, near_copies(pixels, manifest, bits))


def join_groups(manifest: pd.DataFrame, pairs: np.ndarray) -> pd.DataFrame:
    """Join the groups of pictures that belong together, transitively.

    Args:
        manifest: N rows with `group`.
        pairs: positions of rows that belong together, integers (P, 2), 0..N-1.

    Returns:
        The manifest with joined groups under the first of their names.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers, names = pd.factorize(manifest["group"], sort=True)
    left, right = numbers[np.asarray(pairs, np.int64).reshape(-1, 2)].T
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(names), len(names)))
    component = connected_components(graph, directed=False)[1]
    _, first = np.unique(component, return_index=True)
    return manifest.assign(group=np.asarray(names)[first][component][numbers])


def check_classes(manifest: pd.DataFrame) -> None:
    """Refuse what triplets cannot be made of.

    Raises:
        BadData: if there are fewer than two classes, or a class has fewer than two pictures.
    """
    counts = manifest["label"].value_counts()
    if len(counts) < 2:
        raise BadData(f"Only one class, {list(counts.index)}: a triplet needs a negative from another.")
    if counts.min() < 2:
        lonely = ", ".join(sorted(counts.index[counts < 2])[:5])
        raise BadData(
            f"Class {lonely} has a single picture: a triplet needs an anchor and a positive. Add pictures or remove it."
        )


def split_by_pattern(frame: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Make a test split of the files whose names match.

    Args:
        frame: with `path`.
        pattern: regular expression, searched for in the file's name without its folders.

    Returns:
        The frame with `split` "test" or empty, whatever it was before.

    Raises:
        BadData: if the pattern is no regular expression, or matches no file or every file.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise BadData(f"test_pattern={pattern!r} is no regular expression: {error}.") from error
    test = np.array([bool(search(PurePosixPath(path).name)) for path in frame["path"]])
    if test.all() or not test.any():
        raise BadData(
            f"test_pattern={pattern!r} matches {'every' if test.any() else 'no'} file name, such as "
            f"{PurePosixPath(frame['path'].iloc[0]).name}: some should be for the test, and the others for training."
        )
    return frame.assign(split=np.where(test, "test", None))


def split_by_file(frame: pd.DataFrame, table: Path, left_out: Iterable[str] = ()) -> pd.DataFrame:
    """Take the split from a CSV file with the columns path and split.

    Args:
        frame: with `path`.
        table: the CSV file; paths are relative to the folder of pictures. A picture that it does not name has no
            split yet.
        left_out: paths that may be named although the frame lacks them: unreadable pictures.

    Raises:
        BadData: if the file cannot be read, lacks a column, names a split other than train, val and test, a path twice,
            or one that is not there.
    """
    try:
        told = pd.read_csv(table, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise BadData(f"split_file {table} cannot be read as CSV: {error}") from error
    if not {"path", "split"} <= set(told.columns):
        raise BadData(f"split_file {table} has the columns {list(told.columns)[:5]}: it needs path and split.")
    told["path"] = told["path"].str.replace("\\", "/")
    complaints = {
        f"a split other than {', '.join(SPLITS)}": ~told["split"].isin(SPLITS),
        "a path twice": told["path"].duplicated(),
        "a path that is not in the folder": ~told["path"].isin([*frame["path"], *left_out]),
    }
    for complaint, wrong in complaints.items():
        if wrong.any():
            line = told.loc[wrong, ["path", "split"]].agg(",".join, axis=1).iloc[0]
            raise BadData(f"split_file {table} names {complaint} in {wrong.sum():,} lines, the first is {line!r}.")
    return frame.assign(split=frame["path"].map(told.set_index("path")["split"]))


def split_by_group(manifest: pd.DataFrame, fractions: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """Split every class by whole groups; what the source calls test stays test.

    A group's place follows from a hash of seed and group name alone: the split does not depend on the order of rows.
    A split that the source brings is kept; one that it lacks is drawn from the rest.

    Args:
        manifest: with `label`, `group` and `split` ("train", "val", "test" or empty).
        fractions: share of each class to draw for "test" and "val".
        seed: another seed, another split.

    Returns:
        The manifest with `split` filled, no group on two sides.
    """
    given = manifest["split"].fillna("")
    wanted = {split: fraction for split, fraction in fractions.items() if not given.eq(split).any()}
    fixed = given.where(given.isin(["val", "test"])).groupby(manifest["group"]).min()  # "test" before "val"
    groups = manifest.groupby("group").agg(label=("label", "min"), size=("label", "size")).join(fixed.rename("split"))
    groups["key"] = [hashlib.blake2b(f"{seed}|{g}".encode(), digest_size=8).hexdigest() for g in groups.index]
    for _, members in groups[groups["split"].isna()].sort_values("key").groupby("label"):
        left, total = list(members.index[:-1]), members["size"].sum()  # the last group always stays in train
        for split, fraction in wanted.items():
            taken = 0
            while left and taken + groups.at[left[0], "size"] / 2 <= fraction * total:
                taken += groups.at[left[0], "size"]
                groups.at[left.pop(0), "split"] = split
    return manifest.assign(split=manifest["group"].map(groups["split"].fillna("train")))
