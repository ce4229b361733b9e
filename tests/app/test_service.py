"""The service end to end: what its API promises, on a small collection."""

import asyncio
import json
import shutil
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from makers.images import photograph, save_photograph
from makers.served import application, build_collection, client, copied, new_images, png, said

from rectrio_lib.app import upkeep
from rectrio_lib.app.generation import Generation, uploads_of
from rectrio_lib.app.images import uploads
from rectrio_lib.app.images.uploads import Uploads
from rectrio_lib.app.records import database
from rectrio_lib.app.records.database import open_database
from rectrio_lib.app.schemas import SearchRequest
from rectrio_lib.app.service import Service
from rectrio_lib.core import knn
from rectrio_lib.core.errors import ArgumentError, RecallOutOfReachError
from rectrio_lib.data.image_files import read_image
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.registry import save_encoder
from rectrio_lib.index import factory
from rectrio_lib.index.index import Index
from rectrio_lib.index.live import Snapshot
from rectrio_lib.report.grids import answer_grid
from rectrio_lib.search.collection import Collection
from rectrio_lib.search.results import thumbnails


def search(api, **query):
    answer = api.post("/search", json=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer):
    return [result["id"] for result in answer["results"]]


def id_of(collection, path):
    rows = collection.index.rows
    return rows.loc[rows["path"] == path, "image_id"].item()


def test_search_by_id_is_the_search_of_the_library(api, collection):
    name = id_of(collection, "cat/02.png")
    answer = search(api, like=[{"id": name}], k=5)
    expected = collection.search(name, k=5).frame()
    assert ids(answer) == expected["image_id"].tolist()
    np.testing.assert_allclose([r["score"] for r in answer["results"]], expected["score"], atol=1e-5)
    assert [r["rank"] for r in answer["results"]] == [1, 2, 3, 4, 5]
    assert answer["total"] == 12
    assert answer["results"][0]["metadata"]["label"] in ("cat", "dog")


def test_a_file_of_the_collection_is_known_by_its_content_and_finds_itself_first(api, collection):
    data, name = (collection.folder / "cat/02.png").read_bytes(), id_of(collection, "cat/02.png")
    answer = api.post("/search", files={"files": ("anything.jpg", data)}).json()
    assert ids(answer) == [name, *ids(search(api, like=[{"id": name}]))]
    assert answer["results"][0]["score"] == pytest.approx(1, abs=1e-3)


def test_a_new_file_is_encoded_as_an_index_encodes_it(api, collection, tmp_path):
    file = tmp_path / "new.png"
    save_photograph(file, 90)
    parts = {"files": ("new.png", file.read_bytes())}
    answer = api.post("/search", files=parts, data={"query": '{"like": [{"file": 0}]}'})
    expected = collection.search(file, k=12).frame()
    assert ids(answer.json()) == expected["image_id"].tolist()
    np.testing.assert_allclose([r["score"] for r in answer.json()["results"]], expected["score"], atol=1e-3)


def test_a_mix_weighs_its_parts_and_turns_away(api, collection):
    a, b = id_of(collection, "cat/00.png"), id_of(collection, "dog/50.png")
    answer = search(api, like=[{"id": a, "weight": 3}], without=[{"id": b}], k=12)
    vectors = collection.index.vectors_at(np.arange(12))
    rows = collection.index.rows["image_id"].tolist()
    query = 3 * vectors[rows.index(a)] - 0.5 * vectors[rows.index(b)]
    order = np.argsort(-(vectors @ query), kind="stable")
    assert ids(answer) == [rows[at] for at in order if rows[at] not in (a, b)]


def test_pages_follow_each_other_without_gap_or_repetition(api, collection):
    query = {"like": [{"id": id_of(collection, "cat/00.png")}]}
    whole = ids(search(api, **query, k=11))
    pages, offset = [], 0
    while offset is not None:
        answer = search(api, **query, k=4, offset=offset)
        pages += ids(answer)
        offset = answer["next"]
    assert pages == whole
    assert len(set(pages)) == 11
    for options in ({"mmr": 0.5}, {"distinct": 0.9999}, {"sort": "price"}):
        both = ids(search(api, **query, **options, k=4)) + ids(search(api, **query, **options, k=4, offset=4))
        assert both == ids(search(api, **query, **options, k=8))


