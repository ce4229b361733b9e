import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.images import photograph, pictures
from PIL import ImageEnhance

from rectrio_lib.core.errors import DataError
from rectrio_lib.data import duplicates
from rectrio_lib.data.dataset import make_manifest
from rectrio_lib.data.duplicates import join_groups, near_copies, remove_copies
from rectrio_lib.data.splits import split_by_file, split_by_group, split_by_pattern

SPLIT_NAMES = {"train", "val", "test"}
FRACTIONS = {"test": 1 / 6, "val": 1 / 12}


def manifest_of(labels, groups=None, splits=None) -> pd.DataFrame:
    """Build a manifest whose n-th picture is called id-n."""
    ids = [f"id-{n}" for n in range(len(labels))]
    columns = {"image_id": ids, "row": range(len(ids)), "label": labels, "split": splits, "group": groups or ids}
    return pd.DataFrame(columns)


def by_id(manifest: pd.DataFrame) -> dict[str, str]:
    return dict(zip(manifest["image_id"], manifest["split"], strict=True))


# --- splits

MEMBERS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 15)), min_size=1, max_size=120)


def grouped(members) -> pd.DataFrame:
    return manifest_of([label for label, _ in members], [f"{label}{number}" for label, number in members])


@settings(deadline=None, max_examples=50)
@given(MEMBERS, st.floats(0, 0.49), st.floats(0, 0.49), st.integers(0, 3))
def test_no_group_lies_on_two_sides_and_every_class_trains(members, test, val, seed):
    manifest = split_by_group(grouped(members), {"test": test, "val": val}, seed)
    assert set(manifest["split"]) <= SPLIT_NAMES
    assert manifest.groupby("group")["split"].nunique().eq(1).all()
    assert set(manifest.loc[manifest["split"] == "train", "label"]) == set(manifest["label"])


@settings(deadline=None, max_examples=50)
@given(MEMBERS, st.randoms(use_true_random=False))
def test_split_does_not_depend_on_the_order_of_rows(members, random):
    manifest = grouped(members)
    order = random.sample(range(len(manifest)), len(manifest))
    assert by_id(split_by_group(manifest.iloc[order], FRACTIONS)) == by_id(split_by_group(manifest, FRACTIONS))


@settings(deadline=None, max_examples=50)
@given(MEMBERS, st.floats(0, 0.25), st.floats(0, 0.25))
def test_shares_of_every_class_miss_the_wanted_ones_by_half_a_group_at_most(members, test, val):
    manifest = split_by_group(grouped(members), {"test": test, "val": val})
    for _, pictures_of_class in manifest.groupby("label"):
        largest = pictures_of_class["group"].value_counts().max()
        for split, fraction in (("test", test), ("val", val)):
            missed = abs(pictures_of_class["split"].eq(split).sum() - fraction * len(pictures_of_class))
            assert missed <= largest / 2 + 1e-9


@settings(deadline=None, max_examples=50)
@given(MEMBERS, st.data())
def test_official_test_pictures_stay_test_and_only_val_is_drawn_from_the_rest(members, data):
    flags = data.draw(st.lists(st.booleans(), min_size=len(members), max_size=len(members)))
    official = np.array([True, *flags[1:]])
    manifest = grouped(members).assign(split=np.where(official, "test", "train"))
    after = split_by_group(manifest, FRACTIONS)
    assert (after.loc[official, "split"] == "test").all()
    of_test_group = manifest["group"].isin(manifest.loc[official, "group"])
    assert set(after.loc[~of_test_group, "split"]) <= {"train", "val"}
    assert after.groupby("group")["split"].nunique().eq(1).all()


def test_large_set_gets_the_wanted_shares_and_another_seed_another_split():
    manifest = manifest_of(["a", "b"] * 600)
    splits = [split_by_group(manifest, FRACTIONS, seed) for seed in (0, 0, 1)]
    assert by_id(splits[0]) == by_id(splits[1])
    assert by_id(splits[0]) != by_id(splits[2])
    for split in splits:
        assert split.value_counts(["label", "split"]).to_dict() == {
            (label, side): count for label in "ab" for side, count in (("train", 450), ("test", 100), ("val", 50))
        }


def test_split_that_the_source_lacks_is_drawn_and_the_one_it_brings_is_kept():
    manifest = manifest_of(["a"] * 60, splits=["val"] * 12 + ["train"] * 48)
    after = split_by_group(manifest, {"test": 0.25, "val": 0.25})
    assert after["split"].value_counts().to_dict() == {"train": 36, "val": 12, "test": 12}
    assert (after["split"][:12] == "val").all()


