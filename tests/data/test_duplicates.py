import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.images import photograph, pictures
from makers.indexes import unit
from PIL import Image, ImageEnhance, ImageOps

from rectrio_lib.core.errors import DataError
from rectrio_lib.data import duplicates
from rectrio_lib.data.dataset import make_manifest
from rectrio_lib.data.decoding import sketch
from rectrio_lib.data.duplicates import group_near_copies, join_certain, join_groups, near_copies, remove_copies
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
        {"picture": "0", "reason": "copy of 2, labelled c"},
        {"picture": "4", "reason": "copy of 1, labelled b"},
        {"picture": "5", "reason": "copy of 2, labelled c"},
    ]


def test_copies_among_files_are_named_by_their_path():
    frame = pd.DataFrame({"label": ["cat", "dog"], "path": ["cat/1.png", "dog/2.png"]})
    kept, ledger = remove_copies(make_manifest(pictures(1)[[0, 0]], frame))
    assert list(kept["path"]) == ["cat/1.png"]
    assert ledger.to_dict("records") == [{"picture": "dog/2.png", "reason": "copy of cat/1.png, labelled cat"}]


def test_which_copy_stays_does_not_depend_on_the_order_of_rows():
    frame = pd.DataFrame({"label": ["b", "a", "c"]})
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        kept, _ = remove_copies(make_manifest(pictures(1)[[0, 0, 0]], frame.iloc[order].reset_index(drop=True)))
        assert list(kept["label"]) == ["a"]


# --- near copies


def sketches(photographs) -> np.ndarray:
    return np.stack([sketch(one) for one in photographs])


