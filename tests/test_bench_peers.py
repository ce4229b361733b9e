import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from index_maker import nearest

from rectrio_lib import bench_peers, kinds
from rectrio_lib.bench_search import _build

VECTORS, QUERIES, OTHERS = bench_peers.make_world(3_000, 16, 100)
TRUTH = nearest(VECTORS, QUERIES, 10)[0]


def test_vectors_have_unit_length_and_are_the_same_in_every_run():
    for drawn, again in zip((VECTORS, QUERIES, OTHERS), bench_peers.make_world(3_000, 16, 100), strict=True):
        assert drawn.dtype == np.float32
        np.testing.assert_array_equal(drawn, again)
        np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)


def test_no_query_is_a_vector_or_another_query():
    every = np.concatenate([VECTORS, QUERIES, OTHERS])
    assert len(np.unique(every, axis=0)) == len(every) == 3_200


def test_queries_belong_to_the_clusters_and_their_ten_neighbours_stand_out():
    scores = nearest(VECTORS, QUERIES, 300)[1]  # ten clusters of 300
    assert (scores[:, 9] - scores[:, 99]).mean() > 0.05
    strangers = np.random.default_rng(5).normal(size=(100, 16))
    strangers /= np.linalg.norm(strangers, axis=1, keepdims=True)
    assert scores[:, 9].mean() > nearest(VECTORS, strangers, 10)[1][:, 9].mean() + 0.1


def test_vectors_are_drawn_block_by_block(monkeypatch):
    monkeypatch.setattr(bench_peers.tuning, "BLOCK_ROWS", 64)
    drawn = bench_peers.make_world(1_000, 8, 70)[0]
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    assert len(np.unique(drawn, axis=0)) == 1_000


class FakeGraph:
    """Compares with every vector; keeps how it was made, filled and asked."""

    def __init__(self, **arguments):
        self.arguments, self.asked = arguments, []

    def found(self, queries, k, **options):
        self.asked.append((len(queries), options))
        return nearest(self.vectors, queries, k)[0].astype(np.uint64)


class FakeUsearch(FakeGraph):
    serialized_length = 1234

    def add(self, keys, vectors):
        assert keys.tolist() == list(range(len(vectors)))
        self.vectors = vectors

    def search(self, vectors, count, *, threads=0):
        keys = self.found(vectors, count, threads=threads, effort=self.expansion_search)
        return SimpleNamespace(keys=keys[0] if len(keys) == 1 else keys)


class FakeHnswlib(FakeGraph):
    def init_index(self, **graph):
        self.arguments |= graph

    def add_items(self, data):
        self.vectors = data

    def set_ef(self, ef):
        self.ef = ef

    def knn_query(self, data, k):
        return self.found(data, k, effort=self.ef), None

    def index_file_size(self):
        return 1234


@pytest.fixture
def made(monkeypatch):
    """Put imitations with the signatures of usearch and hnswlib in their places, and return the graphs they make."""
    graphs = []

    def module(name, fake):
        found = ModuleType(name)
        found.__spec__, found.__path__ = ModuleSpec(name, None), []
        found.Index = lambda **arguments: graphs.append(fake(**arguments)) or graphs[-1]
        monkeypatch.setitem(sys.modules, name, found)

    for name, fake in (("usearch", FakeUsearch), ("usearch.index", FakeUsearch), ("hnswlib", FakeHnswlib)):
        module(name, fake)
    return graphs


@pytest.mark.parametrize("name", ["usearch f16", "hnswlib"])
def test_a_peer_is_built_like_the_others_and_told_its_effort(made, name):
    package, build = bench_peers.PEERS[name]
    assert package not in bench_peers.not_installed()
    peer = build(VECTORS)
    peer.set_effort(33)
    np.testing.assert_array_equal(peer.search(QUERIES), TRUTH)
    peer.search(QUERIES[:1])
    graph = made[0]
    assert peer.size() == 1234
    assert [(count, told["effort"]) for count, told in graph.asked] == [(100, 33), (1, 33)]
    built = set(map(str, graph.arguments.values()))
    assert {str(bench_peers.LINKS), str(kinds.EF_CONSTRUCTION), "ip", "16"} <= built
    if package == "usearch":
        assert graph.arguments["dtype"] == name.split()[1]
        assert [told["threads"] for _, told in graph.asked] == [0, 1]
    else:
        assert set(graph.arguments) == {"space", "dim", "max_elements", "M", "ef_construction"}


@pytest.mark.parametrize("name", ["usearch f16", "hnswlib"])
def test_the_real_peer_finds_true_neighbours(name):
    package, build = bench_peers.PEERS[name]
    pytest.importorskip(package)
    finds_true_neighbours(build(VECTORS))


@pytest.mark.parametrize("name", ["faiss HNSW32", "faiss HNSW32,SQfp16"])
def test_bare_faiss_finds_true_neighbours(name):
    finds_true_neighbours(bench_peers.PEERS[name][1](VECTORS))


def finds_true_neighbours(peer):
    shares = []
    for effort in (peer.efforts[0], 400):
        peer.set_effort(effort)
        found = peer.search(QUERIES)
        shares.append(np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, TRUTH, strict=True)]) / 10)
    assert shares[0] < shares[1] > 0.97
    assert np.ravel(peer.search(QUERIES[:1])).tolist() == found[0].tolist()
    assert peer.size() > len(VECTORS) * 16 * 2


def test_half_precision_takes_half_the_bytes_of_the_numbers():
    sizes = [bench_peers.PEERS[f"faiss HNSW32{more}"][1](VECTORS).size() for more in ("", ",SQfp16")]
    assert sizes[0] - sizes[1] == pytest.approx(len(VECTORS) * 16 * 2, rel=0.02)


@pytest.mark.parametrize("flat_rows", [100, 20_000])
def test_the_call_inside_an_index_finds_what_the_index_finds(monkeypatch, flat_rows):
    monkeypatch.setattr(kinds, "FLAT_ROWS", flat_rows)
    index = _build(VECTORS)
    ours, bare = bench_peers.of_library(index), bench_peers.inside(index)
    ours.set_effort(index.effort)
    np.testing.assert_array_equal(ours.search(QUERIES), bare.search(QUERIES))
    assert (ours.parameter, ours.efforts[0]) == {"hnsw": ("efSearch", 10), "flat": ("", 1)}[index.kind]


def test_packages_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(bench_peers, "find_spec", lambda name: None if name in ("usearch", "hnswlib") else True)
    assert bench_peers.not_installed() == ["hnswlib", "usearch"]