def test_conditions_minimum_and_sorting(api, collection):
    query = {"like": [{"id": id_of(collection, "cat/00.png")}]}
    answer = search(api, **query, where="label == 'dog' and price >= 80 and 'sale' in tags")
    assert {r["metadata"]["path"] for r in answer["results"]} == {"dog/53.png", "dog/55.png"}
    assert answer["total"] == 2
    scores = [r["score"] for r in search(api, **query)["results"]]
    assert len(search(api, **query, minimum=scores[3])["results"]) == 4
    prices = [r["metadata"]["price"] for r in search(api, **query, sort="price", descending=False)["results"]]
    assert prices == [10.0 * number for number in range(1, 12)]


def test_without_a_query_the_newest_are_listed(api, collection, tmp_path):
    api.post("/upload", files=new_images(tmp_path / "new", 90))
    answer = search(api, k=3)
    assert answer["results"][0]["metadata"]["uploaded"] is True
    assert [r["score"] for r in answer["results"]] == [None] * 3
    assert (answer["total"], answer["next"], answer["search"]) == (13, 3, None)


def test_an_upload_is_findable_when_the_call_returns_and_again_after_a_restart(api, collection, tmp_path):
    files = new_images(tmp_path / "new", 90, 91)
    answer = api.post("/upload", files=files, data=said(label="bird", price=3, tags=["small"], extra={"brand": "Acme"}))
    assert answer.status_code == 201
    names = [image["id"] for image in answer.json()["images"]]
    assert [image["status"] for image in answer.json()["images"]] == ["added", "added"]
    where = "label == 'bird' and 'small' in tags and brand == 'Acme' and price == 3"
    for opened in (api, client(application(Collection.open("photos", workspace=collection.workspace)))):
        with opened if opened is not api else client(application(collection)) as again:
            assert sorted(ids(search(again, where=where))) == sorted(names)
            assert ids(search(again, like=[{"id": names[0]}], where=where)) == [names[1]]
            found = again.post("/search", files={"files": files[0][1]}, data={"query": json.dumps(
                {"like": [{"file": 0}], "k": 1})}).json()  # fmt: skip
            assert found["results"][0]["id"] == names[0]
    assert api.get(f"/thumbnails/{names[0]}").headers["content-type"] == "image/jpeg"
    assert api.get(f"/images/{names[0]}/view").content[:2] == b"\xff\xd8"


def test_the_same_bytes_are_the_same_image(api, collection, tmp_path):
    files = new_images(tmp_path / "new", 90)
    first = api.post("/upload", files=files * 3)
    assert [image["status"] for image in first.json()["images"]] == ["added", "known", "known"]
    again = api.post("/upload", files=files)
    assert (again.status_code, again.json()["images"][0]["status"]) == (200, "known")
    of_folder = (collection.folder / "cat/00.png").read_bytes()
    known = api.post("/upload", files={"files": ("x.png", of_folder)}).json()["images"][0]
    assert (known["status"], known["id"]) == ("known", id_of(collection, "cat/00.png"))
    assert search(api)["total"] == 13


def test_good_files_of_an_upload_are_kept_and_bad_ones_named(api, tmp_path):
    files = [*new_images(tmp_path / "new", 90), ("files", ("<script>.png", b"no image"))]
    answer = api.post("/upload", files=files)
    assert answer.status_code == 201
    statuses = [(image["name"], image["status"]) for image in answer.json()["images"]]
    assert statuses == [("90.png", "added"), ("<script>.png", "refused")]
    refused = api.post("/upload", files=files[1:])
    assert (refused.status_code, refused.headers["content-type"]) == (415, "application/problem+json")
    assert refused.json()["images"][0]["status"] == "refused"
    assert search(api)["total"] == 13


@pytest.mark.parametrize(
    ("metadata", "files"),
    [("{", 1), ("[]", 1), ('[{"label": "a"}]', 2), ('{"price": "much"}', 1), ('{"unknown": 1}', 1), ("{}", 0),
     ('{"price": NaN}', 1), ('{"extra": {"a b": 1}}', 1)],
)  # fmt: skip
def test_wrong_uploads_change_nothing(api, tmp_path, metadata, files):
    parts = new_images(tmp_path / "new", *range(90, 90 + files)) or {"other": ("x.png", b"x")}
    assert api.post("/upload", files=parts, data={"metadata": metadata}).status_code == 422
    assert search(api)["total"] == 12


def test_metadata_changes_are_seen_at_once(api, collection):
    name = id_of(collection, "cat/02.png")
    changed = api.patch(f"/images/{name}", json={"label": "tiger", "tags": ["big"], "extra": {"zoo": True}})
    assert changed.json()["metadata"]["label"] == "tiger"
    assert ids(search(api, where="label == 'tiger' and 'big' in tags and zoo")) == [name]
    columns = {column["name"]: column for column in api.get("/facets").json()["columns"]}
    assert {value["value"]: value["count"] for value in columns["label"]["values"]} == {"dog": 6, "cat": 5, "tiger": 1}
    assert api.patch(f"/images/{name}", json={"label": None}).json()["metadata"].get("label") is None
    assert api.patch("/images/0123", json={"label": "x"}).status_code == 404


