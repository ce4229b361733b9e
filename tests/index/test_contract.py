"""What every index promises, see `base.VectorIndex`: FAISS, PostgreSQL with pgvector, Qdrant."""

import json
import os
import re
import subprocess
import sys
from itertools import count
from multiprocessing.pool import ThreadPool

import numpy as np
import pandas as pd
import pytest
from makers.indexes import clustered, named, nearest
from makers.processes import in_another_process

from rectrio_lib.core.errors import ArgumentError, MissingArtefactError, MissingPackageError, StorageError
from rectrio_lib.index import conditions, opening
from rectrio_lib.index.base import VectorIndex
from rectrio_lib.index.index import Index

DIM, COUNT = 16, 1000
SERVERS = ("pgvector", "qdrant")
KINDS = ("flat", "hnsw", "ivf", "ivf-pq-disk", "shards", *SERVERS)
ROUNDED = dict.fromkeys(KINDS, 2e-3) | {"flat": 1e-6, "ivf": 1e-6, "shards": 1e-6}  # others: in half precision
numbers = count()


@pytest.fixture(scope="module")
def gallery():
    vectors = clustered(np.random.default_rng(0), COUNT, DIM)
    rng = np.random.default_rng(1)
    rows = named(0, COUNT).assign(
        label=np.array(["cat", "dog"])[rng.integers(2, size=COUNT)],
        share=np.where(rng.random(COUNT) < 0.1, np.nan, rng.random(COUNT)),
        tags=[["red", "new"][: i % 3] for i in range(COUNT)],
        taken=pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(10**6, size=COUNT), "min"),
    )
    return vectors, rows


