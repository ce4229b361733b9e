"""What must not mislead a figure: copies, near copies on both sides of a split, classes without triplets."""

from __future__ import annotations

import numpy as np
import pandas as pd
from PIL import Image

from rectrio_lib.core.knn import blocks, exact_search

HASH_SIDE = 32  # the perceptual hash looks at so many pixels a side
FLAT_CONTRAST = 4.0  # standard deviation of grey levels, 0..255: below it, noise decides the bits of a hash


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

    hashes = [
        _perceptual_hash(pixels[row]) for row in manifest["row"]
    ]  # one picture at a time: a copy of all might not fit
    known = np.flatnonzero([h is not None for h in hashes])
    if not len(known):
        return np.empty((0, 2), np.int64)
    codes = np.stack([hashes[i] for i in known])
    index = IndexBinaryFlat(codes.shape[1] * 8)
    index.add(codes)
    limits, _, right = index.range_search(codes, bits + 1)  # FAISS leaves out the radius itself
    left = np.repeat(np.arange(len(codes)), np.diff(limits.astype(np.int64)))
    return np.column_stack([known[left], known[right]])[left < right]


def _perceptual_hash(picture: np.ndarray) -> np.ndarray | None:
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


NEAR_COPY = 0.87  # mirrored and bordered copies of photographs lie between 0.84 and 0.95
NEAREST = 10  # so many neighbours of each picture are looked at for near copies


def similar_pairs(features: np.ndarray) -> np.ndarray:
    """Find pairs of pictures that an untrained backbone sees as one: the same scene, a crop, a mirror image.

    All features share a large common part, so what is left without it is compared.

    Args:
        features: unit vectors (N, dim) of a pretrained backbone; a trained encoder brings whole classes as close, and
            random weights see copies everywhere.

    Returns:
        Positions (P, 2), the smaller first; of each picture the ten nearest are looked at.
    """
    if len(features) < 3:  # without their mean, two are as unlike as can be
        return np.empty((0, 2), np.int64)
    centred = features - features.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-9)
    centred = centred.astype(np.float32)
    scores, found = exact_search(centred, blocks(centred), min(NEAREST + 1, len(centred)))
    left, place = np.nonzero(scores > NEAR_COPY)
    pairs = np.sort(np.column_stack([left, found[left, place]]), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def near_copy_groups(features: np.ndarray, rows: pd.DataFrame) -> list[np.ndarray]:
    """Join similar pairs, see `similar_pairs`, to groups.

    Args:
        features: unit vectors (N, dim) of a pretrained backbone.
        rows: N rows with `image_id`.

    Returns:
        Positions of each group of two or more, the largest group first.
    """
    joined = join_groups(rows.assign(group=rows["image_id"]), similar_pairs(features))
    groups = [members for members in joined.groupby("group").indices.values() if len(members) > 1]
    return sorted(groups, key=lambda members: (-len(members), members[0]))
