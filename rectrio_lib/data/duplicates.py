"""Copies: byte-identical ones leave the data set, likely ones share a group, so that no split tears them apart."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from rectrio_lib.core.knn import blocks, exact_search
from rectrio_lib.data.decoding import SKETCH_SIDE
from rectrio_lib.data.layout import count_of

LOG = logging.getLogger(__name__)
FLAT_CONTRAST = 4.0  # standard deviation of grey levels, 0..255: below it, noise decides
WAVES = 8  # frequencies a side that the descriptor of a sketch holds
DEGREES_PER_BIT = 4.2  # angle between descriptors that one step of `near_copies` allows; 8 steps: cosine 0.83
POSSIBLE, MOST_CHECKED = 0.5, 64  # cosine from which sketches are compared by pixel, and how many of each
MATCH, HIDDEN = 0.99, 0.12  # correlation of sketches that match, without the share of pixels that differs most
CLASS_SHARE = 10  # a group holds at most a tenth of its class, but two
BLOCK_NUMBERS = 1 << 21


def remove_copies(
    manifest: pd.DataFrame, reason: str = "copy of {path}, labelled {kept}"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep one of the images of equal content, the test image where there is one; return a ledger of the others, too.

    Args:
        manifest: with `image_id`, `row`, `label` and `split`.
        reason: what the ledger says: {path} of the one that stays, and the labels of both, {kept} and {own}.
    """
    order = manifest.assign(_late=manifest["split"].ne("test")).sort_values(["_late", "label", "row"]).index
    copy = manifest.loc[order].duplicated("image_id").reindex(manifest.index)
    named = manifest.assign(picture=manifest.get("path", manifest["row"]).astype(str))
    kept = manifest[~copy].reset_index(drop=True)
    twin = named[~copy].set_index("image_id")
    left = [
        (picture, reason.format(path=twin.at[i, "picture"], kept=twin.at[i, "label"], own=label))
        for picture, i, label in named.loc[copy, ["picture", "image_id", "label"]].itertuples(index=False)
    ]
    return kept, pd.DataFrame(left, columns=["picture", "reason"])


def near_copies(sketches: np.ndarray, bits: float, kinds: np.ndarray | None = None) -> np.ndarray:
    """Find images that are likely one photograph: resized, recoloured, mirrored, turned, framed, cropped a little.

    Each image in turn leads a group of the free ones that are alike to it; so groups hold no chains. Compared are the
    low frequencies of the sketches in all eight positions, and in doubt their pixels but for a patch.

    Args:
        sketches: uint8 (N, 32, 32), see `decoding.sketch`; those of (nearly) one grey match nothing.
        bits: how different copies may be, 0..16; 8 finds 680 of 720 changed copies and joins one pair in a million.
        kinds: images of different kinds (N,) are not compared; a group holds a tenth of its kind, but two.

    Returns:
        Pairs (P, 2) of positions, the leader and one of its group.

    Source: Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010 (low DCT frequencies).
    """
    kinds = np.zeros(len(sketches), int) if kinds is None else pd.factorize(kinds)[0]
    flat = np.array([sketch.std() < FLAT_CONTRAST for sketch in sketches], bool)
    pairs, least = [np.empty((0, 2), np.int64)], np.cos(np.radians(DEGREES_PER_BIT * bits))
    for kind in np.unique(kinds):
        rows = np.flatnonzero((kinds == kind) & ~flat)
        pairs.append(rows[_lead(sketches[rows], least, _most((kinds == kind).sum()))])
    return np.concatenate(pairs)


