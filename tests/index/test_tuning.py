import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from makers.indexes import built, clustered, named, nearest, unit

from rectrio_lib.core import knn
from rectrio_lib.core.errors import RecallOutOfReachError
from rectrio_lib.index import curve as curve_module
from rectrio_lib.index import factory, tuning
from rectrio_lib.index.index import Index
from rectrio_lib.index.tuning import GroundTruth
from rectrio_lib.report import charts

APPROXIMATE = ["hnsw", "ivf", "ivf-pq", "ivf-sq8"]


@pytest.fixture(scope="module")
def world():
    """A gallery, and fresh queries from around the same centres."""
    rng = np.random.default_rng(0)
    return clustered(rng, 6000), clustered(rng, 2000)


def tuned(kind, vectors, recall=0.95, **options):
    return Index.build(kind, vectors, named(0, len(vectors)), "abc", recall, **options)


def test_a_few_outliers_do_not_make_the_bytes_of_a_tight_space_coarse():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(10, 32))[rng.integers(10, size=6000)] + 0.1 * rng.normal(size=(6000, 32))
    vectors[:30] += 2 * rng.normal(size=(30, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    assert tuned("ivf-sq8", vectors, 0.75).recall > 0.75  # 0.45 at most if they set the range


# --- what auto chooses


@pytest.mark.parametrize(
    ("count", "limit", "names"),
    [
        (0, None, ["flat", "hnsw"]),
        (255, None, ["flat", "hnsw"]),
        (20_000, None, ["flat", "hnsw", "ivf-pq", "ivf-sq8"]),
        (20_001, None, ["hnsw", "ivf-pq", "ivf-sq8"]),
        (1_000_000, 600_000_000, ["hnsw", "ivf-pq", "ivf-sq8", "ivf-pq-disk"]),
        (1_000_000, 500_000_000, ["ivf-pq", "ivf-sq8", "ivf-pq-disk"]),
        (1_000_000, 200_000_000, ["ivf-sq8"]),
        (20_000, 9_000_000, ["ivf-pq", "ivf-sq8"]),
    ],
)
def test_auto_follows_size_and_memory(count, limit, names):
    assert factory.candidates("auto", 128, count, limit) == names


def test_what_fits_no_memory_is_refused_with_the_least_need():
    with pytest.raises(
        ValueError, match=r"1,000,000 vectors of length 128 take 14\d,\d{3},\d{3} bytes as ivf-sq8, but"
    ):
        factory.candidates("auto", 128, 1_000_000, 100_000_000)
    with pytest.raises(ValueError, match=r"take 512,000,000 bytes as flat, but memory_limit is 511,999,999"):
        factory.candidates("flat", 128, 1_000_000, 511_999_999)


def test_an_unknown_kind_is_refused_with_auto_among_the_known():
    with pytest.raises(ValueError, match="kind='tree' is unknown: choose auto or one of flat, hnsw, ivf, "):
        factory.candidates("tree", 8, 10)


@pytest.mark.parametrize("kind", factory.KINDS)
@pytest.mark.parametrize("dim", [32, 50])
def test_the_memory_foretold_is_what_the_file_takes(kind, dim):
    vectors = unit(np.random.default_rng(0), 2000, dim)
    size = sum(p.stat().st_size for p in tuned(kind, vectors, search_param=9).save("toy").glob("vectors.*"))
    assert factory.memory(kind, dim, 2000) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize(("dim", "parts"), [(128, 32), (50, 10), (6, 1), (7, 1), (1, 1), (512, 128)])
def test_a_vector_is_cut_into_equal_parts_of_about_four_numbers(dim, parts):
    assert factory._parts(dim) == parts


# --- recall


def test_exact_search_through_blocks_is_exact(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK_ROWS", 7)
    rng = np.random.default_rng(0)
    vectors, queries, among = unit(rng, 50), unit(rng, 5), np.array([3, 9, 11, 20, 21, 22, 23, 24, 40, 49])
    for positions in (None, among):
        part = vectors if positions is None else vectors[positions]
        scores, found = knn.exact_search(queries, knn.blocks(vectors.astype(np.float64), positions), 8)
        expected, products = nearest(part, queries, 8)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(scores, products, atol=1e-6)


def test_recall_per_query_counts_the_right_answers_of_each_query():
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 90), unit(rng, 3)
    order = nearest(vectors, queries, 90)[0]
    found = np.stack([order[0, :10], np.r_[order[1, :7], order[1, 40:43]], order[2, 10:20]])
    np.testing.assert_allclose(GroundTruth(queries, vectors).recall_per_query(found), [1, 0.7, 0])


def test_equal_vectors_may_stand_in_for_each_other():
    vectors = np.repeat(np.eye(2, 6, dtype=np.float32), 30, axis=0)
    truth = GroundTruth(vectors[:1], vectors)
    assert truth.recall_per_query(np.arange(20, 30)[None]) == 1
    assert truth.recall_per_query(np.arange(25, 35)[None]) == 0.5


def test_only_some_vectors_may_be_answers():
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 90), unit(rng, 4)
    among = np.arange(1, 90, 2)
    found = nearest(vectors[among], queries, 10)[0]
    np.testing.assert_array_equal(GroundTruth(queries, vectors, among).recall_per_query(found), 1)


def test_held_out_queries_are_a_tenth_without_repetition_but_none_of_few():
    vectors = unit(np.random.default_rng(0), 30_000)
    assert [len(tuning.holdout(vectors[:count])[0]) for count in (0, 499, 500, 6000, 30_000)] == [0, 0, 50, 600, 2000]
    queries, held = tuning.holdout(vectors[:6000])
    assert queries.tolist() == held.tolist()
    assert len(set(held.tolist())) == 600 and held.max() > 5500 and held.min() < 500


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("recall", [0.90, 0.95, 0.99])
def test_the_recall_asked_for_is_reached_on_fresh_queries_and_at_no_higher_a_setting_than_that(world, kind, recall):
    vectors, queries = world
    try:
        index = tuned(kind, vectors, recall)
    except RecallOutOfReachError:
        assert (kind, recall) == ("ivf-sq8", 0.99)
        return
    truth = GroundTruth(queries, vectors)
    assert index.recall >= recall
    assert truth.recall(index).mean() >= recall - 0.005
    if index.search_param > 12:
        index.search_param = int(0.7 * index.search_param)
        assert truth.recall(index).mean() < recall + 0.01


def test_a_recall_out_of_reach_is_an_error_that_says_what_is_found(world):
    with pytest.raises(RecallOutOfReachError, match=r"ivf-sq8 .* 0\.9\d{3} "):
        tuned("ivf-sq8", world[0], 0.999)


def test_auto_goes_on_to_the_next_kind_where_one_cannot_reach_the_recall(world, monkeypatch):
    monkeypatch.setattr(factory, "FLAT_ROWS", 100)
    real, asked = tuning.tune, []

    def tune_or_fail(index, truth, recall):
        asked.append(index.kind)
        if index.kind == "hnsw":
            raise RecallOutOfReachError("not enough")
        return real(index, truth, recall)

    monkeypatch.setattr(tuning, "tune", tune_or_fail)
    index = tuned("auto", world[0])
    assert (index.kind, asked) == ("ivf-pq", ["hnsw", "ivf-pq"])
    with pytest.raises(RecallOutOfReachError, match="not enough"):
        tuned("hnsw", world[0])


def test_auto_builds_flat_for_few_and_a_graph_for_many(world, monkeypatch):
    assert (tuned("auto", world[0]).kind, tuned("auto", world[0]).recall) == ("flat", 1.0)
    monkeypatch.setattr(factory, "FLAT_ROWS", 5999)
    assert tuned("auto", world[0]).kind == "hnsw"
    assert tuned("auto", world[0], memory_limit=1_000_000).kind == "ivf-pq"


def test_few_vectors_and_a_given_search_parameter_are_not_measured(world):
    assert tuned("hnsw", world[0][:499]).recall is None
    index = tuned("hnsw", world[0], search_param=77)
    assert (index.recall, index.search_param) == (None, 77)


def test_more_neighbours_than_ten_are_found_as_well_as_ten(world):
    vectors, queries = world
    truth = nearest(vectors, queries[:200], 100)[0]
    for kind in ("hnsw", "ivf-pq"):
        found = tuned(kind, vectors, 0.95).search(queries[:200], 100)[1]
        assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True)]) > 93


