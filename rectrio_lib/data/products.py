"""Pictures of products: which object and which view a file shows, one object on one side of a split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.data import image_files, readers, synthetic
from rectrio_lib.data.duplicates import HASH_SIDE, join_groups, near_copies, remove_copies

PATTERN = r"(?P<product>.+)_(?P<view>[^_/]+)"  # <product_id>_<view_id>.jpg
GROUPS = {"product", "view"}
SEPARATOR = " | "  # of product names


def check_pattern(pattern: str) -> re.Pattern:
    """Compile a pattern of file names.

    Raises:
        ValueError: if it is no regular expression, or lacks one of the named groups product and view.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ArgumentError(f"pattern={pattern!r} is no regular expression: {error}.") from error
    lacking = GROUPS - set(compiled.groupindex)
    if lacking:
        named = " and ".join(f"(?P<{name}>…)" for name in sorted(lacking))
        raise ArgumentError(f"pattern={pattern!r} lacks the named group {named}: expected such as {PATTERN}.")
    return compiled


def read_products(folder: Path, pattern: str, size: int, channels: int) -> readers.Read:
    """Read pictures whose file names tell product and view.

    Args:
        folder: the top folder; pictures may lie in it and in folders below, except hidden ones.
        pattern: regular expression with the named groups product and view, for the whole path below `folder`, with
            slashes and without suffix.
        size: side of the square pictures in pixels.
        channels: 1 for grey, 3 for colour.

    Returns:
        pixels, frame and ledger, as of `readers.read_folder`; the frame has `label` and `group` (the product), `view`
        and `path`. The ledger also names files that do not match, and second files of one view.

    Raises:
        ValueError: if the pattern cannot be used.
        BadData: if there is no readable picture, or most file names do not match.
    """
    rows, seconds, strangers = match_names(folder, pattern)
    _check_matches(folder, pattern, len(rows) + len(seconds), strangers)
    pixels, frame, unreadable = readers.read_files(folder, rows, size, channels)
    if not len(pixels):
        raise DataError(f"{folder} holds no readable picture ({len(rows)} unreadable).")
    left_out = seconds + [(name, f"no file name of a product's view ({pattern})") for name in strangers]
    return pixels, frame, pd.concat([unreadable, image_files.make_ledger(left_out)], ignore_index=True)


def match_names(folder: Path, pattern: str) -> tuple[list[dict], list[tuple[str, str]], list[str]]:
    """Tell product and view of the picture files below a folder by their names alone.

    Returns:
        Rows with `path`, `label` and `group` (the product), and `view`; second files of one view, with the reason; and
        the paths that do not match.

    Raises:
        ValueError: as `check_pattern`.
    """
    named = check_pattern(pattern)
    rows, seconds, strangers, seen = [], [], [], {}
    for path in (file.relative_to(folder) for file in image_files.image_files_below(folder)):
        if any(part.startswith(".") for part in path.parts):
            continue
        match, name = named.fullmatch(path.with_suffix("").as_posix()), path.as_posix()
        product, view = (match["product"], match["view"]) if match else ("", "")
        if not (product and view):
            strangers.append(name)
        elif (product, view) in seen:
            seconds.append((name, f"view {view} of product {product} is {seen[product, view]} already"))
        else:
            seen[product, view] = name
            rows.append({"path": name, "label": product, "group": product, "view": view})
    return rows, seconds, strangers


def _check_matches(folder: Path, pattern: str, matched: int, strangers: list[str]) -> None:
    if not matched and not strangers:
        raise DataError(f"{folder} holds no picture: it should hold files such as <product>_<view>.jpg.")
    if len(strangers) > matched:
        raise DataError(
            f"{folder}: {len(strangers):,} of {matched + len(strangers):,} file names do not match "
            f"pattern={pattern!r}, such as {', '.join(strangers[:3])}: it should match the path below that folder as a "
            "whole, with slashes and without suffix."
        )