def _most(count: int) -> int:
    return max(2, int(count) // CLASS_SHARE)


def _lead(sketches: np.ndarray, least: float, most: int) -> np.ndarray:
    """Pairs of leaders and members (P, 2) among sketches of one kind; a block of leaders is compared at a time."""
    vectors = np.concatenate([_low_waves(sketches[i : i + 4096]) for i in range(0, len(sketches), 4096)] or [[]])
    free, pairs = np.ones(len(sketches), bool), []
    step = max(1, BLOCK_NUMBERS // max(1, len(sketches)))
    for start in range(0, len(sketches), step):
        leaders = start + np.flatnonzero(free[start : start + step])
        if not len(leaders):
            continue
        turned = _positions(sketches[leaders])
        scores = np.einsum("pld,nd->lpn", [_low_waves(position) for position in turned], vectors, optimize=True)
        for place, leader in enumerate(leaders):
            if not free[leader]:
                continue
            free[leader] = False
            best, position = scores[place].max(0), scores[place].argmax(0)
            near = np.flatnonzero(free & (best >= min(least, POSSIBLE)))
            near = near[np.argsort(-best[near], kind="stable")]
            sure, doubtful = near[best[near] >= least], near[best[near] < least][:MOST_CHECKED]
            same = _match(turned[position[doubtful], place], sketches[doubtful])
            members = np.concatenate([sure, doubtful[same]])[: most - 1]
            free[members] = False
            pairs += [(leader, member) for member in members]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _low_waves(sketches: np.ndarray) -> np.ndarray:
    """Low DCT frequencies without the mean, weighted by frequency, as unit vectors float32 (N, 64)."""
    from scipy.fft import dctn

    waves = dctn(sketches.astype(np.float32), axes=(1, 2), norm="ortho")[:, :WAVES, :WAVES]
    waves = (waves * np.hypot(*np.mgrid[:WAVES, :WAVES])).reshape(len(sketches), -1)
    return (waves / np.linalg.norm(waves, axis=1, keepdims=True).clip(1e-9)).astype(np.float32)


def _positions(sketches: np.ndarray) -> np.ndarray:
    """Sketches turned and mirrored in all eight ways (8, N, 32, 32)."""
    both = (sketches, sketches.transpose(0, 2, 1))
    return np.stack([one[:, ::down, ::right] for one in both for down in (1, -1) for right in (1, -1)])


def _match(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tell which sketches (M, 32, 32) are equal in brightness and contrast put aside, but for a patch, bool (M,)."""
    flat = [part.reshape(len(part), SKETCH_SIDE**2).astype(np.float32) for part in (ones, others)]
    flat = [part - np.median(part, 1, keepdims=True) for part in flat]
    one, other = (part / abs(part).mean(1, keepdims=True).clip(1e-6) for part in flat)
    kept = np.argsort(abs(one - other), 1)[:, : int(SKETCH_SIDE**2 * (1 - HIDDEN))]
    one, other = (np.take_along_axis(part, kept, 1) for part in (one, other))
    one, other = (part - part.mean(1, keepdims=True) for part in (one, other))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) >= MATCH * lengths.clip(1e-9)


def sketches_of(manifest: pd.DataFrame) -> np.ndarray:
    """Return the sketches of a manifest that readers of files have filled in, uint8 (N, 32, 32)."""
    return np.frombuffer(b"".join(manifest["sketch"]), np.uint8).reshape(-1, SKETCH_SIDE, SKETCH_SIDE)


def group_near_copies(manifest: pd.DataFrame, bits: float) -> tuple[pd.DataFrame, str]:
    """Give likely copies of one class, see `near_copies`, one group; return a sentence on how many there are, too."""
    order = manifest["image_id"].to_numpy().argsort()  # so that the order of rows does not matter
    label, given = (manifest[name].fillna("").to_numpy()[order] for name in ("label", "given_split"))
    sketches = sketches_of(manifest)[order]
    sides = np.char.add(np.char.add(label.astype(str), "|"), given.astype(str))
    joined = join_groups(manifest, order[near_copies(sketches, bits, sides)])
    torn = 0
    if len(set(given)) > 1:
        pairs = near_copies(sketches, bits, label)
        torn = int((given[pairs[:, 0]] != given[pairs[:, 1]]).sum())
    sizes = joined["group"].value_counts().loc[lambda size: size > 1]
    said = []
    if len(sizes):
        groups = f"{count_of(int(sizes.sum()), 'image')} in {count_of(len(sizes), 'group')}"
        said.append(f"{groups} are likely, not certain, copies: each group lies in one split.")
    if torn:
        copies = count_of(torn, "likely copy", "likely copies")
        said.append(f"{copies} lie across the split that was given: left there.")
    return joined, " ".join(said)


def join_groups(manifest: pd.DataFrame, pairs: np.ndarray) -> pd.DataFrame:
    """Join the groups of images that are likely copies: the first of a pair leads, the other follows; no chains.

    Groups of different classes, or of different sides of a split that the user gave, are not joined, and none grows
    beyond a tenth of its class, or two. A drawn split gives way: a group on two sides moves to train, else to val.

    Args:
        manifest: N rows with `group`, and where known `label`, `given_split` and `split`.
        pairs: positions of rows that belong together, integers (P, 2), the surest first.
    """
    numbers, names = pd.factorize(manifest["group"], sort=True)
    columns = [manifest[name].fillna("") if name in manifest else numbers * 0 for name in ("label", "given_split")]
    label, given = (pd.Series(np.asarray(column)).groupby(numbers).first().to_numpy() for column in columns)
    most = pd.Series(np.asarray(columns[0])).value_counts().map(_most)
    sizes, leader = np.bincount(numbers), np.arange(len(names))
    total, leads = sizes.copy(), np.zeros(len(names), bool)
    for one, other in numbers[np.asarray(pairs, np.int64).reshape(-1, 2)]:
        if leads[other]:
            one, other = other, one
        alone = leader[one] == one and leader[other] == other and one != other and not leads[other]
        fit = label[one] == label[other] and given[one] == given[other]
        if alone and fit and total[one] + sizes[other] <= most[label[one]]:
            leader[other], leads[one] = one, True
            total[one] += sizes[other]
    joined = manifest.assign(group=np.asarray(names)[leader][numbers])
    if "split" not in joined or joined["split"].isna().any():
        return joined
    sides = joined.groupby("group")["split"].agg(set)
    torn = sides[sides.map(len) > 1].map(lambda side: "train" if "train" in side else "val")
    moved = joined["split"].where(~joined["group"].isin(torn.index), joined["group"].map(torn.astype(object)))
    changed = int((moved != joined["split"]).sum())
    if changed:
        LOG.info("%s moved to the split of their likely, not certain, copies.", count_of(changed, "image"))
    return joined.assign(split=moved)


def join_certain(manifest: pd.DataFrame, pairs: np.ndarray) -> pd.DataFrame:
    """Join groups of which pairs of rows (P, 2) belong together for certain: transitively, under the first name."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers, names = pd.factorize(manifest["group"], sort=True)
    left, right = numbers[np.asarray(pairs, np.int64).reshape(-1, 2)].T
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(names), len(names)))
    component = connected_components(graph, directed=False)[1]
    _, first = np.unique(component, return_index=True)
    return manifest.assign(group=np.asarray(names)[first][component][numbers])


NEAR_COPY, EQUAL = 0.87, 0.98  # mirrored copies of photographs: EfficientNet-Lite0 0.9 to 0.97, SqueezeNet 0.8 to 0.95
NEAREST = 10  # so many neighbours of each image are looked at for near copies


def similar_pairs(features: np.ndarray) -> np.ndarray:
    """Find pairs of images that an untrained backbone sees as one: the same scene, a crop, a mirror image.

    All features share a large common part, so what is left without it is compared. Each of a pair is among the ten
    nearest of the other, unless they are almost equal.

    Args:
        features: unit vectors (N, dim) of a pretrained backbone: a trained encoder brings whole classes as close.

    Returns:
        Positions (P, 2), the smaller first, the most similar pairs first.
    """
    if len(features) < 3:  # without their mean, two are as unlike as can be
        return np.empty((0, 2), np.int64)
    centred = features - features.mean(0)
    centred = (centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-9)).astype(np.float32)
    scores, found = exact_search(centred, blocks(centred), min(NEAREST + 1, len(centred)))
    left, place = np.nonzero(scores > NEAR_COPY)
    ends = np.sort(np.column_stack([left, found[left, place]]), axis=1)
    pairs = pd.DataFrame({"one": ends[:, 0], "other": ends[:, 1], "score": scores[left, place]})
    pairs = pairs[pairs["one"] < pairs["other"]].groupby(["one", "other"])["score"].agg(["size", "max"])
    pairs = pairs[(pairs["size"] == 2) | (pairs["max"] >= EQUAL)].sort_values("max", ascending=False, kind="stable")
    return np.array(pairs.index.to_list(), np.int64).reshape(-1, 2)


def near_copy_groups(features: np.ndarray, rows: pd.DataFrame) -> list[np.ndarray]:
    """Return the positions of each group of two or more `similar_pairs` in N rows, the largest group first."""
    joined = join_groups(pd.DataFrame({"group": rows["image_id"].to_numpy()}), similar_pairs(features))
    groups = [members for members in joined.groupby("group").indices.values() if len(members) > 1]
    return sorted(groups, key=lambda members: (-len(members), members[0]))
