"""A folder of images whose vectors lie in PostgreSQL or Qdrant: by the library and by the commands."""

import json

import numpy as np
import pytest
from makers.commands import rectrio, well
from makers.folders import ENCODER, save_photographs

from rectrio_lib.core import knn
from rectrio_lib.core.errors import ArgumentError, RectrioError, StorageError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.embeddings.store import MappedVectors, open_store
from rectrio_lib.search.collection import Collection


@pytest.fixture(params=["pgvector", "qdrant"])
def url(request):
    if request.param == "pgvector":
        return request.getfixturevalue("postgres_url").replace("postgres:@", "postgres:s3cret@")
    pytest.importorskip("qdrant_client")
    return "qdrant::memory:"


def card(name="pets"):
    return (Workspace().path("indexes", name) / "card.json").read_text(encoding="utf-8")


def test_a_collection_on_a_server_finds_what_one_in_the_workspace_finds(folder, url):
    here = Collection.build(folder, ENCODER, name="here")
    there = Collection.build(folder, ENCODER, vectors=url)
    assert there.index.kind == json.loads(card())["kind"] and "s3cret" not in card()
    assert there.made_from == here.made_from | {"store": f"{ENCODER}--pets", "dataset": "pets"}
    opened = Collection.open("pets")
    for options in (
        {"k": 4},
        {"k": 50},
        {"k": 3, "where": "label == 'dog' and 'png' in path"},
        {"k": 5, "distinct": 0.99},
    ):
        found = [shop.search(["cat/01.png", "dog/52.png"], **options).frame() for shop in (here, there, opened)]
        for other in found[1:]:
            assert other["path"].tolist() == found[0]["path"].tolist()
            assert other["score"].to_numpy() == pytest.approx(found[0]["score"].to_numpy(), abs=2e-3)
    info = opened.info()
    assert (info["kind"], info["images"], info["recall"]) == (there.index.kind, 12, "not measured")


def test_vectors_go_to_a_server_a_few_at_a_time(folder, url, monkeypatch):
    asked, read = [], MappedVectors.__getitem__

    def counted(self, places):
        found = read(self, places)
        asked.append(len(found))
        return found

    monkeypatch.setattr(MappedVectors, "__getitem__", counted)
    monkeypatch.setattr(knn, "BLOCK_ROWS", 5)
    monkeypatch.setattr("rectrio_lib.index.servers.qdrant_points.BATCH", 4)
    there = Collection.build(folder, ENCODER, vectors=url)
    assert sum(asked) >= 12 and max(asked) == 5
    stored = there.index.vectors_at(np.arange(12))
    np.testing.assert_allclose(stored, open_store(ENCODER, "pets").vectors(), atol=1e-3)


def test_images_are_added_and_removed_and_built_again(folder, url, tmp_path):
    shop = Collection.build(folder, ENCODER, vectors=url)
    more = save_photographs(tmp_path / "more", range(100, 103), "bird")
    assert shop.add(tmp_path / "more") == 3 and shop.add(tmp_path / "more") == 0
    shop.remove(["cat/01.png"])
    other = Collection.open("pets")
    assert len(other.index) == 14 and other.index.removed.sum() == 1, more
    assert set(other.search("dog/52.png", k=20).frame()["label"]) == {"cat", "dog", "bird"}
    with pytest.raises(ArgumentError):
        other.remove(["cat/01.png"])

    again = Collection.build(folder)  # stays on its server
    assert (again.index.kind, len(again.index), again.index.removed.any()) == (shop.index.kind, 12, False)
    changed = (Workspace().path("indexes", "pets") / "card.json").stat().st_mtime_ns
    assert len(Collection.build(folder).index) == 12
    assert (Workspace().path("indexes", "pets") / "card.json").stat().st_mtime_ns == changed
    assert Collection.build(folder, vectors="faiss").index.kind == "flat"


def test_copies_are_found_by_their_own_path_and_label_after_removals(folder, url):
    for twin, of in (("dog/twin.png", "cat/00.png"), ("dog/gone.png", "cat/01.png")):
        (folder / twin).write_bytes((folder / of).read_bytes())
    shop = Collection.build(folder, ENCODER, vectors=url)
    shop.remove(["cat/01.png", "cat/02.png", "dog/50.png"])
    dogs = shop.search("cat/03.png", where="label == 'dog'", k=12).frame()["path"]
    assert sorted(dogs) == ["dog/51.png", "dog/52.png", "dog/53.png", "dog/54.png", "dog/55.png", "dog/twin.png"]
    assert shop.positions(["dog/twin.png", "dog/gone.png"]) == {
        "dog/twin.png": shop.positions(["cat/00.png"])["cat/00.png"]
    }


def test_the_commands_work_as_with_faiss(folder, url):
    run = rectrio("index", folder, "--encoder", ENCODER, "--vectors", url)
    assert run.exit_code == 0 and "s3cret" not in run.output, run.output
    (query,) = json.loads(well("search", "cat/01.png", "--index", "pets", "--k", 2, "--json"))["queries"]
    assert len({answer["path"] for answer in query["answers"]}) == 2
    told = rectrio("info", "pets")
    assert told.exit_code == 0 and "12" in told.output and "s3cret" not in told.output


def test_a_server_that_is_away_is_told_when_a_collection_is_opened(folder, postgres_url):
    Collection.build(folder, ENCODER, vectors=postgres_url)
    path = Workspace().path("indexes", "pets") / "card.json"
    path.write_text(card().replace(json.loads(card())["url"], "postgresql://me@127.0.0.1:9/db"), encoding="utf-8")
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9"):
        Collection.open("pets")
    for damage in ({"url": 5}, {"kind": "milvus"}, {"collection": None}):
        path.write_text(json.dumps(json.loads(card()) | damage), encoding="utf-8")
        with pytest.raises(RectrioError):
            Collection.open("pets")


@pytest.mark.parametrize("address", ["ftp://example.com", "here", "mysql://me:s3cret@example.com/db"])
def test_what_is_no_address_is_refused_before_anything_is_embedded(folder, address):
    with pytest.raises(ArgumentError) as caught:
        Collection.build(folder, ENCODER, vectors=address)
    assert "s3cret" not in str(caught.value) and not (Workspace().outputs / "embeddings").exists()
