"""Stores that were changed by hand or damaged are refused with the file named."""

import json

import pandas as pd
import pytest
from makers.stores import embed, save_pictures

from rectrio_lib.core import files
from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.embeddings.store import open_store, vectors_of


@pytest.fixture
def store(tmp_path):
    return embed(save_pictures(tmp_path / "toys", range(12)))[0]


def without_checksums(store):
    """As an older version wrote it."""
    card = {key: value for key, value in store.card.items() if key != "checksums"}
    files.write_json(store.folder / "card.json", card)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("column", ["image_id", "path", "label", "split", "width", "height", "shard", "deleted"])
def test_rows_without_a_column_are_refused(store, column, old):
    if old:
        without_checksums(store)
    store.rows.drop(columns=column).to_parquet(store.folder / "rows.parquet")
    with pytest.raises(DataError, match=rf"rows\.parquet.*{column if old else ''}"):
        open_store("net", "toys")


@pytest.mark.parametrize(
    "change", ["shuffled", "within a shard", "numbers as ids", "text as shard", "copied", "not a table"]
)
def test_changed_rows_are_refused_by_reader_and_writer(store, change, tmp_path):
    rows, path = store.rows, store.folder / "rows.parquet"
    changed = {
        "shuffled": rows.sample(frac=1, random_state=1),
        "within a shard": rows.iloc[[1, 0, *range(2, 12)]],
        "numbers as ids": rows.assign(image_id=range(12)),
        "text as shard": rows.assign(shard="0"),
        "copied": rows.iloc[[0, 0, *range(2, 12)]],
    }
    path.write_bytes(b"PAR1") if change == "not a table" else changed[change].to_parquet(path)
    for action in (lambda: open_store("net", "toys"), lambda: embed(tmp_path / "toys")):
        with pytest.raises(DataError, match=r"rows\.parquet"):
            action()


@pytest.mark.parametrize("value", [None, 1.5, 10**30, "nul\0l", [], {}])
@pytest.mark.parametrize("key", ["encoder_hash", "dim", "dtype", "dataset", "folder", "count", "finished", "checksums"])
def test_a_card_with_a_wrong_value_is_refused(store, key, value):
    card = json.loads((store.folder / "card.json").read_text(encoding="utf-8"))
    files.write_json(store.folder / "card.json", card | {key: value})
    if key == "checksums" and value == {}:
        assert len(open_store("net", "toys")) == 12
    else:
        with pytest.raises(DataError, match="net--toys"):
            open_store("net", "toys")


@pytest.mark.parametrize(
    ("key", "value"), [("dtype", "text"), ("dim", 35), ("dim", -36), ("count", 11), ("finished", False)]
)
def test_a_card_that_does_not_fit_its_files_is_refused(store, key, value):
    files.write_json(store.folder / "card.json", store.card | {key: value})
    with pytest.raises(DataError, match="net--toys"):
        open_store("net", "toys")


def test_vectors_by_image_id_come_in_the_order_asked_for_or_not_at_all(store):
    ids = store.select()["image_id"][::-1].tolist()
    assert (vectors_of(store, ids) == store.vectors()[::-1]).all()
    with pytest.raises(ArgumentError, match="absent"):
        vectors_of(store, [*ids, "absent"])


def test_rows_of_an_empty_table_are_refused(store):
    without_checksums(store)
    pd.DataFrame().to_parquet(store.folder / "rows.parquet")
    with pytest.raises(DataError, match="image_id"):
        open_store("net", "toys")
