"""No product on two sides of a split, nor one of its near copies."""

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrio_lib.data.splits import split_by_product

VIEWS = st.lists(st.integers(1, 6), min_size=2, max_size=60)  # of each product
PAIRS = st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=6)


def manifest_of(labels, groups=None, splits=None) -> pd.DataFrame:
    ids = [f"id-{n}" for n in range(len(labels))]
    return pd.DataFrame({"image_id": ids, "label": labels, "group": groups or labels, "split": splits})


def catalogue(views, pairs=()) -> pd.DataFrame:
    """Products by number, of which some pairs share a group."""
    numbers = list(range(len(views)))
    for one, other in ((a % len(views), b % len(views)) for a, b in pairs):
        numbers = [numbers[one] if n == numbers[other] else n for n in numbers]
    labels = [f"p{number:02}" for number, count in enumerate(views) for _ in range(count)]
    return manifest_of(labels, [f"p{numbers[int(label[1:])]:02}" for label in labels])


@settings(deadline=None, max_examples=80)
@given(VIEWS, PAIRS, st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 10_000))
def test_neither_a_product_nor_a_pair_of_near_copies_lies_on_two_sides(views, pairs, test, val, seed):
    split = split_by_product(catalogue(views, pairs), {"test": test, "val": val}, seed)
    assert set(split["split"]) <= {"train", "val", "test"}
    for column in ("label", "group"):
        assert split.groupby(column)["split"].nunique().eq(1).all()
    assert "train" in set(split["split"])


@settings(deadline=None, max_examples=40)
@given(VIEWS, st.randoms(use_true_random=False))
def test_the_split_of_products_does_not_depend_on_the_order_of_rows(views, random):
    manifest, fractions = catalogue(views), {"test": 0.4, "val": 0.1}
    order = random.sample(range(len(manifest)), len(manifest))
    shuffled = split_by_product(manifest.iloc[order], fractions)
    assert shuffled.sort_index()["split"].tolist() == split_by_product(manifest, fractions)["split"].tolist()


@settings(deadline=None, max_examples=40)
@given(VIEWS, st.integers(0, 10_000))
def test_fractions_are_shares_of_products_however_many_views_they_have(views, seed):
    split = split_by_product(catalogue(views), {"test": 0.4, "val": 0.1}, seed).drop_duplicates("label")["split"]
    for name, fraction in {"test": 0.4, "val": 0.1}.items():
        assert abs((split == name).sum() - fraction * len(views)) <= 1


def test_another_seed_splits_products_otherwise():
    splits = [split_by_product(catalogue([3] * 40), {"test": 0.4}, seed)["split"].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_a_product_goes_where_one_of_its_pictures_is_given_to_and_what_is_lacking_is_drawn():
    labels = ["a", "a", "b", "b"] + [f"c{n // 2}" for n in range(40)]
    manifest = manifest_of(labels, splits=[None, "test", "val", "train"] + [None] * 40)
    after = split_by_product(manifest, {"test": 0.5, "val": 0.5})
    assert after["split"].tolist() == ["test"] * 2 + ["val"] * 2 + ["train"] * 40
    drawn = split_by_product(manifest.iloc[[0, 1, *range(4, 44)]], {"test": 0.5, "val": 0.5})
    assert drawn["split"].value_counts().to_dict() == {"train": 20, "val": 20, "test": 2}
