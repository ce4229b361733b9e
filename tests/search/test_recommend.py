"""Recommendations against naive loops: strategies, candidates, what is left out, and bad input."""

import numpy as np
import pandas as pd
import pytest
from makers.images import save_photograph
from makers.indexes import clustered
from makers.served import build_collection
from sklearn.linear_model import LogisticRegression

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index.index import Index
from rectrio_lib.index.live import LiveIndex
from rectrio_lib.search.ranking import recommend as module
from rectrio_lib.search.ranking import strategies
from rectrio_lib.search.ranking.recommend import Taste, recommend
from rectrio_lib.search.searcher import Searcher

COUNT, DIM = 600, 32
VECTORS = clustered(np.random.default_rng(0), COUNT, DIM, clusters=12)
ROWS = pd.DataFrame({"image_id": [f"p{i}" for i in range(COUNT)], "number": range(COUNT)})
ROWS["product"] = [None if i % 50 == 0 else f"product {i // 3}" for i in range(COUNT)]
NONE = np.empty(0, np.int64)


def live():
    """The last hundred came after the index was built."""
    main = Index.build("flat", VECTORS[:500], ROWS[:500], "abc")
    index = LiveIndex(main)
    index.add(VECTORS[500:], ROWS[500:].to_dict("records"))
    return index.current


INDEXES = {kind: Index.build(kind, VECTORS, ROWS, "abc", search_param=600) for kind in ("flat", "hnsw")}
INDEXES["live"] = live()
FLAT = INDEXES["flat"]


def found(liked=(), disliked=(), k=10, seen=NONE, index=FLAT, **taste):
    vectors = (VECTORS[list(part)] if len(part) else VECTORS[:0] for part in (liked, disliked))
    return recommend(index, *vectors, k, np.asarray(seen, np.int64), Taste(**taste))


def test_rocchio_is_the_mean_moved_away_from_what_is_disliked():
    liked, disliked = VECTORS[:3], VECTORS[3:5]
    mean, other = liked.sum(0) / 3, disliked.sum(0) / 2
    naive = mean + 0.75 * (mean - other)
    np.testing.assert_allclose(strategies.rocchio(liked, disliked), naive / np.sqrt((naive**2).sum()), atol=1e-6)
    alone = strategies.rocchio(liked, VECTORS[:0])
    np.testing.assert_allclose(alone, mean / np.sqrt((mean**2).sum()), atol=1e-6)
    opposite = np.stack([VECTORS[0], -VECTORS[0]])
    np.testing.assert_array_equal(strategies.rocchio(opposite, VECTORS[:0]), -VECTORS[0])  # their mean points nowhere


def test_best_score_goes_by_the_most_similar_judgement():
    scores = strategies.by_best(VECTORS[10:40], VECTORS[:3], VECTORS[3:6])
    for score, vector in zip(scores, VECTORS[10:40], strict=True):
        near, far = max(float(vector @ v) for v in VECTORS[:3]), max(float(vector @ v) for v in VECTORS[3:6])
        assert score == pytest.approx(near if near > far else -(far**2), abs=1e-5)


def test_the_regression_takes_candidates_for_not_liked_and_they_weigh_as_much_as_the_likes():
    candidates, liked, disliked = VECTORS[10:60], VECTORS[:3], VECTORS[3:5]
    x, y = np.concatenate([liked, disliked, candidates]), [1] * 3 + [0] * 52
    model = LogisticRegression(C=100).fit(x, y, [1] * 5 + [3 / 50] * 50)
    scores = strategies.by_regression(candidates, liked, disliked)
    np.testing.assert_allclose(scores, model.predict_proba(candidates)[:, 1], atol=1e-4)


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize("strategy", ["mean", "best"])
def test_results_are_the_best_of_all_rows(kind, strategy):
    liked, disliked = [1, 2, 3], [40, 41]
    scores, positions = found(liked, disliked, 10, [1, 2, 3, 40, 41, 7], INDEXES[kind], strategy=strategy, pool=600)
    assert (scores.dtype, positions.dtype) == (np.float32, np.int64)
    held = INDEXES[kind].vectors_at(np.arange(COUNT))
    every = strategies.STRATEGIES[strategy](held, VECTORS[liked], VECTORS[disliked])
    every[[1, 2, 3, 40, 41, 7]] = -9
    assert positions.tolist() == np.argsort(-every, kind="stable")[:10].tolist()
    np.testing.assert_allclose(scores, np.sort(every)[::-1][:10], atol=1e-5)