def test_removed_images_are_gone_everywhere_and_files_of_the_folder_stay(api, collection, tmp_path):
    name, other = id_of(collection, "cat/02.png"), id_of(collection, "cat/03.png")
    uploaded = api.post("/upload", files=new_images(tmp_path / "new", 90)).json()["images"][0]["id"]
    stored = list((collection.workspace.outputs / "uploads").rglob(f"{uploaded}.*"))
    assert len(stored) == 1
    for image in (name, uploaded):
        assert api.delete(f"/images/{image}").status_code == 204
        assert api.delete(f"/images/{image}").status_code == 404
        for path in (f"/images/{image}", f"/thumbnails/{image}", f"/images/{image}/view"):
            assert api.get(path).status_code == 404
    assert not {name, uploaded} & set(ids(search(api, like=[{"id": other}], k=20)))
    assert api.post("/search", json={"like": [{"id": name}]}).status_code == 404
    assert (collection.folder / "cat/02.png").is_file()
    assert not stored[0].exists()
    back = api.post("/upload", files=new_images(tmp_path / "new", 90)).json()["images"][0]
    assert (back["status"], back["id"]) == ("added", uploaded)
    assert uploaded in ids(search(api, like=[{"id": other}], k=20))


def test_facets_tell_kinds_and_ranges(api):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # colours are found in the background
        answer = api.get("/facets").json()
        columns = {column["name"]: column for column in answer["columns"]}
        if columns.get("colour", {}).get("count") == 12:
            break
        time.sleep(0.2)
    assert {name: column["kind"] for name, column in columns.items()} == {
        "label": "category", "price": "number", "colour": "colour", "tags": "tags", "created": "date",
        "width": "number", "height": "number",
    }  # fmt: skip
    assert (columns["price"]["minimum"], columns["price"]["maximum"]) == (0, 110)
    assert columns["tags"]["values"] == [{"value": "summer", "count": 12}, {"value": "sale", "count": 6}]
    assert sum(value["count"] for value in columns["colour"]["values"]) == 12
    fewer = api.get("/facets", params={"where": "price < 30"}).json()
    assert fewer["total"] == 3


def test_the_history_is_the_callers_own_and_can_be_deleted(api, collection):
    names = [id_of(collection, f"cat/0{number}.png") for number in range(3)]
    searches = [search(api, like=[{"id": name}], k=2)["search"] for name in names]
    deadline = time.monotonic() + 10
    while len(found := api.get("/history").json()["searches"]) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [entry["id"] for entry in found] == searches[::-1]
    assert found[0]["query"]["like"][0]["id"] == names[2]
    assert (found[0]["title"], len(found[0]["results"])) == ("1 image", 2)
    page = api.get("/history", params={"limit": 2}).json()
    rest = api.get("/history", params={"limit": 2, "before": page["next"]}).json()
    assert [entry["id"] for entry in page["searches"] + rest["searches"]] == searches[::-1]
    assert rest["next"] is None
    assert api.delete(f"/history/{searches[1]}").status_code == 204
    assert api.delete(f"/history/{searches[1]}").status_code == 404
    assert len(api.get("/history").json()["searches"]) == 2
    assert api.delete("/history").status_code == 204
    assert api.get("/history").json()["searches"] == []
    home = collection.workspace.outputs
    left = b"".join(file.read_bytes() for file in home.glob("service.sqlite*"))
    assert not any(name.encode() in left for name in searches)


@pytest.mark.parametrize(
    ("query", "status"),
    [({"k": 0}, 422), ({"k": 201}, 422), ({"like": [{}]}, 422), ({"like": [{"id": "a", "text": "b"}]}, 422),
     ({"typo": 1}, 422), ({"like": [{"id": "../../etc/passwd"}]}, 422), ({"where": "nothing == 1"}, 400),
     ({"where": "__import__('os')"}, 400), ({"where": "label.upper() == 'X'"}, 400), ({"where": "9**9**9 > 1"}, 400),
     ({"where": "(" * 500}, 400), ({"where": "x" * 3000}, 422), ({"sort": "nothing"}, 400), ({"sort": "tags"}, 400),
     ({"like": [{"id": "absent"}]}, 404), ({"like": [{"file": 0}]}, 400), ({"like": [{"text": "red"}]}, 400),
     ({"minimum": 2}, 422), ({"offset": -1}, 422), ({"like": [{"id": "x", "weight": 0}]}, 422)],
)  # fmt: skip
def test_wrong_queries_are_answered_with_a_sentence(api, query, status):
    answer = api.post("/search", json=query)
    assert answer.status_code == status
    problem = answer.json()
    assert (problem["status"], answer.headers["content-type"]) == (status, "application/problem+json")
    assert len(problem["detail"]) > 10
    assert "Traceback" not in problem["detail"]
    assert (query != {"typo": 1}) or problem["detail"] == "typo: there is no such field; /docs lists those there are."


