"""Images of products: which object and which view a file shows, one object on one side of a split."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.data import image_files, readers
from rectrio_lib.data.duplicates import join_certain, near_copies, remove_copies, sketches_of
from rectrio_lib.data.layout import nfc

PATTERN = r"(?P<product>.+)_(?P<view>[^_/]+)"  # <product_id>_<view_id>.jpg
SEPARATOR = " | "  # of product names


def check_pattern(pattern: str) -> re.Pattern:
    """Compile a pattern of file names; raise ArgumentError if it lacks one of the named groups product and view."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ArgumentError(f"pattern={pattern!r} is not a regular expression: {error}.") from error
    lacking = {"product", "view"} - set(compiled.groupindex)
    if lacking:
        named = " and ".join(f"(?P<{name}>…)" for name in sorted(lacking))
        raise ArgumentError(f"pattern={pattern!r} lacks the named group {named}: expected such as {PATTERN}.")
    return compiled


def read_products(folder: Path, pattern: str, size: int, channels: int, exclude: Iterable[Path] = ()) -> readers.Read:
    """Read images in and below a folder whose paths there, without suffix, tell product and view by a `pattern`.

    Returns:
        As `readers.read_folder`, with `group` (the product) and `view`; the ledger also names files that do not match.

    Raises:
        ArgumentError: if the pattern cannot be used.
        DataError: if there is no readable image, or most file names do not match.
    """
    rows, seconds, strangers = match_names(folder, pattern, exclude)
    matched = len(rows) + len(seconds)
    if len(strangers) > matched:
        told = f"{len(strangers):,} of {matched + len(strangers):,} file names do not match pattern={pattern!r}"
        wanted = "it should match the path below that folder as a whole, with slashes and without suffix"
        raise DataError(f"{folder}: {told}, such as {', '.join(strangers[:3])}: {wanted}.")
    pixels, frame, unreadable = readers.read_files(folder, rows, size, channels)
    if not len(pixels):
        raise DataError(f"{folder} holds no readable image ({len(rows)} unreadable).")
    left_out = seconds + [(name, f"not the file name of a product's view ({pattern})") for name in strangers]
    return pixels, frame, pd.concat([unreadable, image_files.make_ledger(left_out)], ignore_index=True)


def match_names(
    folder: Path, pattern: str, exclude: Iterable[Path] = ()
) -> tuple[list[dict], list[tuple[str, str]], list[str]]:
    """Tell product and view of the image files below a folder by their names alone; raises as `check_pattern`.

    Returns:
        Rows with `path`, `label` (the product, in NFC), `group` (one for names that differ in case) and `view`; second
        files of one view and unreadable files, with the reason; and the paths that do not match.
    """
    named = check_pattern(pattern)
    rows, seconds, strangers, seen, groups = [], [], [], {}, {}
    for name, reason in image_files.list_images(folder, exclude)[["path", "reason"]].itertuples(index=False):
        match = named.fullmatch(nfc(name.rpartition(".")[0] if "." in name.rpartition("/")[2] else name))
        product, view = (match["product"], match["view"]) if match else ("", "")
        if reason:
            seconds.append((name, reason))
        elif not (product and view):
            strangers.append(name)
        elif (product, view) in seen:
            seconds.append((name, f"view {view} of product {product} is {seen[product, view]} already"))
        else:
            seen[product, view] = name
            group = groups.setdefault(product.casefold(), product)  # SHOE1 may be shoe1: never on two sides
            rows.append({"path": name, "label": product, "group": group, "view": view})
    return rows, seconds, strangers


def clean_products(manifest: pd.DataFrame, bits: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep one of equal images, and join the groups of products that share an image or nearly one.

    Args:
        manifest: N rows with `image_id`, `row`, `label` (the product), `group`, `split` and `sketch`.
        bits: see `duplicates.near_copies`; 0 compares none.

    Returns:
        The manifest, with `near_copy_of`: other products that have a (nearly) equal image; and the ledger.

    Raises:
        DataError: if there are fewer than two products, or none has two views.
    """
    numbers = pd.Series(np.arange(len(manifest)), manifest.index)
    equal = np.column_stack([numbers.groupby(manifest["image_id"]).transform("first"), numbers])
    shared = _product_pairs(manifest, equal)
    reason = "image of product {own}, byte-identical to {path} of product {kept}"
    kept, ledger = remove_copies(join_certain(manifest, equal), reason)
    _check_products(kept)
    alike = near_copies(sketches_of(kept), bits) if bits else np.empty((0, 2), np.int64)
    pairs, others = shared | _product_pairs(kept, alike), {}
    for one, other in sorted(pairs | {pair[::-1] for pair in pairs}):
        others.setdefault(one, []).append(other)
    kept = kept.assign(near_copy_of=[SEPARATOR.join(others.get(label, ())) for label in kept["label"]])
    return join_certain(kept, alike), ledger


def _product_pairs(manifest: pd.DataFrame, pairs: np.ndarray) -> set[tuple[str, str]]:
    """Pairs of different products of which images, by position in the manifest (P, 2), belong together."""
    labels = manifest["label"].to_numpy()[pairs]
    return {tuple(sorted(pair)) for pair in labels if pair[0] != pair[1]}


def _check_products(manifest: pd.DataFrame) -> None:
    counts = manifest["label"].value_counts()
    if len(counts) < 2:
        raise DataError(f"Only one product, {counts.index[0]}: a triplet needs a negative from another.")
    if counts.max() < 2:
        told = f"None of the {len(counts):,} products has a second view: there is nothing to find"
        raise DataError(f"{told}. Does the pattern take a part of the view for the product?")


def remarks(manifest: pd.DataFrame) -> list[str]:
    """Say what is unusual about products: one sentence each on names, single views and near copies of others."""
    counts, said = manifest["label"].value_counts().sort_index(), []
    single = list(counts.index[counts == 1])
    cases = counts.index.to_series().groupby(counts.index.str.casefold()).agg(list).loc[lambda same: same.map(len) > 1]
    if len(cases):
        named = _some([" and ".join(names) for names in cases])
        said.append(
            f"Products whose names differ in capitals only: {len(cases):,} ({named}). Split as one; are they the same?"
        )
    if single:
        said.append(f"Products with a single view: {len(single):,} ({_some(single)}). In the gallery, but not queries.")
    if "near_copy_of" in manifest:
        copies = manifest.drop_duplicates("label").set_index("label")["near_copy_of"].loc[lambda other: other != ""]
        pairs = {tuple(sorted((own, other))) for own, others in copies.items() for other in others.split(SEPARATOR)}
        if pairs:
            named = _some([f"{one} and {other}" for one, other in sorted(pairs)])
            said.append(f"Pairs of products that (nearly) share an image: {len(pairs):,} ({named}). Split as one.")
    return said


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