@pytest.fixture(scope="module", autouse=True)
def graphs_are_searched():
    """Even where few vectors are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rectrio_lib.index.servers.pgvector_search.EXACT_ROWS", 100)
        patch.setattr("rectrio_lib.index.servers.qdrant.EXACT_ROWS", 100)
        patch.setattr("rectrio_lib.index.faiss_vectors.EXACT_ROWS", 100)
        yield


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    if request.param == "qdrant":
        pytest.importorskip("qdrant_client")
    return request.param


@pytest.fixture(scope="module")
def url(kind, request):
    if kind == "pgvector":
        return request.getfixturevalue("postgres_url")
    return "qdrant::memory:"


@pytest.fixture(scope="module")
def build(kind, url):
    def made(vectors, rows, name=None, **options):
        if kind in SERVERS:
            return opening.build_on_server(url, name or f"c{next(numbers)}", vectors, rows, "abc", **options)
        if kind == "shards":
            half = len(vectors) // 2
            parts = [(part, rows.iloc[part].reset_index(drop=True)) for part in (slice(half), slice(half, None))]
            return Index.shards([Index.build("flat", vectors[p], named, "abc", **options) for p, named in parts])
        return Index.build(kind, vectors, rows, "abc", search_param=None if kind == "flat" else 256, **options)

    return made


@pytest.fixture(scope="module")
def fixed(build, gallery):
    """An index that no test changes."""
    return build(*gallery)


@pytest.fixture
def index(build, gallery):
    return build(*gallery)


def test_it_is_a_vector_index_of_what_it_was_built_from(fixed, kind, gallery):
    vectors, rows = gallery
    assert isinstance(fixed, VectorIndex) and (fixed.kind, fixed.dim, fixed.encoder_hash) == (kind, DIM, "abc")
    assert len(fixed) == fixed.count() == COUNT and not fixed.removed.any()
    assert fixed.rows.drop(columns="tags").equals(rows.drop(columns="tags"))
    assert fixed.rows["tags"].map(list).tolist() == rows["tags"].tolist()
    places = np.array([[5, 0], [COUNT - 1, 5]])
    np.testing.assert_allclose(fixed.vectors_at(places), vectors[places], atol=ROUNDED[kind])
    assert fixed.vectors_at(places).dtype == np.float32
    assert fixed.vectors_at(np.empty((0,), np.int64)).shape == (0, DIM)
    assert kind.removesuffix("-disk") in fixed.info() and f"{COUNT:,}" in fixed.info()
    for wrong in ([COUNT], [-1], [0, COUNT + 5]):
        with pytest.raises(IndexError):
            fixed.vectors_at(np.array(wrong))


CONDITIONS = {
    **{"label == 'cat'": 0.5, "number < 50": 0.05, "number % 90 == 7": 0.0111, "share > 0.5 or share != share": 0.55},
    **{"'new' in tags and not label == 'cat'": 0.16, "'1' in image_id": 0.27, "taken >= '2025-01-01'": 0.5},
}


@pytest.mark.parametrize("where", [None, *CONDITIONS])
def test_k_results_come_whenever_there_are_k_and_nearly_all_are_the_nearest(fixed, gallery, where):
    vectors, rows = gallery
    queries = clustered(np.random.default_rng(2), 3 if fixed.kind == "qdrant" else 20, DIM)
    mask = np.ones(COUNT, bool) if where is None else conditions.matching(rows, where)
    assert mask.mean() == pytest.approx(CONDITIONS.get(where, 1), rel=0.25)
    there = int(mask.sum())
    assert fixed.count(where) == fixed.count(mask) == there
    for k in (1, 10, there):
        for chosen in (where, mask):
            scores, positions = fixed.search(queries, k, where=chosen)
            assert (scores.dtype, positions.dtype, positions.shape) == (np.float32, np.int64, (len(queries), k))
            assert mask[positions].all() and all(len(set(row)) == k for row in positions.tolist())
            assert (np.diff(scores, axis=1) <= 1e-6).all()
            _, expected = nearest(vectors, queries, k, mask)
            assert (scores >= expected[:, -1:] - ROUNDED[fixed.kind]).mean() >= 0.95
            theirs = (queries[:, None] * vectors[positions]).sum(2)
            np.testing.assert_allclose(scores, theirs, atol=ROUNDED[fixed.kind])
    with pytest.raises(ArgumentError, match=f"k={there + 1}, .* {there:,} rows"):
        fixed.search(queries, there + 1, where=where)


def test_what_is_added_is_found_and_what_is_removed_is_not(index, gallery):
    vectors, rows = gallery
    fresh, others = (
        clustered(np.random.default_rng(3), 5, DIM),
        rows.head(5).assign(image_id=[f"n{i}" for i in range(5)]),
    )
    index.add(fresh, others)
    assert (len(index), len(index.rows)) == (COUNT + 5, COUNT + 5)
    assert index.search(fresh, 1)[1][:, 0].tolist() == list(range(COUNT, COUNT + 5))
    assert index.rows["image_id"].tolist() == [*rows["image_id"], *others["image_id"]]
    assert index.count("number < 5") == 10

    index.remove(["n1", "p7", "n1"])
    assert (len(index), len(index.rows), np.flatnonzero(index.removed).tolist()) == (
        COUNT + 3,
        COUNT + 5,
        [7, COUNT + 1],
    )
    assert index.search(fresh[1:2], 1)[1] != COUNT + 1 and index.search(vectors[7:8], 1)[1] != 7
    with pytest.raises(ArgumentError, match="'p7'"):
        index.remove(["p8", "p7"])  # again
    assert index.count("number == 7") == 0 and index.count(np.ones(COUNT + 5, bool)) == COUNT + 3
    np.testing.assert_allclose(index.vectors_at(np.array([7])), vectors[[7]], atol=ROUNDED[index.kind])

    with pytest.raises(ArgumentError, match=rf"k={COUNT + 4}, .* {COUNT + 3:,} rows"):
        index.search(fresh[:1], COUNT + 4)

    index.add(fresh[1:2], others.iloc[1:2])  # comes back
    assert index.search(fresh[1:2], 1)[1].item() == COUNT + 5
    with pytest.raises(ValueError, match="read-only"):
        index.removed[0] = True


def test_duplicates_and_strangers_are_refused_and_nothing_is_changed(fixed, gallery):
    vectors, rows = gallery
    other = rows.head(2).assign(image_id=["x", "x"])
    for wrong, name in ((rows.iloc[[4]], "'p4'"), (other, "'x'")):
        with pytest.raises(ArgumentError, match=name):
            fixed.add(vectors[: len(wrong)], wrong)
    with pytest.raises(ArgumentError, match="'q'"):
        fixed.remove(["p1", "q"])
    with pytest.raises(ArgumentError, match=r"2 .* 1"):
        fixed.add(vectors[:2], rows.head(1).assign(image_id="y"))
    fixed.add(vectors[:0], rows.head(0))
    assert (len(fixed), len(fixed.rows)) == (COUNT, COUNT)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: 2 * v, "Vector 0"),
        (lambda v: v * np.nan, "NaN"),
        (lambda v: v[:, 1:], str(DIM)),
        (lambda v: v[0], str(DIM)),
        (lambda v: v[None], str(DIM)),
    ],
)
def test_bad_vectors_are_refused(fixed, gallery, change, match):
    wrong = change(gallery[0][:1])
    with pytest.raises(ArgumentError, match=match):
        fixed.search(wrong, 1)
    with pytest.raises(ArgumentError, match=match):
        fixed.add(wrong, gallery[1].head(1).assign(image_id="new"))


def test_wrong_encoders_masks_conditions_and_numbers_are_refused(fixed, gallery):
    queries = gallery[0][:1]
    with pytest.raises(ArgumentError, match=r"abc.*xyz"):
        fixed.search(queries, 1, "xyz")
    assert fixed.search(queries, 1, "abc")[1].item() == 0
    for where in ("colour == 1", "label > 3", "", "number * 1e308 * 10 > 1"):
        if "e308" in where and fixed.kind != "pgvector":
            continue  # numbers beyond float64 are missing values elsewhere
        for ask in (fixed.count, lambda where: fixed.search(queries, 1, where=where)):
            with pytest.raises(ArgumentError):
                ask(where)
    for mask in (np.ones(COUNT), np.ones(COUNT - 1, bool), np.ones((COUNT, 1), bool)):
        for ask in (fixed.count, lambda mask: fixed.search(queries, 1, where=mask)):
            with pytest.raises(ArgumentError, match=re.escape(f"{mask.dtype} of shape {mask.shape}")):
                ask(mask)
    for k in (0, -1, COUNT + 1):
        with pytest.raises(ArgumentError, match=f"k={k}"):
            fixed.search(queries, k)


READ = """
import json, sys
from pathlib import Path
import numpy as np
from rectrio_lib.index.opening import open_index
index = open_index("toy")
found = index.search(np.load(sys.argv[1]), 3)[1].tolist()
told = [index.kind, len(index), index.encoder_hash, index.made_from, found]
Path(sys.argv[2]).write_text(json.dumps(told))
"""


def test_another_process_opens_what_was_saved(build, kind, gallery, tmp_path):
    vectors, rows = gallery[0][:300], gallery[1].head(300)
    if kind == "qdrant":
        vectors, rows = vectors[:30], rows.head(30)  # it takes its time to write them
        index = opening.build_on_server(f"qdrant:{tmp_path / 'points'}", "c", vectors, rows, "abc")
    else:
        index = build(vectors, rows)
    index.made_from = {"encoder": "net", "random_weights": True}
    index.save("toy")
    np.save(tmp_path / "queries.npy", vectors[:4])
    expected = index.search(vectors[:4], 3)[1].tolist()
    if kind == "qdrant":
        index._client.close()  # its folder is locked
    in_another_process(READ, tmp_path / "queries.npy", tmp_path / "told.json")
    assert json.loads((tmp_path / "told.json").read_text()) == [kind, len(rows), "abc", index.made_from, expected]


def test_building_again_replaces_what_was_there(build, gallery, kind):
    vectors, rows = gallery
    few = slice(50, 400 if kind.startswith("ivf") else 60)  # which has to learn its cells
    for part in (slice(0, 700), few):
        index = build(vectors[part], rows.iloc[part].reset_index(drop=True), "again", made_from={"store": str(part)})
        assert (len(index), index.made_from) == (len(rows.iloc[part]), {"store": str(part)})
    assert index.search(vectors[50:51], 3)[1][0, 0] == 0
    assert opening.holds_exactly(index, rows.iloc[few].reset_index(drop=True))
    assert not opening.holds_exactly(index, rows.iloc[50 : few.stop + 1].reset_index(drop=True))


# --- servers


@pytest.fixture
def only(kind):
    def chosen(*kinds):
        if kind not in kinds:
            pytest.skip(f"not about {kind}")

    return chosen


@pytest.fixture
def postgres_index(postgres_url, gallery):
    return opening.build_on_server(postgres_url, f"c{next(numbers)}", *gallery, "abc")


def test_columns_grow_and_change_with_what_is_added(build, gallery, only):
    only(*SERVERS)
    vectors = gallery[0]
    index = build(vectors[:2], pd.DataFrame({"image_id": ["a", "b"], "size": [1, 2], "note": [None, None]}))
    assert (index.rows["size"].dtype, index.count("note == 'x'")) == (np.int64, 0)
    index.add(
        vectors[2:4], pd.DataFrame({"image_id": ["c", "d"], "size": [0.5, None], "note": [3.5, 4], "new": [True, None]})
    )
    assert index.rows["size"].tolist()[:3] == [1, 2, 0.5] and index.count("size < 2") == 2
    assert index.count("note > 3.6") == index.count("new") == 1
    with pytest.raises(ArgumentError, match="'size'"):
        index.add(vectors[4:5], pd.DataFrame({"image_id": ["e"], "size": ["large"]}))
    with pytest.raises(ArgumentError, match="NUL"):
        index.add(vectors[4:5], pd.DataFrame({"image_id": ["e"], "path": ["a\0b"]}))
    assert len(index) == 4


def test_a_card_holds_no_password_and_the_environment_has_it(build, gallery, url, only, tmp_path, monkeypatch):
    only("pgvector")
    secret = url.replace("postgres:@", "postgres:s3cret@")
    index = opening.build_on_server(secret, "secret", gallery[0][:9], gallery[1].head(9), "abc")
    folder = index.save("toy")
    written = (folder / "card.json").read_text()
    assert "s3cret" not in written + repr(index) and json.loads(written)["collection"] == "secret"
    monkeypatch.setenv("RECTRIO_VECTORS", secret)
    assert opening.open_index("toy").url == secret
    monkeypatch.setenv("RECTRIO_VECTORS", "postgresql://other:s3cret@example.com/db")
    assert "s3cret" not in opening.open_index("toy").url


def test_who_comes_later_sees_what_others_changed(postgres_index, gallery):
    index = postgres_index
    other = type(index)(index.url, index.collection)
    assert (len(other.rows), other.count("number < 9")) == (COUNT, 9)
    index.add(gallery[0][:1], gallery[1].head(1).assign(image_id="late"))
    index.remove(["p1"])
    assert other.search(gallery[0][:1], 2)[1].tolist() == [[0, COUNT]]
    assert (other.rows["image_id"].iloc[-1], other.count("number < 9"), other.removed.sum()) == ("late", 9, 1)


def test_two_writers_at_once_number_their_rows_one_after_the_other(postgres_index, gallery):
    index = postgres_index
    vectors, rows = gallery

    def write(writer):
        own = type(index)(index.url, index.collection)
        for step in range(10):
            names = [f"{writer}-{step}-{i}" for i in range(3)]
            own.add(vectors[:3], rows.head(3).assign(image_id=names))
            own.remove(names[:1])

    with ThreadPool(4) as pool:
        pool.map(write, range(4))
    assert (len(index), len(index.rows), index.removed.sum()) == (COUNT + 80, COUNT + 120, 40)
    assert index.rows["image_id"].is_unique
    twice = rows.head(1).assign(image_id="twice")
    with ThreadPool(4) as pool:
        done = pool.map(
            lambda _: _raised(lambda: type(index)(index.url, index.collection).add(vectors[:1], twice)), range(4)
        )
    assert done.count(None) == 1 and done.count(ArgumentError) == 3


def test_a_caller_s_transaction_is_joined_and_undone_with_it(postgres_index, gallery):
    index = postgres_index
    more = gallery[1].head(1).assign(image_id="new")
    with index._engine.connect() as connection:
        index.add(gallery[0][:1], more, connection=connection)
        index.remove(["p3"], connection=connection)
        assert len(index) == COUNT
        connection.rollback()
    assert (len(index), len(index.rows), index.removed.any()) == (COUNT, COUNT, False)
    with index._engine.begin() as connection:
        index.add(gallery[0][:1], more, connection=connection)
    assert (len(index), len(index.rows)) == (COUNT + 1, COUNT + 1)


@pytest.mark.parametrize("address", ["postgresql://me:s3cret@127.0.0.1:9/db", "http://:s3cret@127.0.0.1:9"])
def test_a_server_that_is_away_is_told_in_a_sentence(address):
    pytest.importorskip("pgvector" if address.startswith("postgresql") else "qdrant_client")
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9") as caught:
        opening.build_on_server(address, "toy", clustered(np.random.default_rng(0), 3, DIM), named(0, 3), "abc")
    assert "s3cret" not in str(caught.value)


def test_what_is_not_there_and_what_is_no_address_are_told(build, gallery, url, only, kind):
    only(*SERVERS)
    index = build(gallery[0][:3], gallery[1].head(3))
    with pytest.raises(MissingArtefactError, match="nowhere"):
        type(index)(url, "nowhere")
    with pytest.raises(ArgumentError, match="ftp://me@example"):
        opening.build_on_server("ftp://me:s3cret@example.com", "toy", gallery[0][:3], gallery[1].head(3), "abc")


@pytest.mark.parametrize(
    ("package", "extra"), [("sqlalchemy", "postgres"), ("pgvector", "postgres"), ("qdrant_client", "qdrant")]
)
def test_a_missing_package_names_its_extra(package, extra):
    module = {"postgres": "pgvector", "qdrant": "qdrant"}[extra]
    code = f"""
import sys
sys.modules[{package!r}] = None
try:
    import rectrio_lib.index.servers.{module}
except Exception as error:
    print(type(error).__name__, error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert run.stdout.startswith(MissingPackageError.__name__) and f"rectrio[{extra}]" in run.stdout


def _raised(action):
    try:
        action()
    except ArgumentError as error:
        return type(error)