def test_where_nothing_is_wanted_the_least_alike_come_first(api, collection):
    name = id_of(collection, "cat/00.png")
    found = search(api, without=[{"id": name}], k=11)
    nearest = search(api, like=[{"id": name}], k=11)
    assert ids(found) == ids(nearest)[::-1]
    np.testing.assert_allclose(
        [r["score"] for r in found["results"]], [-r["score"] for r in nearest["results"]][::-1], atol=1e-4
    )


@pytest.mark.parametrize("place", ["/search", "/recommend"])
@pytest.mark.parametrize("query", [{"k": 2}, {"like": [{"file": 0}]}, {"k": 2, "like": [{"file": 1}]}])
def test_a_file_that_the_query_does_not_speak_of_is_not_left_aside(api, place, query):
    files = [("files", ("new.png", b"is not read"))] * 2
    answer = api.post(place, files=files, data={"query": json.dumps(query)})
    silent = 1 if query.get("like") == [{"file": 0}] else 0
    assert answer.status_code == 422
    assert f'what file {silent} is for, such as "like": [{{"file": {silent}}}]' in answer.json()["detail"]


def test_broken_bodies_are_refused(api):
    assert api.post("/search", content="{", headers={"content-type": "application/json"}).status_code == 422
    assert api.post("/search", content="a", headers={"content-type": "text/plain"}).status_code == 415
    assert api.post("/search", content="a", headers={"content-type": "multipart/form-data"}).status_code == 400
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert api.post("/search", content="--y\r\nno", headers=form).status_code in (400, 422)
    assert api.post("/search", files={"files": ("a.png", b"")}).status_code == 422


def test_a_new_index_takes_over_what_was_uploaded_and_leaves_out_what_was_removed(api, collection, tmp_path):
    added = api.post("/upload", files=new_images(tmp_path / "new", 90), data=said(label="bird"))
    uploaded = added.json()["images"][0]["id"]
    removed = id_of(collection, "cat/02.png")
    api.delete(f"/images/{removed}")
    before = search(api, like=[{"id": uploaded}], k=20)
    fresh = Collection.open("photos", workspace=collection.workspace)
    upkeep.reindex(Generation.of(fresh, open_database(workspace=collection.workspace)))  # as another process does
    service = api.app.state.service
    deadline = time.monotonic() + 20
    while len(service.now.live.current.tail) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(service.now.live.current.main_rows) == 12
    after = search(api, like=[{"id": uploaded}], k=20)
    assert ids(after) == ids(before)
    assert api.get(f"/images/{uploaded}").json()["metadata"]["label"] == "bird"
    opened = Collection.open("photos", workspace=collection.workspace)
    assert uploaded in set(opened.index.rows["image_id"])
    assert removed not in set(opened.index.rows["image_id"])


def test_the_library_finds_the_files_of_uploads_that_the_index_took_over(api, collection, tmp_path):
    added = api.post("/upload", files=new_images(tmp_path / "new", 90, 91)).json()["images"]
    kept, lost = (image["id"] for image in added)
    upkeep.reindex(api.app.state.service.now)
    upkeep.reindex(
        Generation.of(Collection.open("photos", workspace=collection.workspace), api.app.state.service.engine)
    )
    service_of_it, shop = Uploads(uploads_of(collection)), Collection.open("photos", workspace=collection.workspace)
    assert shop.row(kept)["path"] == service_of_it.place(kept, ".jpg").as_posix()
    assert shop.row("cat/00.png")["path"] == "cat/00.png"
    service_of_it.delete(lost)
    results = shop.search([kept, "cat/00.png"], k=13)
    assert {kept, lost} <= set(results.column("image_id").ravel())
    images = thumbnails(results.place, results.column("path")[1], 32)
    assert [path for path, image in images.items() if not image] == [shop.row(lost)["path"]]
    assert answer_grid(shop, [kept, lost], shop.search([kept, lost])).axes
    place, path = shop.located(kept)
    assert read_image(place, path, 8, 3).shape == read_image(tmp_path / "new", "90.png", 8, 3).shape
    with pytest.raises(ArgumentError, match=f"{kept} was uploaded to the service.*DELETE /images/{kept}"):
        shop.remove(["cat/00.png", kept])
    shop.remove("cat/00.png")
    assert shop.positions([kept, "cat/00.png"]).keys() == {kept}
    assert api.get(f"/images/{kept}").json()["metadata"]["path"] == f"{kept[:2]}/{kept}.jpg"