# --- the curve


def test_the_curve_rises_to_all_true_neighbours_and_leaves_the_index_as_it_was(world):
    vectors, queries = world
    index = tuned("ivf", vectors)
    search_param = index.search_param
    curve = curve_module.curve(index, queries[:300], vectors, timed=20)
    assert index.search_param == search_param
    assert curve["search_param"].tolist() == sorted(
        {search_param, *(2**i for i in range(int(curve["search_param"].max()).bit_length()))}
    )
    assert curve["search_param"][curve["tuned"]].tolist() == [search_param]
    assert curve["setting"].tolist() == [f"nprobe {tried}" for tried in curve["search_param"]]
    assert curve["recall_at_10"].is_monotonic_increasing and curve["recall_at_10"].iloc[-1] > 0.9995
    assert len(curve) > 3
    assert (curve["ms"] > 0).all() and (curve["p95_ms"] >= curve["ms"]).all()
    assert curve["bytes_per_vector"].tolist() == [index.bytes_per_vector] * len(curve)


def test_curves_of_several_kinds_make_a_figure(world):
    vectors, queries = world
    flat, graph = tuned("flat", vectors), tuned("hnsw", vectors)
    measured = [(flat, None), (graph, [10, 40])]
    table = pd.concat([curve_module.curve(index, queries[:50], vectors, tried, 9) for index, tried in measured])
    assert table["setting"].tolist() == ["exact", "efSearch 10", "efSearch 40"]
    assert table["recall_at_10"].iloc[0] == 1
    (axis,) = charts.recall_against_latency(table).axes
    labels = [line.get_label().split(",")[0] for line in axis.lines]
    assert [label for label in labels if not label.startswith("_")] == ["flat", "hnsw"]  # the star has no label


