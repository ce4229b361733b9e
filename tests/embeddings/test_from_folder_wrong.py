import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from makers.stores import SHARD, Counting, embed, embeds_nothing, holds_files, picture_set, save_pictures
from PIL import Image

from rectrio_lib.core.errors import DataError
from rectrio_lib.data import image_files
from rectrio_lib.embeddings.embed import embed as embed_images


@pytest.fixture
def folder(tmp_path):
    return save_pictures(tmp_path / "toys", range(30))


def test_broken_files_stand_in_the_ledger_and_are_tried_again_only_when_they_change(folder):
    (folder / "cat" / "page.png").write_text("<html>", encoding="utf-8")
    (folder / "dog" / "empty.png").touch()
    store, report = embed(folder)
    assert (report.embedded, report.bad) == (30, 2)
    assert report.ledger["picture"].tolist() == ["cat/page.png", "dog/empty.png"]
    assert report.ledger["reason"].str.startswith("UnidentifiedImageError: cannot identify").all()
    assert holds_files(store, folder) == 30
    embeds_nothing(folder)
    Image.new("L", (6, 6), 3).save(folder / "cat" / "page.png")
    store, report = embed(folder)
    assert (report.embedded, report.bad) == (1, 1)
    assert holds_files(store, folder) == 31


def test_a_folder_of_broken_files_alone_gives_an_empty_store_and_the_ledger(tmp_path):
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "broken.png").write_text("no picture", encoding="utf-8")
    for _ in range(2):
        store, report = embed(tmp_path / "toys")
        assert (len(store), report.bad, report.embedded) == (0, 1, 0)
        assert store.vectors().shape == (0, 36) and list(store.blocks()) == []


@pytest.mark.parametrize("denied", ["scandir", "stat"])
def test_a_folder_that_may_not_be_read_or_entered_is_told(folder, monkeypatch, denied):
    embed(folder)
    allowed, beside = getattr(os, denied), {"scandir": folder, "stat": folder / "metadata.csv"}[denied]

    def refuse(place, *given, **options):
        if str(place).rstrip("/") == str(beside):
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return allowed(place, *given, **options)

    monkeypatch.setattr(os, denied, refuse)
    if denied == "stat":
        embeds_nothing(folder)
    else:
        with pytest.raises(DataError, match=r"toys cannot be read \(PermissionError: Permission denied\)"):
            embed(folder)


def test_files_that_vanish_after_they_were_listed_stand_in_the_ledger(folder, monkeypatch):
    find = image_files.list_images

    def find_and_lose(*where):
        found = find(*where)
        (folder / "cat" / "00.png").unlink()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(image_files, "list_images", find_and_lose)
        _, report = embed(folder)
    assert (report.embedded, report.bad) == (29, 1)
    assert report.ledger.values.tolist() == [["cat/00.png", "FileNotFoundError: No such file or directory"]]
    assert holds_files(embeds_nothing(folder), folder) == 29
    save_pictures(folder, [0])
    assert embed(folder)[1].embedded == 1


def test_nothing_is_written_among_the_pictures(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    embed(folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_where_nothing_can_be_written_is_one_sentence(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(tmp_path / "file"))
    with pytest.raises(OSError, match="net--toys"):
        embed(folder)


def test_a_full_disk_is_one_sentence_and_loses_nothing(folder, monkeypatch):
    save = np.save

    def until_full(file, array):
        if Path(file.name).name.startswith("vectors-00002"):
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array)

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=r"vectors-00002.npy"),
    ):
        patch.setattr(np, "save", until_full)
        embed(folder)
    store, report = embed(folder)
    assert report.embedded == 30 - 3 * SHARD
    assert holds_files(store, folder) == 30


def test_no_folder_and_no_picture_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        embed(tmp_path / "nowhere")
    embed(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DataError, match="toys"):
        embed(folder)
    save_pictures(folder, range(30))
    assert embed(folder)[1].embedded == 0, "an emptied folder must not empty the store"


def test_a_name_that_other_pictures_have_is_refused_unless_they_moved(folder, tmp_path):
    store, _ = embed(folder)
    other = tmp_path / "elsewhere" / "toys"
    save_pictures(other, [50])
    with pytest.raises(ValueError, match="net--toys"):
        embed(other)
    with pytest.raises(ValueError, match="net--toys"):
        embed_images(
            replace(picture_set(), name="toys"), Counting(), dtype="float32", shard_rows=SHARD, encoder_name="net"
        )
    shutil.rmtree(other)
    folder.rename(other)
    moved = embeds_nothing(other)
    assert json.loads((moved.folder / "card.json").read_text(encoding="utf-8"))["folder"] == str(other.resolve())
    assert moved.rows.equals(store.rows)
    embed_images(picture_set(), Counting(), dtype="float32", shard_rows=SHARD, encoder_name="net")
    with pytest.raises(ValueError, match="net--toy"):
        embed(other, name="toy")
