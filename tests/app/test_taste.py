"""Recommendations, judgements, saved searches and statistics by way of the API: two owners, privacy, bad input."""

import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from makers import postgres
from makers.images import photograph
from makers.served import application, build_collection, client, new_images, png
from sqlalchemy import insert, select, text
from sqlmodel import Session

from rectrio_lib.app.application import create_app
from rectrio_lib.app.records.database import (
    FeedRow,
    JudgementRow,
    OwnerRow,
    SavedRow,
    SearchRow,
    now,
    open_database,
    writing,
)
from rectrio_lib.app.web.access import add_key, remove_key
from rectrio_lib.search.collection import Collection

OWNER_TABLES = (SearchRow, JudgementRow, FeedRow, SavedRow, OwnerRow)

MILLION = """
INSERT INTO judgements (owner, collection, image_id, kind, created)
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 1000000)
SELECT 'local', 'photos', 'old' || n, CASE n % 3 WHEN 0 THEN 'like' WHEN 1 THEN 'click' ELSE 'different' END,
    '2026-01-01 00:00:00' FROM numbers
"""
PLAN = """
EXPLAIN QUERY PLAN SELECT image_id FROM judgements
WHERE owner = 'local' AND collection = 'photos' AND kind = ? ORDER BY id DESC LIMIT 30
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return build_collection(tmp_path_factory.mktemp("template"), each=10).workspace.root


@pytest.fixture
def names(collection):
    """image_ids by path."""
    rows = collection.index.rows
    return dict(zip(rows["path"], rows["image_id"], strict=True))


@pytest.fixture
def two(collection):
    """The service where keys are needed, as Ann and as Bob see it; Ann governs."""
    engine = open_database(workspace=collection.workspace)
    keys = {name: add_key(engine, name, scopes) for name, scopes in (("ann", "search,admin"), ("bob", "search"))}
    with client(application(collection, required=True)) as opened:
        yield opened, *({"headers": {"Authorization": f"Bearer {keys[name]}"}} for name in ("ann", "bob"))


def well(answer, status=200):
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def shown(answer):
    return [result["id"] for result in answer["results"]]


def examples(*names):
    return [{"id": name} for name in names]


def searched(api, name, **who):
    """Search, and wait until it is in the history."""
    search = well(api.post("/search", json={"like": [{"id": name}], "k": 3}, **who))["search"]
    wait_for(lambda: any(found["id"] == search for found in well(api.get("/history", **who))["searches"]))
    return search


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def rows(collection, table):
    with Session(open_database(workspace=collection.workspace)) as session:
        return session.scalars(select(table)).all()


def on_disk(collection):
    return b"".join(file.read_bytes() for file in collection.workspace.outputs.glob("service.sqlite*"))


# --- recommendations


def test_a_recommendation_is_that_of_the_library(api, collection, names):
    liked, disliked = (names["cat/00.png"], names["cat/01.png"]), names["dog/50.png"]
    wish = {"like": examples(*liked), "dislike": examples(disliked), "k": 7, "unseen": False}
    for strategy in ("logistic", "mean", "best"):
        answer = well(api.post("/recommend", json=wish | {"strategy": strategy}))
        expected = collection.recommend(liked, disliked, k=7, strategy=strategy).frame()
        assert shown(answer) == expected["image_id"].tolist()
        np.testing.assert_allclose([r["score"] for r in answer["results"]], expected["score"], atol=1e-4)
        assert (answer["liked"], answer["disliked"], answer["strategy"], answer["ignored"]) == (2, 1, strategy, [])
    assert [r["rank"] for r in answer["results"]] == [*range(1, 8)]
    assert not {*liked, disliked} & set(shown(answer))


def test_files_are_examples_too(api, collection, names):
    file = ("files", ("x.png", (collection.folder / "cat/00.png").read_bytes()))
    answer = well(api.post("/recommend", files=[file], data={"query": '{"like": [{"file": 0}], "unseen": false}'}))
    expected = well(api.post("/recommend", json={"like": examples(names["cat/00.png"]), "unseen": False}))
    assert shown(answer) == shown(expected)
    alone = api.post("/recommend", files=[("files", ("new.png", png(photograph(90))))])
    assert len(shown(well(alone))) == 20


def test_unknown_and_contradictory_examples_are_ignored_and_said(api, names):
    wish = {
        "like": examples("gone", names["cat/00.png"], names["cat/01.png"]),
        "dislike": examples(names["cat/01.png"]),
    }
    answer = well(api.post("/recommend", json=wish))
    assert {(one["id"], one["reason"]) for one in answer["ignored"]} == {
        ("gone", "not in the collection"), (names["cat/01.png"], "liked and disliked")}  # fmt: skip
    assert (answer["liked"], answer["disliked"]) == (1, 0)


def test_a_feed_goes_by_what_was_liked_and_never_shows_anything_twice(api, names):
    for path in ("cat/00.png", "cat/01.png"):
        well(api.post("/feedback", json={"image": names[path], "kind": "like"}))
    well(api.post("/feedback", json={"image": names["dog/50.png"], "kind": "dislike"}))
    pages = [shown(well(api.post("/recommend", json={"k": 5}))) for _ in range(3)]
    every = [name for page in pages for name in page]
    assert len(every) == len(set(every)) == 15
    assert not {names["cat/00.png"], names["cat/01.png"], names["dog/50.png"]} & set(every)
    first = well(api.post("/recommend", json={"k": 5, "unseen": False}))
    assert (first["liked"], first["disliked"], shown(first)) == (2, 1, pages[0])
    assert len(shown(well(api.post("/recommend", json={"k": 5})))) == 2  # 17 in all
    last = well(api.post("/recommend", json={"k": 5}))
    assert (last["results"], "unseen" in last["reason"]) == ([], True)
    other = well(api.post("/recommend", json={"k": 5, "history": False, "unseen": False}))
    assert (other["strategy"], [r["score"] for r in other["results"]]) == ("diverse", [None] * 5)


def test_dislikes_alone_seen_ones_conditions_and_groups(api, names):
    disliked = {"dislike": examples(names["dog/50.png"]), "unseen": False}
    answer = well(api.post("/recommend", json=disliked | {"seen": [names["cat/00.png"]], "k": 4}))
    assert len(answer["results"]) == 4
    assert not {names["cat/00.png"], names["dog/50.png"]} & set(shown(answer))
    liked = {"like": examples(names["cat/00.png"]), "unseen": False}
    grouped = well(api.post("/recommend", json=liked | {"group_by": "label", "per_group": 2}))
    assert sorted(r["metadata"]["label"] for r in grouped["results"]) == ["cat", "cat", "dog", "dog"]
    dogs = well(api.post("/recommend", json=liked | {"where": "label == 'dog'"}))
    assert {r["metadata"]["label"] for r in dogs["results"]} == {"dog"}
    none = well(api.post("/recommend", json=liked | {"where": "label == 'bird'"}))
    assert (none["results"], bool(none["reason"])) == ([], True)


@pytest.mark.parametrize(
    ("wish", "status"),
    [({"k": 0}, 422), ({"strategy": "worst"}, 422), ({"mmr": 2}, 422), ({"typo": 1}, 422), ({"like": [{}]}, 422),
     ({"group_by": "nothing"}, 400), ({"group_by": "a b"}, 422), ({"where": "nothing == 1"}, 400),
     ({"like": [{"file": 0}]}, 400), ({"like": [{"id": "x"}] * 65}, 422), ({"per_group": 0}, 422),
     ({"like": [{"text": "red"}]}, 400)],
)  # fmt: skip
def test_wrong_wishes_are_answered_with_a_sentence(api, wish, status):
    answer = api.post("/recommend", json=wish)
    assert answer.status_code == status
    assert len(answer.json()["detail"]) > 10


# --- judgements


def test_the_last_judgement_of_an_image_counts_and_can_be_taken_back(api, names):
    cat, dog, other = names["cat/00.png"], names["dog/50.png"], names["cat/03.png"]
    said = [(cat, "like", None), (cat, "dislike", None), (dog, "like", None), (dog, "different", cat),
            (dog, "different", cat), (dog, "different", other), (dog, "click", None), (dog, "click", None)]  # fmt: skip
    every = [{"image": image, "kind": kind, "anchor": anchor} for image, kind, anchor in said]
    assert well(api.post("/feedback", json=every)) == {"kept": 8, "ignored": []}
    kept = well(api.get("/feedback"))["judgements"]
    assert [(one["image"], one["kind"], one["anchor"]) for one in kept] == [
        (dog, "click", None), (dog, "click", None), (dog, "different", other), (dog, "different", cat),
        (dog, "like", None), (cat, "dislike", None)]  # fmt: skip
    well(api.post("/feedback", json={"image": dog, "kind": "undo"}))
    left = [(one["image"], one["kind"]) for one in well(api.get("/feedback"))["judgements"]]
    assert left == [(dog, "click"), (dog, "click"), (cat, "dislike")]
    page = well(api.get("/feedback", params={"limit": 2}))
    rest = well(api.get("/feedback", params={"limit": 2, "before": page["next"]}))
    assert (len(page["judgements"]), len(rest["judgements"]), rest["next"]) == (2, 1, None)


def test_a_judgement_belongs_to_a_search_and_is_compared_with_its_query(api, names):
    search = searched(api, names["cat/00.png"])
    said = {"image": names["dog/51.png"], "kind": "different", "search": search}
    assert well(api.post("/feedback", json=said))["kept"] == 1
    (kept,) = well(api.get("/feedback"))["judgements"]
    assert (kept["anchor"], kept["search"]) == (names["cat/00.png"], search)
    api.delete(f"/history/{search}")
    (kept,) = well(api.get("/feedback"))["judgements"]
    assert (kept["anchor"], kept["search"]) == (names["cat/00.png"], None)


def test_images_that_are_gone_are_ignored_and_said(api, names):
    gone = names["cat/09.png"]
    well(api.post("/feedback", json={"image": gone, "kind": "like"}))
    well(api.post("/feedback", json={"image": names["cat/00.png"], "kind": "like"}))
    api.delete(f"/images/{gone}")
    said = [{"image": gone, "kind": "like"}, {"image": names["cat/01.png"], "kind": "like"}]
    answer = well(api.post("/feedback", json=said))
    assert (answer["kept"], [one["id"] for one in answer["ignored"]]) == (1, [gone])
    assert well(api.post("/recommend", json={}))["liked"] == 2
    assert well(api.post("/feedback", json={"image": gone, "kind": "undo"}))["kept"] == 1


@pytest.mark.parametrize(
    "said", [{}, [], {"image": "x"}, {"image": "x", "kind": "hate"}, {"image": "../x", "kind": "like"},
             {"image": "x", "kind": "like", "search": "zz"}, [{"image": "x", "kind": "like"}] * 101,
             {"image": "x", "kind": "like", "owner": "bob"}],
)  # fmt: skip
def test_wrong_feedback_is_refused(api, said):
    assert api.post("/feedback", json=said).status_code == 422


def test_what_was_said_is_a_table_of_the_collection(api, collection, names):
    assert collection.feedback().empty
    cat, dog = names["cat/00.png"], names["dog/50.png"]
    said = [{"image": cat, "kind": "like"}, {"image": dog, "kind": "different", "anchor": cat}]
    well(api.post("/feedback", json=said))
    frame = collection.feedback()
    assert frame.columns.tolist() == ["image_id", "kind", "anchor", "owner", "created", "path", "label"]
    assert frame[["image_id", "kind", "owner", "path", "label"]].to_numpy().tolist() == [
        [cat, "like", "local", "cat/00.png", "cat"], [dog, "different", "local", "dog/50.png", "dog"]]  # fmt: skip
    assert frame["anchor"].isna().tolist() == [True, False] and frame["anchor"][1] == cat
    well(api.post("/feedback", json={"image": cat, "kind": "undo"}))
    assert collection.feedback()["image_id"].tolist() == [dog]


# --- owners and privacy


def test_two_owners_never_see_each_others(two, names):
    api, ann, bob = two
    search = searched(api, names["cat/00.png"], **ann)
    well(api.post("/feedback", json={"image": names["cat/01.png"], "kind": "like"}, **ann))
    saved = well(api.post("/saved", json={"query": {"like": examples(names["cat/00.png"])}}, **ann), 201)
    well(api.post("/recommend", json={"k": 3}, **ann))
    assert well(api.get("/history", **bob))["searches"] == []
    assert well(api.get("/feedback", **bob))["judgements"] == []
    assert well(api.get("/saved", **bob))["saved"] == []
    feed = well(api.post("/recommend", json={"k": 20}, **bob))
    assert (feed["liked"], len(feed["results"])) == (0, 20)  # nothing is hidden that only Ann has seen
    said = {"image": names["cat/02.png"], "kind": "like", "search": search}
    assert api.post("/feedback", json=said, **bob).status_code == 404
    assert api.delete(f"/saved/{saved['id']}", **bob).status_code == 404
    assert api.get("/stats", **bob).status_code == 403
    for path in ("/history", "/feedback"):
        assert api.delete(path, **bob).status_code == 204
    assert len(well(api.get("/feedback", **ann))["judgements"]) == len(well(api.get("/saved", **ann))["saved"]) == 1
    assert len(well(api.get("/history", **ann))["searches"]) == 1
    assert api.get("/feedback").status_code == 401


def test_what_is_deleted_is_gone_from_the_file(api, collection, names):
    search = searched(api, names["cat/00.png"])
    well(api.post("/feedback", json={"image": names["cat/01.png"], "kind": "click", "search": search}))
    well(api.post("/feedback", json={"image": names["cat/02.png"], "kind": "like", "search": search}))
    feed = shown(well(api.post("/recommend", json={"k": 3})))
    wait_for(lambda: rows(collection, FeedRow))
    assert search.encode() in on_disk(collection)
    api.delete("/history")
    assert search.encode() not in on_disk(collection)
    assert rows(collection, FeedRow) == [] == rows(collection, SearchRow)
    (left,) = rows(collection, JudgementRow)
    assert (left.kind, left.search) == ("like", None)
    assert shown(well(api.post("/recommend", json={"k": 3}))) == feed
    mark = "a title of mine"
    saved = well(api.post("/saved", json={"query": {"like": examples(names["cat/00.png"])}, "title": mark}), 201)
    assert mark.encode() in on_disk(collection)
    well(api.delete(f"/saved/{saved['id']}"), 204)
    assert mark.encode() not in on_disk(collection)
    well(api.delete("/feedback"), 204)
    assert rows(collection, JudgementRow) == []


def test_nothing_is_kept_when_history_is_off(api, collection, names):
    assert well(api.get("/history"))["keep"] is True
    assert well(api.put("/history", json={"keep": False})) == {"keep": False}
    assert well(api.get("/history"))["keep"] is False
    answer = well(api.post("/search", json={"like": examples(names["cat/00.png"])}))
    assert answer["search"] is None
    said = [{"image": names["cat/01.png"], "kind": kind} for kind in ("like", "click")]
    assert well(api.post("/feedback", json=said)) == {"kept": 0, "ignored": []}
    wish = {"like": examples(names["cat/00.png"]), "k": 4}
    assert shown(well(api.post("/recommend", json=wish))) == shown(well(api.post("/recommend", json=wish)))
    time.sleep(0.2)
    assert [rows(collection, table) for table in (SearchRow, JudgementRow, FeedRow)] == [[], [], []]
    well(api.put("/history", json={"keep": True}))
    assert searched(api, names["cat/00.png"]) is not None
    for wrong in ({}, {"keep": "perhaps"}, {"keep": True, "for": "bob"}):
        assert api.put("/history", json=wrong).status_code == 422


def test_another_process_that_turns_history_off_is_heeded(api, collection, names):
    with client(application(collection)) as other:
        well(other.put("/history", json={"keep": False}))
        well(api.post("/search", json={"like": examples(names["cat/00.png"])}))
        assert well(api.post("/feedback", json={"image": names["cat/01.png"], "kind": "like"}))["kept"] == 0
        time.sleep(0.3)
        assert rows(collection, SearchRow) == []


def test_with_a_key_goes_all_that_its_owner_kept(two, collection, names):
    api, ann, bob = two
    for who in (ann, bob):
        search = searched(api, names["cat/00.png"], **who)
        well(api.post("/feedback", json={"image": names["cat/01.png"], "kind": "like", "search": search}, **who))
        well(api.post("/saved", json={"query": {"like": examples(names["cat/00.png"])}}, **who), 201)
        well(api.post("/recommend", json={"k": 2}, **who))
        well(api.post("/recommend", json={"k": 2}, **who))
        well(api.put("/history", json={"keep": True}, **who))
    remove_key(open_database(workspace=collection.workspace), "bob")
    for table in OWNER_TABLES:
        assert {row.owner for row in rows(collection, table)} == {"ann"}


# --- saved searches and statistics


def test_searches_are_saved_and_run_again(api, names):
    query = {"like": examples(names["cat/00.png"]), "where": "label == 'cat'", "k": 4}
    saved = well(api.post("/saved", json={"query": query, "title": "my cats"}), 201)
    unnamed = well(api.post("/saved", json={"query": query}), 201)
    listed = well(api.get("/saved"))["saved"]
    assert [(one["id"], one["title"]) for one in listed] == [(unnamed["id"], "1 image"), (saved["id"], "my cats")]
    assert len(well(api.post("/search", json=listed[0]["query"]))["results"]) == 4
    assert api.post("/saved", json={"query": {"like": [{"file": 0}]}}).status_code == 400
    assert api.post("/saved", json={"query": {"typo": 1}}).status_code == 422
    well(api.delete(f"/saved/{saved['id']}"), 204)
    assert api.delete(f"/saved/{saved['id']}").status_code == 404


def test_statistics_against_a_naive_count(api, collection):
    rng, moment = np.random.default_rng(0), now()
    searches = [{
        "name": f"{number:032x}", "owner": f"owner {number % 7}", "collection": "photos", "query": {}, "shown": [],
        "title": f"'query {rng.integers(4)}'", "created": moment - timedelta(days=int(rng.integers(40))),
        "seconds": float(rng.random()), "best": None if number % 10 == 0 else float(rng.random()),
    } for number in range(300)]  # fmt: skip
    judged = [{
        "owner": searches[n]["owner"], "collection": "photos", "image_id": "x", "created": searches[n]["created"],
        "kind": str(rng.choice(["like", "click", "dislike"])), "search": searches[n]["name"],
    } for n in rng.integers(300, size=150)]  # fmt: skip
    other = {**searches[0], "name": "f" * 32, "collection": "another"}
    with writing(open_database(workspace=collection.workspace)) as session:
        session.execute(insert(SearchRow), [*searches, other])
        session.execute(insert(JudgementRow), judged)
    stats = well(api.get("/stats", params={"days": 30}))
    recent = [s for s in searches if s["created"] >= moment - timedelta(days=30) + timedelta(seconds=60)]
    followed = {j["search"] for j in judged if j["kind"] != "dislike"}
    assert (stats["days"], stats["searches"], stats["owners"]) == (30, len(recent), 7)
    assert stats["click_through"] == pytest.approx(sum(s["name"] in followed for s in recent) / len(recent))
    days = {str(s["created"].date()): 0 for s in recent}
    for s in recent:
        days[str(s["created"].date())] += 1
    assert {day["day"]: day["searches"] for day in stats["per_day"]} == days
    counts = {title: sum(s["title"] == title for s in recent) for title in {s["title"] for s in recent}}
    assert {one["title"]: one["count"] for one in stats["top"]} == counts
    assert [one["count"] for one in stats["top"]] == sorted(counts.values(), reverse=True)
    assert stats["unanswered"] == sum(s["best"] is None for s in recent)
    seconds = [s["seconds"] for s in recent]
    assert stats["seconds"] == pytest.approx({f"p{p}": np.percentile(seconds, p) for p in (50, 90, 95, 99)})
    empty = well(api.get("/stats", params={"days": 1}))
    assert empty["searches"] >= 0
    assert api.get("/stats", params={"days": 0}).status_code == 422


def test_an_unused_collection_has_statistics_too(api):
    stats = well(api.get("/stats"))
    assert (stats["searches"], stats["click_through"], stats["per_day"], stats["seconds"]) == (0, None, [], {})


def test_a_million_judgements_slow_nobody_down(api, collection, names):
    engine = open_database(workspace=collection.workspace)
    with writing(engine) as session:
        session.execute(text(MILLION))
    plans = []
    for kind in ("like", "dislike"):
        with engine.connect() as connection:
            plans += [row[-1] for row in connection.exec_driver_sql(PLAN, (kind,))]
    assert all("judgements_by_kind" in plan for plan in plans), plans
    well(api.post("/feedback", json={"image": names["cat/00.png"], "kind": "like"}))
    assert well(api.post("/recommend", json={"k": 3}))["liked"] == 1
    assert len(well(api.get("/feedback"))["judgements"]) == 100


def test_uploads_are_recommended_and_liked_like_any_other(api, names, tmp_path):
    (uploaded,) = [image["id"] for image in well(api.post("/upload", files=new_images(tmp_path, 90)), 201)["images"]]
    assert uploaded in shown(well(api.post("/recommend", json={"like": examples(names["cat/00.png"]), "k": 50})))
    well(api.post("/feedback", json={"image": uploaded, "kind": "like"}))
    answer = well(api.post("/recommend", json={"unseen": False}))
    assert answer["liked"] == 1 and uploaded not in shown(answer)


def test_on_postgresql_it_is_the_same(collection, names, monkeypatch):
    today = datetime.now(UTC)  # in the zone of the session it is another day
    monkeypatch.setenv("PGTZ", "Pacific/Kiritimati" if today.hour >= 10 else "Etc/GMT+12")
    with postgres.running() as url:
        engine = open_database(url.replace("postgresql://", "postgresql+psycopg://"), collection.workspace)
        with client(create_app(collection, engine)) as api:
            search = searched(api, names["cat/00.png"])
            said = [{"image": names["cat/01.png"], "kind": "like", "search": search}]
            said += [{"image": names["dog/50.png"], "kind": kind} for kind in ("different", "dislike", "undo", "click")]
            assert well(api.post("/feedback", json=said))["kept"] == 5
            kinds = [one["kind"] for one in well(api.get("/feedback"))["judgements"]]
            assert kinds == ["click", "like"]
            feeds = [shown(well(api.post("/recommend", json={"k": 5}))) for _ in range(2)]
            assert not set(feeds[0]) & set(feeds[1])
            well(api.post("/saved", json={"query": {"words": "cat"}, "title": "cats"}), 201)
            stats = well(api.get("/stats"))
            assert (stats["searches"], stats["click_through"], stats["feedback"]) == (1, 1, {"like": 1, "click": 1})
            assert stats["per_day"] == [{"day": str(today.date()), "searches": 1}]
            assert api.delete("/history").status_code == api.delete("/feedback").status_code == 204
            assert well(api.get("/feedback"))["judgements"] == well(api.get("/history"))["searches"] == []
            well(api.put("/history", json={"keep": False}))
            assert well(api.post("/feedback", json=said[2]))["kept"] == 0
        engine.dispose()


# --- words in the metadata


def test_words_find_what_is_said_of_images_and_are_mixed_with_what_looks_alike(api, collection, names):
    only = well(api.post("/search", json={"words": "Sale dog", "k": 5}))
    assert [r["score"] for r in only["results"]] == [None] * 5
    assert {r["metadata"]["label"] for r in only["results"]} == {"dog"}  # where both words are, the odd ones
    assert all("sale" in r["metadata"]["tags"] for r in only["results"])
    assert shown(well(api.post("/search", json={"words": "57 png"})))[0] == names["dog/57.png"]
    assert well(api.post("/search", json={"words": "unheard"}))["results"] == []
    query = {"like": examples(names["cat/00.png"])}
    plain = shown(well(api.post("/search", json=query)))
    mixed = well(api.post("/search", json=query | {"words": "57"}))
    assert shown(mixed)[0] in (plain[0], names["dog/57.png"])
    assert shown(mixed).index(names["dog/57.png"]) < plain.index(names["dog/57.png"])
    assert sorted(shown(mixed)) == sorted(plain)
    scores = {name: r["score"] for r in well(api.post("/search", json=query))["results"] for name in [r["id"]]}
    assert {r["id"]: r["score"] for r in mixed["results"]} == pytest.approx(scores, abs=1e-5)
    fewer = well(api.post("/search", json=query | {"words": "57", "where": "label == 'cat'"}))
    assert {r["metadata"]["label"] for r in fewer["results"]} == {"cat"}
    for options in ({"mmr": 0.5}, {"distinct": 0.999}, {}):
        asked = query | options | {"words": "sale"}
        pages = [shown(well(api.post("/search", json=asked | {"k": 4, "offset": offset}))) for offset in (0, 4)]
        assert pages[0] + pages[1] == shown(well(api.post("/search", json=asked | {"k": 8})))
    assert api.post("/search", json={"words": "!!"}).status_code == 400
    assert api.post("/search", json={"words": ""}).status_code == 422


def test_words_follow_what_is_changed_added_and_removed(api, names, tmp_path):
    def found(words):
        return shown(well(api.post("/search", json={"words": words})))

    assert found("tiger") == []
    api.patch(f"/images/{names['cat/02.png']}", json={"label": "tiger"})
    assert found("tiger") == [names["cat/02.png"]]
    said = {"metadata": '{"tags": ["big tiger"]}'}
    (uploaded,) = [i["id"] for i in well(api.post("/upload", files=new_images(tmp_path, 90), data=said), 201)["images"]]
    assert set(found("tiger")) == {names["cat/02.png"], uploaded}
    api.patch(f"/images/{uploaded}", json={"tags": ["small"]})
    assert (found("tiger"), found("small")) == ([names["cat/02.png"]], [uploaded])
    api.delete(f"/images/{names['cat/02.png']}")
    assert found("tiger") == []
    history = well(api.get("/history"))["searches"]
    assert not history or history[0]["title"].startswith('"')


# --- answers that know when to stop


def test_sure_answers_end_where_too_few_would_be_right(api, collection, names):
    query = {"like": examples(names["cat/00.png"]), "k": 19}
    plain = well(api.post("/search", json=query))
    assert {r["probability"] for r in plain["results"]} == {None}
    learned = Collection.open("photos", collection.folder, collection.workspace).calibrate()
    sure = well(api.post("/search", json=query | {"sure": 0.55}))
    least = learned.minimum(sure=0.55)
    assert shown(sure) == [r["id"] for r in plain["results"] if r["score"] >= least]
    scores = np.array([r["score"] for r in sure["results"]])
    np.testing.assert_allclose([r["probability"] for r in sure["results"]], learned.probability(scores), atol=1e-6)
    assert all(r["probability"] is not None for r in well(api.post("/search", json=query))["results"])
    by_price = well(api.post("/search", json=query | {"sure": 0.55, "sort": "price"}))
    assert sorted(shown(by_price)) == sorted(shown(sure))
    history = well(api.get("/history"))["searches"]
    assert not history or all(one["query"].get("minimum") is None for one in history)


def test_nothing_here_is_like_that_is_an_answer(api, names):
    query = {"like": examples(names["cat/00.png"])}
    answer = well(api.post("/search", json=query | {"minimum_probability": 1}))
    if answer["results"]:
        assert all(r["probability"] == 1 for r in answer["results"])
    else:
        assert "Nothing here is like that" in answer["reason"]
    none = well(api.post("/search", json=query | {"sure": 0.5, "where": "label == 'bird'"}))
    assert (none["results"], bool(none["reason"])) == ([], True)
    assert well(api.post("/search", json=query))["reason"] is None


@pytest.mark.parametrize(
    ("query", "status"),
    [({"sure": 0.9}, 400), ({"like": [{"text": "red"}], "sure": 0.9}, 400), ({"sure": 1.1}, 422),
     ({"words": "cat", "sure": 0.9}, 400), ({"minimum_probability": -0.1}, 422)],
)  # fmt: skip
def test_only_images_are_known_well_enough_to_be_sure(api, query, status):
    assert api.post("/search", json=query).status_code == status
