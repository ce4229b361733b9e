"""Each shard is committed by a small table of its own; one table of all comes at the end."""

from collections import Counter

import pandas as pd
import pytest
from makers.killed import COUNT, first_build, first_files, grown_files, prepared, state
from makers.stores import SHARD, Counting, Killed, die, holds_files

from rectrio_lib.core.errors import DataError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.embeddings import parts

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scenario", [first_build, first_files])
def test_a_store_that_a_former_version_left_half_way_is_finished(tmp_path, monkeypatch, scenario):
    once, last = Counting(), Counting()
    expected = state(prepared(tmp_path, monkeypatch, "whole", scenario)(once))
    run = prepared(tmp_path, monkeypatch, "killed", scenario)
    with pytest.raises(Killed):
        run(Counting(2, die))
    (folder,) = (path.parent for path in (Workspace().outputs / "embeddings").rglob("card.json"))
    for name in ("rows", "files"):  # it kept each table in one file, written anew after each shard
        small = sorted(folder.glob(f"{name}-*.parquet"))
        if small:
            pd.concat(map(pd.read_parquet, small)).to_parquet(folder / f"{name}.parquet", index=False)
        for path in small:
            path.unlink()
    assert state(run(last)) == expected
    assert last.embedded == once.embedded - 2 * SHARD


@pytest.mark.parametrize("scenario", [first_build, first_files, grown_files])
def test_each_row_is_written_twice_however_many_shards_there_are(tmp_path, monkeypatch, scenario):
    run, save, written = prepared(tmp_path, monkeypatch, "whole", scenario), parts.save_table, Counter()

    def count_and_save(path, table):
        written[path.stem.partition("-")[0]] += len(table)
        save(path, table)

    monkeypatch.setattr(parts, "save_table", count_and_save)
    encoder = Counting()
    store = run(encoder)
    assert written["rows"] == encoder.embedded + len(store)
    assert written["files"] == (2 * COUNT if store.card["folder"] else 0)


@pytest.mark.parametrize("victim", ["rows-00000.parquet", "files-00000.parquet"])  # the last one a power cut may take
def test_a_damaged_table_of_a_shard_is_named_and_without_it_its_images_are_done_again(tmp_path, monkeypatch, victim):
    run, last = prepared(tmp_path, monkeypatch, "killed", first_files), Counting()
    with pytest.raises(Killed):
        run(Counting(2, die))
    path = Workspace().outputs / "embeddings" / "net--toys" / victim
    for content in (b"", path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{victim} is damaged: delete it"):
            run(Counting())
    path.unlink()
    store = run(last)
    assert holds_files(store, tmp_path / "killed" / "toys") == COUNT
    assert last.embedded == COUNT - (2 if victim.startswith("files") else 1) * SHARD