def test_an_index_that_the_service_built_tells_its_database_nothing_new(api, collection, tmp_path):
    api.post("/upload", files=new_images(tmp_path / "new", 90), data=said(tags=["x"], price=2, extra={"zoo": "Bern"}))
    upkeep.find_colours(api.app.state.service.now)
    api.portal.call(api.app.state.service.catch_up)
    service = api.app.state.service
    last = service.now.catalogue.since(0)[-1].sequence
    api.portal.call(service.reindex)
    assert [(row.image_id, row.extra) for row in service.now.catalogue.since(last)] == []


def test_an_image_without_a_label_has_none_in_a_new_index_either(api, collection, tmp_path):
    unlabelled = api.post("/upload", files=new_images(tmp_path / "new", 90)).json()["images"][0]["id"]
    api.patch(f"/images/{id_of(collection, 'cat/00.png')}", json={"label": None})
    upkeep.reindex(api.app.state.service.now)
    shop = Collection.open("photos", workspace=collection.workspace)
    found = shop.search("cat/01.png", k=12, where="label == ''").frame()["image_id"]
    assert set(found) == {unlabelled, id_of(collection, "cat/00.png")}
    edges = [
        patch.get_edgecolor() for patch in answer_grid(shop, [unlabelled], shop.search(unlabelled)).axes[0].patches
    ]
    assert len(set(edges)) == 1, "the query is framed, and no answer, as nobody knows which are right"


def test_an_index_whose_kind_suits_its_size_gets_another_when_it_has_grown(api, collection, tmp_path, monkeypatch):
    monkeypatch.setattr(factory, "FLAT_ROWS", len(collection.index))
    asked, build = [], Index.build
    monkeypatch.setattr(
        Index, "build", lambda *given, **options: asked.append(options["recall"]) or build(*given, **options)
    )
    api.post("/upload", files=new_images(tmp_path / "new", 90))
    upkeep.reindex(api.app.state.service.now)
    assert Collection.open("photos", workspace=collection.workspace).index.kind == "hnsw"
    assert asked == [0.95]  # not the 1.0 that a flat index finds


def test_a_new_index_has_the_kind_and_recall_that_were_asked_for(collection, monkeypatch):
    given = {"workspace": collection.workspace, "kind": "flat", "recall": 0.9}
    shop = Collection.build(collection.folder, collection.encoder_name, "wished", **given)
    monkeypatch.setattr(factory, "FLAT_ROWS", 1)
    asked, build = [], Index.build
    monkeypatch.setattr(
        Index, "build", lambda *given, **more: asked.append((given[0], more["recall"])) or build(*given, **more)
    )
    upkeep.reindex(Generation.of(shop, open_database(workspace=collection.workspace)))
    assert Collection.open("wished", workspace=collection.workspace).index.kind == "flat"
    shop.index.made_from.pop("asked")  # as in an older version, where the kind alone tells what was wished
    upkeep.reindex(Generation.of(shop, open_database(workspace=collection.workspace)))
    made_from = Collection.open("wished", workspace=collection.workspace).made_from
    assert asked == [("flat", 0.9), ("flat", 0.95)] and made_from["asked"] == {"kind": "flat", "recall": 0.95}


def test_a_new_index_is_built_a_few_vectors_at_a_time(api, collection, tmp_path, monkeypatch):
    api.post("/upload", files=new_images(tmp_path / "new", 90, 91))
    asked, read = [], Snapshot.vectors_at
    monkeypatch.setattr(Snapshot, "vectors_at", lambda self, at: asked.append(np.size(at)) or read(self, at))
    monkeypatch.setattr(knn, "BLOCK_ROWS", 5)
    snapshot = api.app.state.service.now.live.current
    before = read(snapshot, np.arange(14))
    upkeep.reindex(api.app.state.service.now)
    built = Collection.open("photos", workspace=collection.workspace).index
    assert asked and max(asked) == 5 and built.rows["image_id"].tolist() == snapshot.rows["image_id"].tolist()
    np.testing.assert_array_equal(built.vectors_at(np.arange(14)), before)