def draw_products(objects_per_class: int, views: int, size: int, channels: int, seed: int) -> readers.Read:
    """Draw the stand-in: shapes as products, see `synthetic.draw_shapes`; the kind of shape goes to `shape`."""
    pixels, frame = synthetic.draw_shapes(objects_per_class, views, size, channels, seed)
    frame = frame.rename(columns={"label": "shape", "object": "label"})
    return pixels, frame.assign(group=frame["label"], view=frame["view"].astype(str)), image_files.make_ledger([])


def clean_products(pixels: np.ndarray, manifest: pd.DataFrame, bits: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep one of equal pictures, and join the groups of products that share a picture or nearly one.

    Args:
        pixels: uint8 (N, C, H, W).
        manifest: N rows with `image_id`, `row`, `label` (the product), `group` and `split`.
        bits: see `duplicates.near_copies`; 0 compares none, nor are pictures below 32 pixels a side compared.

    Returns:
        The manifest, with a column `near_copy_of`: other products that have a (nearly) equal picture, or nothing. And
        the ledger of what was left out.

    Raises:
        BadData: if there are fewer than two products, or none has two views.
    """
    numbers = pd.Series(np.arange(len(manifest)), manifest.index)
    equal = np.column_stack([numbers.groupby(manifest["image_id"]).transform("first"), numbers])
    shared = _product_pairs(manifest, equal)
    reason = "picture of product {own}, equal to the byte to one of product {kept}"
    kept, ledger = remove_copies(join_groups(manifest, equal), reason)
    _check_products(kept)
    alike = np.empty((0, 2), np.int64)
    if bits and min(pixels.shape[2:]) >= HASH_SIDE:
        alike = near_copies(pixels, kept, bits)
    others = _others(shared | _product_pairs(kept, alike))
    kept = kept.assign(near_copy_of=[others.get(label, "") for label in kept["label"]])
    return join_groups(kept, alike), ledger


def _product_pairs(manifest: pd.DataFrame, pairs: np.ndarray) -> set[tuple[str, str]]:
    """Pairs of different products of which pictures, by position in the manifest (P, 2), belong together."""
    labels = manifest["label"].to_numpy()[pairs]
    return {tuple(sorted(pair)) for pair in labels if pair[0] != pair[1]}


def _others(pairs: set[tuple[str, str]]) -> Mapping[str, str]:
    """The products that each product is paired with, as text."""
    found: dict[str, list[str]] = {}
    for one, other in sorted(pairs | {pair[::-1] for pair in pairs}):
        found.setdefault(one, []).append(other)
    return {product: SEPARATOR.join(others) for product, others in found.items()}


def _check_products(manifest: pd.DataFrame) -> None:
    counts = manifest["label"].value_counts()
    if len(counts) < 2:
        raise DataError(f"Only one product, {counts.index[0]}: a triplet needs a negative from another.")
    if counts.max() < 2:
        raise DataError(
            f"None of the {len(counts):,} products has a second view: there is nothing to find. Does the pattern take "
            "a part of the view for the product?"
        )


def remarks(manifest: pd.DataFrame) -> list[str]:
    """Say what is unusual about products: one sentence each on single views and on near copies of other products.

    Args:
        manifest: with `label` (the product), and `near_copy_of` where known.
    """
    counts, said = manifest["label"].value_counts().sort_index(), []
    single = list(counts.index[counts == 1])
    if single:
        said.append(f"Products with a single view: {len(single):,} ({_some(single)}). In the gallery, but no queries.")
    if "near_copy_of" in manifest:
        copies = manifest.drop_duplicates("label").set_index("label")["near_copy_of"].loc[lambda other: other != ""]
        pairs = {tuple(sorted((own, other))) for own, others in copies.items() for other in others.split(SEPARATOR)}
        if pairs:
            named = _some([f"{one} and {other}" for one, other in sorted(pairs)])
            said.append(f"Pairs of products that (nearly) share a picture: {len(pairs):,} ({named}). Split as one.")
    return said


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
