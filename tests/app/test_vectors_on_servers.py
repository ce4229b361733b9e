"""A service whose vectors lie on a server, where removed rows keep their places."""

from pathlib import Path

import numpy as np
import pytest
from makers.folders import save_classes
from makers.served import application, client, new_images, said

from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.registry import save_encoder
from rectrio_lib.search.collection import Collection


@pytest.fixture
def collection(tmp_path):
    pytest.importorskip("qdrant_client")
    workspace = Workspace(tmp_path)
    save_encoder(RawPixels(3, 8), "pixels", workspace=workspace)
    folder = save_classes(tmp_path / "photos")
    return Collection.build(folder, "pixels", workspace=workspace, vectors="qdrant::memory:")


def everything(api):
    """Every image, listed, counted and found by one of them."""
    listed = api.post("/search", json={"k": 100}).json()
    names = {result["id"] for result in listed["results"]}
    assert listed["total"] == len(names) == api.get("/about").json()["images"]
    query = min(names)
    found = api.post("/search", json={"like": [{"id": query}], "k": 100}).json()
    assert {result["id"] for result in found["results"]} == names - {query}
    return names


def test_what_was_removed_stays_away_however_often_the_index_is_built(collection, tmp_path):
    app = application(collection)
    with client(app) as api:
        before = everything(api)
        gone, back, uploaded = sorted(before)[0], sorted(before)[1], set()
        for number, name in ((90, gone), (91, back)):
            assert api.delete(f"/images/{name}").is_success
            answer = api.post("/upload", files=new_images(tmp_path / "new", number)).json()
            uploaded.add(answer["images"][0]["id"])
            api.portal.call(app.state.service.reindex)
        assert everything(api) == before - {gone, back} | uploaded
        assert all(Path(collection.row(name)["path"]).is_file() for name in uploaded)
        row = collection.index.rows.set_index("image_id").loc[back]
        assert api.post(
            "/upload", files={"files": ("b.png", (collection.folder / row["path"]).read_bytes())}
        ).is_success
        api.portal.call(app.state.service.reindex)
        assert everything(api) == before - {gone} | uploaded
        assert collection.index.removed.sum() == 2


def test_tags_of_uploads_are_kept_as_metadata_csv_writes_them(collection, tmp_path):
    (collection.folder / "metadata.csv").write_text("path,tags\ncat/00.png,red; sale\n", encoding="utf-8")
    shop = Collection.build(collection.folder, workspace=collection.workspace)
    app = application(shop)
    with client(app) as api:
        files = [*new_images(tmp_path / "new", 90, 91)]
        added = api.post("/upload", files=files[:1], data=said(tags=["big", "sale"])).json()["images"]
        added += api.post("/upload", files=files[1:]).json()["images"]
        api.portal.call(app.state.service.reindex)
        assert not len(app.state.service.now.live.current.tail)
        found = api.post("/search", json={"where": "'sale' in tags"}).json()["results"]
        assert {result["id"]: result["metadata"]["tags"] for result in found} == {
            added[0]["id"]: ["big", "sale"], shop.row("cat/00.png")["image_id"]: ["red", "sale"],
        }  # fmt: skip


def test_what_the_library_removed_is_gone_from_the_service_too(collection):
    name = collection.index.rows["image_id"].iloc[3]
    app = application(collection)
    with client(app) as api:
        before, file = everything(api), collection.folder / collection.row(name)["path"]
        collection.remove([name])
        api.portal.call(app.state.service.reload)
        assert everything(api) == before - {name}
        assert api.post("/upload", files={"files": ("back.png", file.read_bytes())}).is_success
        api.portal.call(app.state.service.reindex)
        assert everything(api) == before and np.count_nonzero(collection.index.removed) == 1