def test_a_new_index_keeps_the_memory_limit(collection):
    given = {"workspace": collection.workspace, "memory_limit": "50MB"}
    limited = Collection.build(collection.folder, collection.encoder_name, "limited", **given)
    upkeep.reindex(Generation.of(limited, open_database(workspace=collection.workspace)))
    assert Collection.open("limited", workspace=collection.workspace).index.memory_limit == 50_000_000


def test_two_services_on_one_database_see_each_others_changes(api, collection, tmp_path):
    other = client(application(Collection.open("photos", workspace=collection.workspace)))
    with other:
        name = api.post("/upload", files=new_images(tmp_path / "new", 90)).json()["images"][0]["id"]
        gone = id_of(collection, "dog/50.png")
        other.delete(f"/images/{gone}")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if other.get(f"/images/{name}").status_code == 200 and api.get(f"/images/{gone}").status_code == 404:
                break
            time.sleep(0.1)
        assert other.get(f"/images/{name}").status_code == 200
        assert api.get(f"/images/{gone}").status_code == 404


def test_another_encoder_never_mixes_with_this_one(tmp_path):
    collection = build_collection(tmp_path)
    with client(application(collection)) as api:
        uploaded = api.post("/upload", files=new_images(tmp_path / "new", 90)).json()["images"][0]["id"]
        save_encoder(RawPixels(3, 12), "finer", workspace=collection.workspace)
        Collection.build(collection.folder, "finer", "photos", "flat", workspace=collection.workspace)
        service = api.app.state.service
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if service.now.collection.index.dim == 3 * 12 * 12 and uploaded in service.now.live.current.places:
                break
            time.sleep(0.1)
        assert service.now.live.current.vectors_at(np.array([12])).shape == (1, 432)  # the upload, encoded again
        assert uploaded in ids(search(api, like=[{"id": id_of(collection, "cat/00.png")}], k=20))


def test_status_and_figures(api):
    assert api.get("/health").json() == {"status": "ok"}
    deadline = time.monotonic() + 20
    while api.get("/ready").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert api.get("/ready").json() == {"status": "ready"}
    search(api)
    figures = api.get("/metrics").text
    assert 'rectrio_requests_total{method="POST",route="/search",status="200"}' in figures
    assert "rectrio_images 12.0" in figures
    about = api.get("/about").json()
    assert (about["collection"], about["images"], about["texts"], about["user"]) == ("photos", 12, False, "local")


def test_page_and_description_come_from_here(api):
    page = api.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert api.get("/docs").status_code == 200
    assert api.get("/docs/swagger-ui-bundle.js").status_code == 200
    assert "https://" not in api.get("/docs").text
    paths = set(api.get("/openapi.json").json()["paths"])
    assert {"/upload", "/search", "/facets", "/history", "/images/{image_id}", "/health", "/ready"} <= paths
    for path in ("/page/../routes.py", "/page/%2e%2e/routes.py", "/images/..%2f..%2fservice.sqlite/view"):
        assert api.get(path).status_code in (404, 422)


def test_a_missing_file_is_a_sentence(api, collection):
    name = id_of(collection, "cat/02.png")
    (collection.folder / "cat/02.png").unlink()
    answer = api.get(f"/images/{name}/view")
    assert answer.status_code in (404, 503)
    assert str(collection.folder) not in answer.text
    assert api.get(f"/images/{name}").status_code == 200


# --- trouble