def test_group_that_the_source_puts_on_two_sides_goes_to_the_later_one():
    manifest = manifest_of(["a"] * 7, list("xxyyzzw"), ["test", "val", "val", "train", "train", "test", "train"])
    assert list(split_by_group(manifest, FRACTIONS)["split"]) == ["test"] * 2 + ["val"] * 2 + ["test"] * 2 + ["train"]


# --- cleaning


def test_of_equal_pictures_the_test_one_stays_and_the_ledger_names_the_others_and_its_label():
    pixels = pictures(3)[[0, 1, 0, 2, 1, 0]]
    frame = pd.DataFrame({"label": list("abcabd"), "split": ["train", "train", "test", "train", "train", "train"]})
    manifest = make_manifest(pixels, frame)
    kept, ledger = remove_copies(manifest)
    pd.testing.assert_frame_equal(kept, manifest.iloc[[1, 2, 3]].reset_index(drop=True))
    assert ledger.to_dict("records") == [
        {"picture": "0", "reason": "copy of a picture labelled c"},
        {"picture": "4", "reason": "copy of a picture labelled b"},
        {"picture": "5", "reason": "copy of a picture labelled c"},
    ]


def test_copies_among_files_are_named_by_their_path():
    frame = pd.DataFrame({"label": ["cat", "dog"], "path": ["cat/1.png", "dog/2.png"]})
    kept, ledger = remove_copies(make_manifest(pictures(1)[[0, 0]], frame))
    assert list(kept["path"]) == ["cat/1.png"]
    assert ledger.to_dict("records") == [{"picture": "dog/2.png", "reason": "copy of a picture labelled cat"}]


def test_which_copy_stays_does_not_depend_on_the_order_of_rows():
    frame = pd.DataFrame({"label": ["b", "a", "c"]})
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        kept, _ = remove_copies(make_manifest(pictures(1)[[0, 0, 0]], frame.iloc[order].reset_index(drop=True)))
        assert list(kept["label"]) == ["a"]


# --- near copies


def stack(photographs) -> np.ndarray:
    return np.stack([np.asarray(p.resize((64, 64))).transpose(2, 0, 1) for p in photographs])


def pairs_in(pixels: np.ndarray, bits: int = 8) -> set[tuple[int, int]]:
    manifest = pd.DataFrame({"row": range(len(pixels))})
    return set(map(tuple, near_copies(pixels, manifest, bits).tolist()))


def test_smaller_brighter_or_marked_copies_are_found_and_other_pictures_are_not():
    whole = photograph(0, side=200)
    marked = whole.copy()
    marked.paste((255, 255, 255), (10, 170, 100, 190))
    copies = [whole, whole.resize((90, 90)), ImageEnhance.Brightness(whole).enhance(1.2), marked]
    others = [photograph(n, side=200) for n in range(1, 40)]
    assert pairs_in(stack(copies + others)) == {(a, b) for a in range(4) for b in range(a + 1, 4)}
    assert pairs_in(stack(copies + others)[:, :1]) == {(a, b) for a in range(4) for b in range(a + 1, 4)}


def test_pictures_of_one_colour_are_no_copies_of_one_another():
    rng = np.random.default_rng(0)
    flat = np.repeat(rng.integers(0, 256, (30, 3, 1, 1)), 64, 2).repeat(64, 3)
    noisy = np.clip(flat + rng.integers(-3, 4, flat.shape), 0, 255)
    assert pairs_in(np.concatenate([flat, noisy]).astype(np.uint8), bits=16) == set()


def test_hashes_may_differ_in_as_many_bits_as_told_and_no_more(monkeypatch):
    codes = [0, 0b11111, 0b11111 << 20 | 0b1 << 30, None]  # 5 bits from the first, 6 bits, flat
    hashes = [c if c is None else np.frombuffer(c.to_bytes(8, "big"), np.uint8) for c in codes]
    monkeypatch.setattr(duplicates, "_perceptual_hash", lambda picture: hashes[picture[0, 0, 0]])
    pixels = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    assert [pairs_in(pixels, bits) for bits in (4, 5, 6)] == [set(), {(0, 1)}, {(0, 1), (0, 2)}]


def test_pairs_are_positions_in_the_manifest():
    pixels = stack([photograph(0), photograph(1), photograph(2), photograph(1)])
    assert near_copies(pixels, pd.DataFrame({"row": [3, 2, 1]}), 8).tolist() == [[0, 2]]
    assert near_copies(pixels, pd.DataFrame({"row": []}), 8).shape == (0, 2)


