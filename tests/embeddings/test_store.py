import numpy as np
import pandas as pd
import pytest
from makers.stores import build, picture_set

from rectrio_lib.core import files
from rectrio_lib.core.errors import DataError
from rectrio_lib.embeddings import parts
from rectrio_lib.embeddings.store import EmbeddingStore
from rectrio_lib.embeddings.writer import Writer, drop_rows


def rows_of(start, count, **more):
    numbers = range(start, start + count)
    splits = [("train", "val")[n % 2] for n in numbers]
    return pd.DataFrame({"image_id": [f"p{n}" for n in numbers], "split": splits, **more})


def written(folder, counts, shard_rows=7, dtype="float32", **more):
    """A store filled by calls of so many rows, and its vectors."""
    vectors, start = np.random.default_rng(0).normal(size=(sum(counts), 6)).astype(np.float32), 0
    writer = Writer(folder, rows_of(0, 0, **more).assign(shard=0), dtype, shard_rows)
    array = np.empty((max(counts), 6), np.float32)  # used again for each call, as sources and encoders may do
    for count in counts:
        array[:count] = vectors[start : start + count]
        writer.add(rows_of(start, count, **more), array[:count])
        start += count
    writer.flush()
    return EmbeddingStore(folder, writer.rows(), {"dim": 6, "dtype": dtype}), vectors


@pytest.mark.parametrize("counts", [[20], [7, 7, 6], [1] * 20, [6, 6, 8], [3, 17]])
def test_shards_are_full_whatever_comes_at_once(tmp_path, counts):
    store, vectors = written(tmp_path, counts)
    assert store.rows["shard"].value_counts().sort_index().tolist() == [7, 7, 6]
    assert store.rows["image_id"].tolist() == [f"p{n}" for n in range(20)]
    np.testing.assert_array_equal(store.vectors(), vectors)
    names = [f"{kind}-0000{n}.{suffix}" for kind, suffix in (("rows", "parquet"), ("vectors", "npy")) for n in range(3)]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_rows_name_a_shard_only_when_it_is_there(tmp_path):
    seen = []

    def look(shard):
        named = {number for path in tmp_path.glob("rows-*.parquet") for number in pd.read_parquet(path)["shard"]}
        seen.append((named, {int(p.stem[-5:]) for p in tmp_path.glob("*.npy")}))
        assert shard == max(named)

    writer = Writer(tmp_path, rows_of(0, 0).assign(shard=0), "float16", 5, look)
    writer.add(rows_of(0, 12), np.ones((12, 6)))
    assert seen == [({0}, {0}), ({0, 1}, {0, 1})]
    writer.flush()
    writer.flush()
    assert seen[2:] == [({0, 1, 2}, {0, 1, 2})]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_blocks_are_mapped_from_disk_and_lie_beside_their_rows(tmp_path, dtype):
    store, vectors = written(tmp_path, [20], dtype=dtype)
    blocks = list(store.blocks())
    assert [len(rows) for _, rows in blocks] == [7, 7, 6]
    assert all(isinstance(block, np.memmap) and block.dtype == dtype for block, _ in blocks)
    np.testing.assert_allclose(np.concatenate([block for block, _ in blocks]), vectors, atol=2e-3)
    pd.testing.assert_frame_equal(pd.concat([rows for _, rows in blocks], ignore_index=True), store.select())
    assert list(store.select()) == ["image_id", "split"]


def test_blocks_of_a_split_and_without_deleted_rows(tmp_path):
    store, vectors = written(tmp_path, [20])
    deleted = np.isin(np.arange(20), [0, 5, *range(7, 14)])
    store = EmbeddingStore(tmp_path, store.rows.assign(deleted=deleted), store.card)
    for splits, chosen in (((), ~deleted), (("train",), ~deleted & (np.arange(20) % 2 == 0))):
        blocks = list(store.blocks(*splits))
        assert len(blocks) == 2
        np.testing.assert_array_equal(np.concatenate([block for block, _ in blocks]), vectors[chosen])
        np.testing.assert_array_equal(store.vectors(*splits), vectors[chosen])
        assert store.select(*splits)["image_id"].tolist() == [f"p{n}" for n in np.flatnonzero(chosen)]
    assert len(store) == 11


def test_dropping_rows_joins_small_shards_and_keeps_what_is_left(tmp_path):
    store, vectors = written(tmp_path / "store", [4, 4, 4, 4, 4], shard_rows=4, deleted=False)
    files.write_json(tmp_path / "store" / "card.json", store.card)
    gone = np.isin(np.arange(20), [1, 4, 5, 6, 7, 19])
    rows = drop_rows(tmp_path / "store", store.rows, gone, 10)
    left = EmbeddingStore(tmp_path / "store", pd.read_parquet(tmp_path / "store" / "rows.parquet"), store.card)
    assert left.rows["shard"].tolist() == rows["shard"].tolist() == [0] * 10 + [1] * 4
    assert left.rows["image_id"].tolist() == [f"p{n}" for n in np.flatnonzero(~gone)]
    assert list(rows) == list(store.rows) and not rows["deleted"].any()
    np.testing.assert_array_equal(left.vectors(), vectors[~gone])
    assert len(list((tmp_path / "store").glob("*.npy"))) == 2


def test_mapped_vectors_are_those_of_the_store_whatever_is_asked_for():
    store, _ = build(picture_set())
    mapped, expected = store.mapped("train", "test"), store.vectors("train", "test")
    assert (mapped.shape, len(mapped), mapped.dtype) == (expected.shape, len(expected), np.float32)
    for places in (slice(None), slice(3, 9), slice(0, 0), np.array([[5, 0, 5], [19, 7, 2]]), np.array([], np.int64)):
        np.testing.assert_array_equal(mapped[places], expected[places])
    np.testing.assert_array_equal(store.mapped()[:], store.vectors())


@pytest.mark.parametrize(
    ("told", "again"),
    [
        (["a", None], True),
        ([1.5, np.nan], True),
        (pd.Categorical(["a", "b"]), True),
        (pd.Series([1, 2], dtype=np.int32), True),
        (pd.Series(["a", "b"], dtype=object), False),  # read as texts
        ([["a", "b"], ["c"]], False),  # read as arrays
        ([["a"], ["b"]], False),
    ],
)
def test_a_table_is_taken_for_that_of_a_file_only_if_the_same_would_be_read(tmp_path, told, again):
    path, table = tmp_path / "rows.parquet", pd.DataFrame({"image_id": ["x", "y"], "told": told})
    parts.join(path, table)
    plain = parts.read(path, "embedded")
    for like, same in [
        (table, again),
        (plain, True),
        (table.assign(more=1), False),
        (table[["told", "image_id"]], False),
    ]:
        found = parts.read(path, "embedded", like=like)
        assert (found is like) == same
        pd.testing.assert_frame_equal(found, plain)
    changed = plain.assign(image_id=["x", "z"])
    assert parts.read(path, "embedded", like=changed) is not changed
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"rows.parquet is damaged"):
        parts.read(path, "embedded", like=table)