def test_a_database_that_is_busy_is_said_and_forgiven(template, tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    collection = copied(template, tmp_path)
    files = new_images(tmp_path / "new", 90)
    with client(application(collection)) as api:
        with sqlite3.connect(collection.workspace.outputs / "service.sqlite", isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            answer = api.post("/upload", files=files)
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
            assert int(answer.headers["retry-after"]) > 0
            assert api.post("/search", json={"like": [{"id": id_of(collection, "cat/00.png")}]}).status_code == 200
            other.execute("ROLLBACK")
        assert api.post("/upload", files=files).status_code == 201


def test_a_full_disk_is_said_and_forgiven(api, collection, tmp_path, monkeypatch):
    files = new_images(tmp_path / "new", 90)
    monkeypatch.setattr(uploads, "FREE_BYTES", 1 << 60)
    assert api.post("/upload", files=files).status_code == 507
    assert search(api)["total"] == 12
    monkeypatch.setattr(uploads, "FREE_BYTES", 0)
    assert api.post("/upload", files=files).status_code == 201


def test_an_index_that_is_deleted_under_a_running_service_is_still_searched(api, collection):
    shutil.rmtree(collection.workspace.path("indexes", "photos"))
    time.sleep(5 * upkeep.POLL_SECONDS)  # the service looks after new indexes meanwhile
    assert len(search(api, like=[{"id": id_of(collection, "cat/00.png")}])["results"]) == 11


def test_an_encoder_that_is_gone_leaves_searches_by_id(collection):
    shutil.rmtree(collection.workspace.path("encoders", "pixels"))
    with client(application(collection)) as api:
        assert len(search(api, like=[{"id": id_of(collection, "cat/00.png")}])["results"]) == 11
        answer = api.post("/search", files={"files": ("x.png", png(photograph(90)))})
        assert answer.status_code in (404, 503)
        deadline = time.monotonic() + 10
        while (ready := api.get("/ready")).json()["detail"].startswith(
            "The encoder is being"
        ) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ready.status_code == 503
        assert "rectrio" in ready.json()["detail"]  # the command that makes it


def test_more_queries_than_can_wait_are_told_to_come_again(api):
    service = api.app.state.service
    service.now.images.waiting = 0
    answer = api.post("/search", files={"files": ("x.png", png(photograph(90)))})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    service.now.images.waiting = 10
    assert api.post("/search", files={"files": ("x.png", png(photograph(90)))}).status_code == 200


def test_fifty_uploads_of_one_file_at_once_are_one_image(api, collection):
    data = png(photograph(90))
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: api.post("/upload", files={"files": ("x.png", data)}), range(50)))
    assert {answer.status_code for answer in answers} <= {200, 201}
    assert len({answer.json()["images"][0]["id"] for answer in answers}) == 1
    assert search(api)["total"] == 13