def test_the_default_finds_the_class_of_what_is_liked_and_not_of_what_is_disliked():
    near = np.argsort(-(VECTORS @ VECTORS[0]))[:20]
    far = np.argsort(VECTORS @ VECTORS[0])[:2]
    positions = found(near[:3], far, 10, near[:3])[1]
    assert len(set(positions) & set(near[3:])) >= 5
    assert not set(positions) & set(near[:3])


def test_a_condition_and_groups_hold():
    positions = found([1, 2], [9], 30, [1, 2, 9], where="number < 300", group_by="product", per_group=2)[1]
    assert (positions < 300).all() and len(positions) == 30
    counts = ROWS["product"].iloc[positions].value_counts()
    assert counts.max() <= 2
    positions = found([1], (), 300, group_by="product")[1]  # 588 of 200 products, 12 without: more cannot be
    assert ROWS["product"].iloc[positions].dropna().is_unique
    assert ROWS["product"].iloc[positions].isna().sum() == 12
    assert len(positions) == 12 + ROWS["product"].nunique()


def test_distinct_and_mmr_bring_variety():
    plain = found([1, 2], (), 20, strategy="mean")[1]
    varied = found([1, 2], (), 20, strategy="mean", mmr=0.3)[1]
    apart = found([1, 2], (), 20, strategy="mean", distinct=0.6)[1]

    def alike(positions):
        return (VECTORS[positions] @ VECTORS[positions].T)[np.triu_indices(len(positions), 1)]

    assert alike(varied).mean() < alike(plain).mean()
    assert alike(apart).max() <= 0.6 < alike(plain).max()


def test_minimum_ends_the_answer():
    scores, _ = found([1, 2], (), 50, strategy="mean")
    fewer, _ = found([1, 2], (), 50, strategy="mean", minimum=float(scores[7]))
    np.testing.assert_array_equal(fewer, scores[:8])


def test_a_small_pool_grows_until_there_is_enough():
    seen = np.argsort(-(VECTORS @ VECTORS[1]))[:550]
    positions = found([1], (), 50, seen, strategy="mean", pool=10)[1]
    assert len(positions) == 50 and not set(positions) & set(seen)
    assert len(found([1], (), 51, seen, pool=10)[1]) == 50


@pytest.mark.parametrize("kind", INDEXES)
def test_with_nothing_liked_different_images_come_and_none_like_those_disliked(kind):
    scores, positions = found((), (), 12, [5], INDEXES[kind])
    assert np.isnan(scores).all() and len(set(positions)) == 12 and 5 not in positions
    held = INDEXES[kind].vectors_at(positions)
    chosen = [0]
    for place in range(1, 12):  # each is the one least similar to those before
        chosen.append(place)
        left = [i for i in range(COUNT) if i not in positions[:place] and i != 5]
        least = (INDEXES[kind].vectors_at(np.array(left)) @ held[:place].T).max(1).min()
        assert (held[place] @ held[:place].T).max() == pytest.approx(least, abs=1e-5)
    disliked = np.flatnonzero(VECTORS @ VECTORS[0] > 0.5)[:5]
    positions = found((), disliked, 12, disliked, INDEXES[kind])[1]
    similar = (VECTORS @ VECTORS[disliked].T).max(1)
    assert similar[positions].max() <= np.median(similar) + 1e-3