def test_near_copies_share_a_group_and_pictures_below_32_pixels_keep_theirs():
    pixels = stack([photograph(0), photograph(1), photograph(0)])
    manifest = pd.DataFrame({"row": [0, 1, 2], "group": ["c", "b", "a"]})
    assert list(duplicates.group_near_copies(pixels, manifest, 8)["group"]) == ["a", "b", "a"]
    assert list(duplicates.group_near_copies(pixels[:, :, ::4, ::4], manifest, 8)["group"]) == ["c", "b", "a"]


def test_groups_are_joined_transitively_and_products_stay_whole():
    manifest = pd.DataFrame({"group": ["mug", "mug", "cup", "pen", "cap", "bag"]})
    joined = join_groups(manifest, np.array([[1, 2], [4, 2]]))["group"]
    assert list(joined) == ["cap", "cap", "cap", "pen", "cap", "bag"]
    pd.testing.assert_frame_equal(join_groups(manifest, np.empty((0, 2), np.int64)), manifest)


NUMBERS = st.lists(st.integers(0, 20), min_size=30, max_size=30)
OFFICIAL = st.lists(st.sampled_from(["", "val", "test"]), min_size=30, max_size=30)
PAIRS = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=25)


@settings(deadline=None, max_examples=60)
@given(NUMBERS, PAIRS, OFFICIAL)
def test_no_chain_of_copies_straddles_two_splits_and_no_other_groups_are_joined(numbers, pairs, official):
    groups = [f"g{number:02}" for number in numbers]
    manifest = manifest_of([("a", "b")[n % 2] for n in range(30)], groups, official)
    joined = join_groups(manifest, np.array(pairs))
    expected = list(groups)  # by hand: repaint until nothing changes
    for _ in range(30):
        for a, b in pairs:
            names = {expected[a], expected[b]}
            expected = [min(names) if name in names else name for name in expected]
    assert list(joined["group"]) == expected
    split = split_by_group(joined, FRACTIONS)["split"]
    assert all(split[a] == split[b] for a, b in pairs)
    assert split.groupby(groups).nunique().eq(1).all()


# --- splits of one's own

FILES = pd.DataFrame({"path": ["cat/a10_1.jpg", "cat/a10/web_2.jpg", "dog/web_3.jpg"], "split": ["val", "test", None]})


def test_pattern_looks_at_the_file_name_without_folders_and_puts_aside_earlier_splits():
    assert split_by_pattern(FILES, "a10")["split"].fillna("").tolist() == ["test", "", ""]
    assert split_by_pattern(FILES, r"_[23]\.")["split"].fillna("").tolist() == ["", "test", "test"]


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(", r"test_pattern='\(' is no regular expression: missing \)"),
        ("^b10_", r"'\^b10_' matches no file name, such as a10_1\.jpg"),
        ("jpg$", r"'jpg\$' matches every file name"),
    ],
)
def test_pattern_that_splits_nothing_is_refused(pattern, sentence):
    with pytest.raises(DataError, match=sentence):
        split_by_pattern(FILES, pattern)


def test_table_gives_the_split_and_leaves_the_rest_open(tmp_path):
    (tmp_path / "split.csv").write_text("split,path\ntrain,dog/web_3.jpg\ntest,cat/a10_1.jpg\n", encoding="utf-8")
    assert split_by_file(FILES, tmp_path / "split.csv")["split"].fillna("").tolist() == ["test", "", "train"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read as CSV: .*No such file"),
        ("", "cannot be read as CSV: "),
        ("file,split\nx,test\n", r"has the columns \['file', 'split'\]: it needs path and split"),
        (
            "path,split\ncat/a10_1.jpg,dev\n",
            "names a split other than train, val, test in 1 lines, .*'cat/a10_1.jpg,dev'",
        ),
        ("path,split\ncat/a10_1.jpg,\n", "names a split other than train, val, test"),
        ("path,split\ndog/web_3.jpg,val\ndog/web_3.jpg,test\n", "names a path twice in 1 lines"),
        ("path,split\ndog/web_4.jpg,val\n", "names a path that is not in the folder in 1 lines, .*'dog/web_4.jpg,val'"),
    ],
)
def test_table_that_does_not_fit_is_refused_with_its_first_wrong_line(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "split.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"split_file .*split\.csv {sentence}"):
        split_by_file(FILES, tmp_path / "split.csv")