@pytest.mark.parametrize(
    "said",
    [{"extra": {"a": "\ud800"}}, {"label": "\0"}, {"tags": ["\0"]}, {"extra": {"path": "x"}}, {"extra": {"score": 1}},
     {"created": "0001-01-01T00:00:00+10:00"}, {"created": "9999-12-31T23:59:59-10:00"}],
)  # fmt: skip
def test_what_no_database_keeps_is_refused_and_nothing_changes(api, collection, said):
    name = id_of(collection, "cat/02.png")
    before = api.get(f"/images/{name}").json()
    body = json.dumps(said)
    answer = api.patch(f"/images/{name}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert api.get(f"/images/{name}").json() == before
    assert api.post("/search", json={"words": "a\0b"}).status_code == 422


def test_a_column_may_hold_numbers_first_and_words_later(api, collection, tmp_path):
    first, second = id_of(collection, "cat/00.png"), id_of(collection, "cat/01.png")
    for name, value in ((first, 5), (second, True)):
        assert api.patch(f"/images/{name}", json={"extra": {"rating": value}}).status_code == 200
    uploaded = api.post("/upload", files=new_images(tmp_path / "new", 90), data=said(extra={"rating": "abc"}))
    assert uploaded.status_code == 201
    for where, count in (("rating == 5", 1), ("rating == 'abc'", 1), ("rating == 'True'", 1), ("price < 15", 2)):
        assert search(api, where=where)["total"] == count, where
    assert api.get("/facets").status_code == 200
    upkeep.reindex(api.app.state.service.now)
    assert search(api, where="rating == 'abc'")["total"] == 1


def test_a_file_that_came_back_while_it_was_removed_stays(api, tmp_path):
    files = new_images(tmp_path / "new", 90)
    name = api.post("/upload", files=files).json()["images"][0]["id"]
    service = api.app.state.service
    service.now.catalogue.remove(name)
    service.now.catalogue.add([row for row in service.now.catalogue.since(0) if row.image_id == name and not setattr(
        row, "removed", False)])  # fmt: skip
    service.now.catalogue.if_removed(name, lambda: service.uploads.delete(name))
    assert api.get(f"/images/{name}/view").status_code == 200


def test_bodies_are_bounded_and_unknown_fields_named(api, tmp_path):
    files = new_images(tmp_path / "new", 90)
    assert api.post("/search", files=files, data={"k": "2"}).status_code == 422
    assert api.post("/search", files={"file": files[0][1]}).status_code == 422
    long = ("metadata", ("m.json", b"[" + b"0," * 100_000 + b"0]"))
    assert api.post("/upload", files=[*files, long]).status_code == 413
    assert api.post("/search", json={f"k{number}": 1 for number in range(20_000)}).status_code == 413
    assert api.post("/recommend", json={"group_by": "tags"}).status_code == 400
    assert api.delete("/history", headers={"origin": "http://[evil"}).status_code == 403
    assert api.head("/").status_code == 200


def test_a_new_column_makes_one_new_generation_for_all_that_wait(collection, monkeypatch):
    service, made = Service(collection, open_database(workspace=collection.workspace)), []
    before, of = service.now, Generation.of
    monkeypatch.setattr(Generation, "of", lambda *given: made.append(given) or of(*given))
    service.now.catalogue.change(id_of(collection, "cat/00.png"), {"extra": {"zoo": "Berlin"}})

    async def work():
        await asyncio.gather(*(service.catch_up() for _ in range(4)))

    asyncio.run(work())
    assert len(made) == 1
    assert service.now is not before
    assert service.now.live.current.count("zoo == 'Berlin'") == 1


def test_an_edited_image_whose_file_is_away_waits_for_it_and_is_not_encoded_again(tmp_path):
    collection = build_collection(tmp_path)
    name, engine = id_of(collection, "cat/02.png"), open_database(workspace=collection.workspace)

    def built_again():
        built = Collection.build(collection.folder, "pixels", "photos", workspace=collection.workspace)
        return Generation.of(built, engine)

    built_again().catalogue.change(name, {"label": "tiger"})
    file = collection.folder / "cat/02.png"
    data = file.read_bytes()
    file.unlink()
    without = built_again()
    assert (without.stale, without.live.current.positions([name])) == ({}, {})
    without.catalogue.change(name, {"price": 7.0})
    without.catch_up()
    assert without.stale == {}
    file.write_bytes(data)
    snapshot = built_again().live.current
    (record,) = snapshot.records([*snapshot.positions([name]).values()])
    assert (record["label"], record["price"]) == ("tiger", 7.0)


@pytest.mark.parametrize(("kind", "blocking"), [("flat", False), (factory.ON_DISK, True), ("qdrant", True)])
def test_a_slow_index_holds_nobody_up(collection, monkeypatch, kind, blocking):
    """What may wait for a server or a disk is never called on the event loop."""
    service = Service(collection, open_database(workspace=collection.workspace))
    monkeypatch.setattr(collection.index, "kind", kind, raising=False)
    if kind == "qdrant":
        monkeypatch.setattr("rectrio_lib.app.generation.Index", type("Other", (), {}))
    threads, snapshot = set(), service.now.live.current
    for method in ("search", "vectors_at"):
        original = getattr(type(snapshot), method)

        def watched(self, *arguments, _original=original, **more):
            threads.add(threading.get_ident())
            return _original(self, *arguments, **more)

        monkeypatch.setattr(type(snapshot), method, watched)
    request = SearchRequest(like=[{"id": id_of(collection, "cat/00.png")}])
    assert asyncio.run(service.search(request, [], "ann")).results
    assert (threading.get_ident() not in threads) is blocking


def test_whether_a_server_has_changed_is_not_asked_on_the_event_loop(collection, monkeypatch):
    service, threads = Service(collection, open_database(workspace=collection.workspace)), []
    monkeypatch.setattr(service, "rebuilt_elsewhere", lambda: threads.append(threading.get_ident()) or False)
    monkeypatch.setattr(upkeep, "POLL_SECONDS", 0.01)

    async def run():
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(upkeep.keep_up(service), 0.3)

    asyncio.run(run())
    assert threads and threading.get_ident() not in threads


def test_an_index_that_cannot_be_built_is_tried_ever_more_rarely_and_the_rest_is_done_meanwhile(
    collection, monkeypatch, caplog
):
    service, clock, tries, looked = Service(collection, open_database(workspace=collection.workspace)), [0], [], []
    rebuilt, built = [100], [130]

    async def sleep(seconds):
        clock[0] += seconds
        if clock[0] > 160:
            raise asyncio.CancelledError

    async def reindex():
        tries.append(clock[0])
        if clock[0] < built[0]:
            raise RecallOutOfReachError("ivf")

    async def reload():
        rebuilt.clear()

    monkeypatch.setattr(upkeep, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    monkeypatch.setattr(upkeep, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(upkeep, "find_colours", lambda now: looked.append(clock[0]))
    monkeypatch.setattr(type(service.now.live), "tail_is_full", True)
    monkeypatch.setattr(service, "rebuilt_elsewhere", lambda: rebuilt and clock[0] >= rebuilt[0])
    monkeypatch.setattr(service, "reload", reload)
    monkeypatch.setattr(service, "reindex", reindex)
    monkeypatch.setattr(upkeep, "LONGEST_SECONDS", 32)
    monkeypatch.setattr(upkeep, "POLL_SECONDS", 1)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(upkeep.keep_up(service))
    failed = [1, 3, 7, 15, 31, 63, 95, 100]  # at 100 another process has built it
    assert tries == [*failed, *range(132, 161)]  # and once it can be built, whenever the tail is full
    assert sorted({*range(1, 161)} - {*looked}) == failed
    assert caplog.text.count("ivf") == len(failed)