def test_a_curve_needs_a_vector_for_each_row():
    index, vectors = built("hnsw", 60)
    with pytest.raises(ValueError, match=r"59 .* 60 .* 60"):
        curve_module.curve(index, vectors[:3], vectors[:59])
    index.remove(["p1"])
    with pytest.raises(ValueError, match=r"60 .* 59 .* 60"):
        curve_module.curve(index, vectors[:3], vectors)


# --- copies


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_copies_of_one_vector_do_not_stand_for_the_queries_of_the_tuning(kind):
    rng = np.random.default_rng(0)
    vectors, queries = clustered(rng, 6000), clustered(rng, 500)
    vectors[rng.permutation(6000)[:5400]] = vectors[0]
    chosen, held = tuning.holdout(vectors)
    assert len(np.unique(vectors[chosen], axis=0)) == len(chosen) == len(held) >= 300
    index = tuned(kind, vectors, 0.9)  # a graph of copies hardly reaches more
    assert GroundTruth(queries, vectors).recall(index).mean() > index.recall - 0.03, "promised more than others get"


def test_what_is_tuned_on_has_no_equal_in_the_index_as_a_new_query_has_none():
    rng = np.random.default_rng(1)
    vectors = np.concatenate([np.repeat(clustered(rng, 900), 5, axis=0), clustered(rng, 1500)])
    chosen, held = tuning.holdout(vectors)
    assert len(held) > len(chosen) > 100 and len(held) <= len(vectors) // 5
    rest = np.delete(vectors, held, axis=0)
    assert not (vectors[chosen][:, None] == rest[None]).all(2).any()
    index = tuned("hnsw", vectors, 0.9)
    assert GroundTruth(clustered(rng, 500), vectors).recall(index).mean() > index.recall - 0.03


def test_hardly_anything_but_copies_is_tuned_on_itself():
    vectors = np.repeat(clustered(np.random.default_rng(0), 4), 500, axis=0)
    chosen, held = tuning.holdout(vectors)
    assert len(chosen) == 2 and chosen.tolist() == held.tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_vectors_that_results_were_compared_with_do_not_stay_in_memory(tmp_path, world, monkeypatch):
    reads = []
    monkeypatch.setattr(tuning, "AT_ONCE", 20)
    monkeypatch.setattr(tuning, "let_go", lambda vectors: [reads.append(1), knn.let_go(vectors)])
    np.save(tmp_path / "gallery.npy", world[0])
    gallery = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    truth = GroundTruth(world[1][:50], gallery)
    assert truth.recall_per_query(nearest(world[0], world[1][:50], truth.k)[0]).min() == 1
    assert len(reads) == 3, "read 20 queries at a time"
    lines = Path("/proc/self/smaps").read_text().splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.endswith("gallery.npy")]
    (resident,) = [line.split()[1] for line in lines[at : at + 9] if line.startswith("Rss:")]
    assert resident == "0"