def test_many_likes_are_looked_around_by_the_most_different_ones():
    chosen = module._some(VECTORS[:100])
    assert chosen.shape == (module.MOST_LOOKED_AROUND, DIM)
    assert len(found(range(100), (), 10)[1]) == 10


@pytest.mark.parametrize(
    "options", [{"strategy": "worst"}, {"mmr": 2}, {"per_group": 0}, {"pool": 0}, {"group_by": "nothing"},
                {"where": "nothing == 1"}, {"k": 0}, {"k": 2.5}, {"minimum": "high"}, {"group_by": ["label"]},
                {"strategy": ["mean"]}],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options):
    with pytest.raises(ArgumentError):
        found([1], **options)


def test_an_empty_answer_is_no_error():
    assert len(found([1], where="number > 1000")[1]) == 0
    assert len(found((), [1], where="number > 1000")[1]) == 0


# --- by names, files and arrays


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return build_collection(tmp_path_factory.mktemp("shop"))


def test_a_collection_recommends_by_names_files_and_arrays(shop, tmp_path):
    results = shop.recommend(["cat/00.png", "cat/01.png"], ["dog/50.png"], "cat/02.png", k=20)
    assert results.scores.shape == results.positions.shape == (1, 20)
    shown = results.frame()["path"].tolist()
    assert len(shown) == 8 and not {"cat/00.png", "cat/01.png", "dog/50.png", "cat/02.png"} & set(shown)
    save_photograph(tmp_path / "new.png", 77)
    assert len(shop.recommend(tmp_path / "new.png", k=20).frame()) == 12
    side = shop.encoder.preprocessing["size"]
    pixels = np.arange(3 * side * side, dtype=np.uint8).reshape(3, side, side)
    assert len(shop.recommend([pixels, "cat/00.png"], k=5).frame()) == 5


def test_names_that_are_not_to_be_found_are_ignored_and_said(shop):
    results = shop.recommend(["cat/00.png", "gone"], ["nowhere.jpg"], k=3)
    assert set(results.ignored) == {"gone", "nowhere.jpg"}
    assert results.frame()["path"].tolist() == shop.recommend("cat/00.png", k=3).frame()["path"].tolist()
    assert len(shop.recommend(["gone"], k=3).frame()) == 3


@pytest.mark.parametrize("name", ["like", "dislike", "seen"])
@pytest.mark.parametrize("images", [5, None, b"cat/00.png", np.array(5)])
def test_what_is_no_image_nor_several_is_refused_by_its_name(shop, name, images):
    with pytest.raises(ArgumentError, match=f"^{name} is"):
        shop.recommend(**{"like": "cat/00.png"} | {name: images})
    for verb in (shop.search, shop.add, shop.remove):
        with pytest.raises(ArgumentError, match=r"^images is"):
            verb(images if images is not None else 5)


@pytest.mark.parametrize("gone", ["x" * 5000, "~nobody-of-this-name/a.png", "a\0b"])
def test_a_name_that_no_file_could_have_is_as_one_that_is_not_to_be_found(shop, gone):
    assert set(shop.recommend(["cat/00.png", gone], k=3).ignored) == {gone}
    with pytest.raises(ArgumentError):
        shop.located(gone)


def test_what_is_liked_and_disliked_counts_as_neither(shop):
    results = shop.recommend(["cat/00.png", "cat/01.png"], ["cat/01.png"], k=12)
    name = shop.row("cat/01.png")["image_id"]
    assert list(results.ignored) == [name]
    assert "cat/01.png" not in results.frame()["path"].tolist()
    alone = shop.recommend(["cat/00.png"], seen=["cat/01.png"], k=12)
    assert results.frame()["path"].tolist() == alone.frame()["path"].tolist()


def test_a_searcher_without_an_encoder_recommends_by_names():
    results = Searcher(FLAT).recommend(["p1", "p2"], ["p40"], k=4, strategy="mean")
    expected = found([1, 2], [40], 4, [1, 2, 40], strategy="mean")
    assert results.positions[0].tolist() == expected[1].tolist()