def changed(whole: Image.Image) -> dict[str, Image.Image]:
    """Copies of a photograph as they come about."""
    width, height = whole.size
    marked = whole.copy()
    marked.paste((0, 0, 0), (width // 8, height // 2, width // 8 + width // 4, height // 2 + height // 4))
    return {
        "smaller": whole.resize((width // 2, height // 2)),
        "brighter": ImageEnhance.Brightness(whole).enhance(1.2),
        "grey": whole.convert("L"),
        "mirrored": ImageOps.mirror(whole),
        "turned": whole.transpose(Image.Transpose.ROTATE_90),
        "turned and mirrored": ImageOps.flip(whole.transpose(Image.Transpose.ROTATE_270)),
        "upside down": whole.transpose(Image.Transpose.ROTATE_180),
        "squeezed": whole.resize((int(width * 1.4), height)),
        "with a border": ImageOps.expand(whole, width // 20, "white"),
        "with a black box": marked,
        "cropped": whole.crop((width // 40, height // 40, width - width // 40, height - height // 40)),
    }


@pytest.mark.parametrize("name", changed(Image.new("RGB", (200, 160))))
def test_changed_copies_are_found_and_other_photographs_are_not(name):
    wholes = [photograph(n, side=200).crop((0, 0, 200, 160)) for n in range(40)]
    pairs = near_copies(sketches([*wholes, *(changed(whole)[name] for whole in wholes)]), 8)
    assert set(map(tuple, pairs.tolist())) == {(n, n + 40) for n in range(40)}


def test_nothing_is_near_at_zero_bits_but_what_is_equal_and_more_bits_find_more():
    wholes = [photograph(n, side=200) for n in range(20)]
    cropped = [whole.crop((20, 20, 190, 190)) for whole in wholes]
    counts = [len(near_copies(sketches([*wholes, *wholes[:3], *cropped]), bits)) for bits in (0, 4, 8, 12)]
    assert counts == sorted(counts) and counts[0] >= 3 and counts[-1] > counts[0]


def test_images_of_one_colour_are_not_copies_of_one_another():
    rng = np.random.default_rng(0)
    flat = np.repeat(rng.integers(0, 256, (30, 1, 1, 3)), 64, 1).repeat(64, 2)
    noisy = np.clip(flat + rng.integers(-3, 4, flat.shape), 0, 255)
    assert len(near_copies(sketches(map(Image.fromarray, np.concatenate([flat, noisy]).astype(np.uint8))), 16)) == 0


def test_groups_hold_no_chains_and_are_led_by_one_image():
    path = [photograph(0).crop((n, 0, n + 40, 64)) for n in range(0, 24, 2)]  # each near the next, the ends are not
    pairs = near_copies(sketches([*path, *(photograph(n) for n in range(1, 60))]), 8)
    leaders, members = set(pairs[:, 0].tolist()), pairs[:, 1].tolist()
    assert pairs.max() < 12 and len(members) == len(set(members)) and not leaders & set(members)
    direct = [len(near_copies(sketches([path[one], path[other]]), 8)) for one, other in pairs]
    assert all(direct) and not len(near_copies(sketches([path[0], path[-1]]), 8))


def test_images_of_different_kinds_are_not_compared_and_a_group_is_a_tenth_of_its_kind():
    equal = sketches([photograph(0)] * 60)
    pairs = near_copies(equal, 8, np.repeat(["a", "b", "c"], [40, 19, 1]))
    kinds = np.repeat([0, 1, 2], [40, 19, 1])
    assert (kinds[pairs[:, 0]] == kinds[pairs[:, 1]]).all()
    sizes = pd.Series(pairs[:, 0]).value_counts() + 1
    assert sizes[kinds[sizes.index] == 0].max() == 4 and sizes[kinds[sizes.index] == 1].max() == 2
    assert near_copies(equal[:0], 8).shape == (0, 2)


def test_a_film_of_thousands_of_frames_is_compared_in_little_memory():
    rng = np.random.default_rng(0)
    frames = np.clip(sketches([photograph(0)]).astype(int) + rng.integers(-2, 3, (4000, 32, 32)), 0, 255).astype(
        np.uint8
    )
    tracemalloc.start()
    pairs = near_copies(frames, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pairs) == 4000 - 10, "ten groups of a tenth"
    assert peak < 250e6, "all pairs of them would take 128 MB a column"


def manifest_of_sketches(photographs, labels, given=None) -> pd.DataFrame:
    manifest = manifest_of(labels).assign(sketch=[sketch(one).tobytes() for one in photographs])
    return manifest.assign(given_split=given or [""] * len(labels))


def test_near_copies_of_a_class_share_a_group_whatever_the_order_and_those_of_two_classes_do_not():
    manifest = manifest_of_sketches([photograph(n) for n in (0, 1, 0, 0, 2)], list("aaabb"))
    joined, note = group_near_copies(manifest, 8)
    assert joined["group"].tolist() == ["id-0", "id-1", "id-0", "id-3", "id-4"]
    assert "2 images in 1 group" in note and "likely" in note
    shuffled, _ = group_near_copies(manifest.iloc[[4, 2, 0, 3, 1]].reset_index(drop=True), 8)
    assert dict(zip(shuffled["image_id"], shuffled["group"], strict=True)) == dict(
        zip(joined["image_id"], joined["group"], strict=True)
    )
    assert group_near_copies(manifest_of_sketches([photograph(n) for n in range(3)], list("aab")), 8)[1] == ""


def test_near_copies_across_a_given_split_are_counted_and_left():
    manifest = manifest_of_sketches([photograph(n) for n in (0, 0, 1, 1)], list("aaaa"), ["train", "test", "", ""])
    joined, note = group_near_copies(manifest, 8)
    assert joined["group"].tolist() == ["id-0", "id-1", "id-2", "id-2"]
    assert "1 likely copy" in note


# --- groups


def test_groups_are_joined_to_their_leader_and_no_further_and_products_stay_whole():
    manifest = pd.DataFrame({"group": ["mug", "mug", "cup", "pen", "cap", "bag"] + [f"x{n}" for n in range(30)]})
    joined = join_groups(manifest, np.array([[1, 2], [4, 2], [5, 3]]))["group"].tolist()
    assert joined[:6] == ["mug", "mug", "mug", "bag", "cap", "bag"]
    pd.testing.assert_frame_equal(join_groups(manifest, np.empty((0, 2), np.int64)), manifest)


def test_a_drawn_split_gives_way_to_train_and_a_given_one_does_not():
    labels, drawn = ["a"] * 40, ["train", "test", "val", "test", "test", "train"] + ["train"] * 34
    manifest = manifest_of(labels, splits=drawn)
    pairs = np.array([[0, 1], [2, 3], [4, 4]])
    assert join_groups(manifest, pairs)["split"].tolist()[:6] == ["train", "train", "val", "val", "test", "train"]
    given = manifest.assign(given_split=manifest["split"])
    assert join_groups(given, pairs)["split"].tolist() == drawn
    assert join_groups(given, pairs)["group"].is_unique


NUMBERS = st.lists(st.integers(0, 20), min_size=30, max_size=30)
OFFICIAL = st.lists(st.sampled_from(["", "train", "val", "test"]), min_size=30, max_size=30)
PAIRS = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=25)


@settings(deadline=None, max_examples=60)
@given(PAIRS, OFFICIAL, st.booleans())
def test_no_group_of_likely_copies_crosses_a_class_a_given_split_or_its_share(pairs, official, drawn):
    labels = [("a", "b")[n % 2] for n in range(30)]
    manifest = manifest_of(labels, splits=official).assign(given_split=official)
    if drawn:
        manifest = split_by_group(manifest, FRACTIONS)
    joined = join_groups(manifest, np.array(pairs))
    together = joined.groupby("group")
    assert together["label"].nunique().eq(1).all() and together["given_split"].nunique().eq(1).all()
    assert together.size().max() <= 2
    split = split_by_group(joined, FRACTIONS)["split"]
    assert split.groupby(joined["group"]).nunique().eq(1).all()
    kept = np.isin(official, ["val", "test"])
    assert (split[kept] == np.array(official)[kept]).all()
    linked = {frozenset((a, b)) for a, b in pairs}
    assert all(frozenset(rows) in linked for rows in together.indices.values() if len(rows) > 1)


@settings(deadline=None, max_examples=60)
@given(NUMBERS, PAIRS)
def test_certain_copies_are_joined_as_by_hand(numbers, pairs):
    groups = [f"g{number:02}" for number in numbers]
    expected = list(groups)  # repaint until nothing changes
    for _ in range(30):
        for a, b in pairs:
            names = {expected[a], expected[b]}
            expected = [min(names) if name in names else name for name in expected]
    assert list(join_certain(manifest_of(["a"] * 30, groups), np.array(pairs))["group"]) == expected


def test_groups_of_several_images_rather_train():
    groups = [f"g{n // 2}" for n in range(40)] + [f"single{n}" for n in range(40)]
    split = split_by_group(manifest_of(["a"] * 80, groups), {"test": 0.25, "val": 0.125})
    assert split["split"].value_counts().to_dict() == {"train": 50, "test": 20, "val": 10}
    assert set(split.loc[split["split"] != "train", "group"]) < {f"single{n}" for n in range(40)}


def test_similar_pairs_are_mutual_and_the_surest_come_first():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 32)).astype(np.float32)
    features[1] = features[0] + 0.05 * rng.normal(size=32)
    features[3] = features[2] + 0.2 * rng.normal(size=32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    assert duplicates.similar_pairs(features).tolist() == [[0, 1], [2, 3]]
    assert duplicates.similar_pairs(features[:2]).shape == (0, 2)


# --- splits of one's own

FILES = pd.DataFrame({"path": ["cat/a10_1.jpg", "cat/a10/web_2.jpg", "dog/web_3.jpg"], "split": ["val", "test", None]})


def test_pattern_looks_at_the_file_name_without_folders_and_puts_aside_earlier_splits():
    assert split_by_pattern(FILES, "a10")["split"].fillna("").tolist() == ["test", "", ""]
    assert split_by_pattern(FILES, r"_[23]\.")["split"].fillna("").tolist() == ["", "test", "test"]


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(", r"test_pattern='\('"),
        ("^b10_", r"a10_1\.jpg"),
        ("jpg$", r"'jpg\$'"),
    ],
)
def test_pattern_that_splits_nothing_is_refused(pattern, sentence):
    with pytest.raises(DataError, match=sentence):
        split_by_pattern(FILES, pattern)


def test_table_gives_the_split_and_leaves_the_rest_open(tmp_path):
    for end in ("", ","):
        lines = [line + end for line in ("train,dog/web_3.jpg", "test,cat/a10_1.jpg")]
        (tmp_path / "split.csv").write_text("\n".join(["split,path", *lines]), encoding="utf-8")
        assert split_by_file(FILES, tmp_path / "split.csv")["split"].fillna("").tolist() == ["test", "", "train"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, ".*No such file"),
        ("", "CSV"),
        ("file,split\nx,test\n", r".*\['file', 'split'\]"),
        (
            "path,split\ncat/a10_1.jpg,dev\n",
            "1 line, .*'cat/a10_1.jpg,dev'",
        ),
        ("path,split\ncat/a10_1.jpg,\n", "'cat/a10_1.jpg,'"),
        ("path,split\nmy cat, 1.jpg,test\n", "lines hold more values"),
        ("path,split\ndog/web_3.jpg,val\ndog/web_3.jpg,test\n", "twice"),
        ("path,split\ndog/web_4.jpg,val\n", "'dog/web_4.jpg,val'"),
    ],
)
def test_table_that_does_not_fit_is_refused_with_its_first_wrong_line(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "split.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"split\.csv.* .*{sentence}"):
        split_by_file(FILES, tmp_path / "split.csv")


def test_near_copies_are_joined_across_a_chain_and_others_are_not():
    rng = np.random.default_rng(0)
    vectors = unit(rng, 40, 32)
    vectors[5] = vectors[20] + 0.02 * rng.normal(size=32)
    vectors[30] = vectors[5] + 0.02 * rng.normal(size=32)
    vectors[2] = vectors[3]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = duplicates.near_copy_groups(vectors, manifest_of([""] * 40))
    assert [members.tolist() for members in groups] == [[5, 20, 30], [2, 3]]


def test_near_copies_are_told_by_what_images_do_not_have_in_common():
    shared = 5 * unit(np.random.default_rng(1), 1, 32)
    vectors = shared + unit(np.random.default_rng(0), 30, 32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (vectors @ vectors.T).min() > 0.9
    assert duplicates.near_copy_groups(vectors.astype(np.float32), manifest_of([""] * 30)) == []


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_images_have_no_near_copies(count):
    assert duplicates.near_copy_groups(unit(np.random.default_rng(0), count), manifest_of([""] * count)) == []
