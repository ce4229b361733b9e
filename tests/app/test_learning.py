"""A network learns from judgements or refuses, can go back, and is killed at any moment without harm."""

import os
import shutil
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from makers.commands import rectrio, well
from makers.learned import build_learner, features, generation, judge, says
from makers.networks import pretrained
from makers.processes import Child
from makers.served import build_collection, client, new_images

from rectrio_lib.app.application import create_app
from rectrio_lib.app.learning import head as heads
from rectrio_lib.app.learning import retrain as module
from rectrio_lib.app.learning import triplets
from rectrio_lib.app.learning.features import frozen_part, head_of
from rectrio_lib.app.learning.retrain import retrain, undo
from rectrio_lib.app.records.database import open_database
from rectrio_lib.app.web.access import add_key
from rectrio_lib.core.errors import ArgumentError, StoreInUseError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.embeddings.writer import writing
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder
from rectrio_lib.search.collection import Collection

pytestmark = pytest.mark.slow

FEW = heads.STEPS // 4
KILLS = int(os.environ.get("RECTRIO_KILLS", "1"))  # more to measure
RETRAIN = """
import sys
from functools import partial
from pathlib import Path
from rectrio_lib.app.generation import Generation
from rectrio_lib.app.learning import head
from rectrio_lib.app.learning.retrain import retrain
from rectrio_lib.app.records.database import open_database
from rectrio_lib.app.records.judgements import Judgements
from rectrio_lib.app.web.access import add_key
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.search.collection import Collection
workspace = Workspace(sys.argv[1])
engine = open_database(workspace=workspace)
now = Generation.of(Collection.open("made-up", workspace=workspace), engine)
now.encoder
head.train = partial(head.train, steps=int(sys.argv[2]))
Path(sys.argv[1], "ready").touch()
retrain(now, engine)
"""


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Learn a quarter as long as usual, which is enough here."""
    monkeypatch.setattr(heads, "train", partial(heads.train, steps=FEW))


def reopened(collection):
    return Collection.open(collection.name, collection.folder, collection.workspace)


def on_disk(collection):
    home = collection.workspace.outputs
    files = [file for kind in ("indexes", "encoders") for file in (home / kind).rglob("*.*") if file.is_file()]
    return {file: file.read_bytes() for file in files if file.suffix != ".lock"}


def of_one_colour(vectors):
    """Share of the ten nearest that have the colour of the image."""
    _, _, colours = features(len(vectors))
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -1)
    return (colours[np.argsort(-scores, axis=1)[:, :10]] == colours[:, None]).mean()


# --- triplets


def table(*rows):
    return pd.DataFrame(rows, columns=["owner", "kind", "image", "anchor"])


def test_triplets_are_of_what_one_owner_said():
    frame = table(("ann", "like", 1, -1), ("ann", "like", 2, -1), ("ann", "dislike", 3, -1), ("ann", "like", 4, 9),
                  ("ann", "different", 5, 9), ("bob", "like", 6, 7), ("bob", "different", 8, 7))  # fmt: skip
    made = {tuple(map(int, triplet)) for triplet in triplets.make(frame, 20)}
    anchors = {1: {2, 4}, 2: {1, 4}}
    naive = {(anchor, image, 3) for image, those in anchors.items() for anchor in those}
    naive |= {(9, 4, 3), (9, 4, 5), (7, 6, 8)}
    assert made == naive


def test_who_dislikes_nothing_is_compared_with_images_at_random():
    made = triplets.make(table(("ann", "like", 1, -1), ("ann", "like", 2, -1)), 50)
    assert made.dtype == np.int64 and {tuple(pair) for pair in made[:, :2]} == {(1, 2), (2, 1)}
    assert (made[:, 2] != 1).all() and (made[:, 2] != 2).all()
    assert len(triplets.make(table(), 50)) == len(triplets.make(table(("ann", "dislike", 1, -1)), 50)) == 0


def test_what_is_held_out_is_not_learned_from():
    few = table(*((f"owner {i % 3}", "like", i, -1) for i in range(40)))
    many = table(*((f"owner {i % 12}", "like", i, -1) for i in range(48)))
    for frame, key in ((few, "image"), (many, "owner")):
        learned, held = triplets.divide(frame)
        assert len(learned) + len(held) == len(frame)
        assert not set(learned[key]) & set(held[key])
        assert held[key].nunique() == pytest.approx(frame[key].nunique() / 4, abs=1)


# --- heads


def test_a_head_of_a_bare_backbone_changes_nothing_at_first():
    vectors, _, _ = features(20)
    np.testing.assert_allclose(heads.vectors_of(head_of(pretrained()), vectors), vectors, atol=1e-6)
    encoder = pretrained(dim=8, hidden=4)
    own = (heads.vectors_of(head, vectors) for head in (head_of(encoder), encoder.head))
    np.testing.assert_allclose(*own, atol=1e-6)
    assert fingerprint(frozen_part(encoder)) == fingerprint(frozen_part(frozen_part(encoder)))


def test_a_trained_head_tells_triplets_apart_and_the_old_one_stays():
    vectors, classes, colours = features()
    rng, found = np.random.default_rng(0), []
    while len(found) < 2000:
        a, p, n = rng.integers(300, size=3)
        if a != p and colours[a] == colours[p] != colours[n]:
            found.append((a, p, n))
    made, old = np.array(found), head_of(pretrained())
    before = {name: value.clone() for name, value in old.state_dict().items()}
    new = heads.train(old, vectors, made, np.arange(300), classes[:300], steps=100)
    assert all(torch.equal(before[name], value) for name, value in old.state_dict().items())
    naive = [vectors[a] @ vectors[p] > vectors[a] @ vectors[n] for a, p, n in made[:50]]
    assert heads.on_triplets(vectors, made[:50]).scores["triplets"].tolist() == naive
    better = heads.on_triplets(heads.vectors_of(new, vectors), made).scores["triplets"].mean()
    assert better > heads.on_triplets(vectors, made).scores["triplets"].mean() + 0.05


def test_a_head_between_two_is_their_mean():
    old, new = head_of(pretrained()), head_of(pretrained())
    with torch.no_grad():
        new.project[0].weight.mul_(3)
    torch.testing.assert_close(heads.between(old, new, 0.5).project[0].weight, 2 * torch.eye(512))
    torch.testing.assert_close(heads.between(old, new, 0.0).state_dict(), old.state_dict())


# --- retraining


def test_a_taste_is_learned_the_new_index_serves_and_can_be_undone(tmp_path):
    collection = build_learner(tmp_path)
    engine, old = judge(collection), collection.index.vectors_at(np.arange(600))
    verdict = retrain(generation(collection), engine)
    assert verdict.accepted, verdict
    assert verdict.held_out.low > 0 and verdict.held_out.after > verdict.held_out.before
    assert verdict.held_out.low <= verdict.held_out.after - verdict.held_out.before <= verdict.held_out.high
    assert verdict.labels.high >= 0
    assert (verdict.judgements, verdict.encoder, verdict.notes) == (480, "made-up-learned-1", [])
    new = reopened(collection)
    assert new.encoder_name == "made-up-learned-1"
    encoder = load_encoder(new.encoder_name, collection.workspace)
    assert new.index.encoder_hash == fingerprint(encoder) == fingerprint(new.encoder)
    vectors = new.index.vectors_at(np.arange(600))
    np.testing.assert_allclose(vectors, heads.vectors_of(encoder.head, old), atol=2e-3)
    assert of_one_colour(vectors) > of_one_colour(old) + 0.1
    assert undo(generation(reopened(collection))) == "backbone"
    back = reopened(collection)
    assert (back.encoder_name, back.index.encoder_hash) == ("backbone", collection.index.encoder_hash)
    np.testing.assert_allclose(back.index.vectors_at(np.arange(600)), old, atol=2e-3)
    assert back.index.rows.drop(columns=["created"])["label"].tolist() == collection.index.rows["label"].tolist()


def test_contradictory_judgements_are_refused_with_figures_and_nothing_changes(tmp_path):
    collection = build_learner(tmp_path)
    engine = judge(collection, taste=False)
    before = on_disk(collection)
    verdict = retrain(generation(collection), engine)
    assert not verdict.accepted and verdict.encoder == "backbone"
    assert verdict.held_out.low <= 0 and 0 < verdict.held_out.after < 1
    assert on_disk(collection) == before


@pytest.mark.parametrize("owners", [0, 1])
def test_too_few_judgements_are_refused(tmp_path, owners):
    collection = build_learner(tmp_path)
    verdict = retrain(generation(collection), judge(collection, owners, 2))
    assert not verdict.accepted and verdict.held_out is None
    assert str(module.FEWEST) in verdict.reason


def test_a_collection_without_labels_learns_too(tmp_path):
    collection = build_learner(tmp_path, labelled=False)
    verdict = retrain(generation(collection), judge(collection))
    assert verdict.accepted and verdict.labels is None


def test_features_that_were_not_kept_are_computed_and_that_is_said(tmp_path, monkeypatch):
    collection = build_collection(tmp_path, each=20)
    torch.manual_seed(0)
    save_encoder(pretrained(dim=16), "headed", workspace=collection.workspace)
    collection = Collection.build(collection.folder, "headed", "photos", "flat", workspace=collection.workspace)
    engine, rows = open_database(workspace=collection.workspace), collection.index.rows
    for number in range(12):
        label = ("cat", "dog")[number % 2]
        own, other = (rows.loc[rows["label"].eq(label) == same, "image_id"].tolist() for same in (True, False))
        said = [(name, "like") for name in own[:8]] + [(name, "dislike") for name in other[:8]]
        rows_said = [{"image_id": name, "kind": kind, "anchor": None, "search": None} for name, kind in said]
        says(engine, collection, f"owner {number}", rows_said)
    first = retrain(generation(collection), engine)
    assert any("40" in note for note in first.notes)
    second = retrain(generation(reopened(collection)), engine)
    assert second.notes == []


def test_an_encoder_without_a_backbone_cannot_learn(tmp_path):
    collection = build_collection(tmp_path)
    with pytest.raises(ArgumentError):
        retrain(generation(collection), open_database(workspace=collection.workspace))


def test_one_process_at_a_time_changes_a_collection(tmp_path):
    collection = build_learner(tmp_path)
    engine, now = judge(collection), generation(collection)
    with writing(collection.workspace.path("indexes", "made-up")), pytest.raises(StoreInUseError):
        retrain(now, engine)


# --- by the API and the command line


def test_the_service_retrains_serves_and_goes_back(tmp_path):
    collection = build_learner(tmp_path)
    engine = judge(collection)
    with client(create_app(collection, engine)) as api:
        state = api.get("/retrain").json()
        assert (state["running"], state["can_undo"], state["last"]) == (False, False, None)
        assert api.delete("/retrain").status_code == 400
        before = [r["id"] for r in api.post("/search", json={"like": [{"id": "p0"}]}).json()["results"]]
        verdict = api.post("/retrain").json()
        assert verdict["accepted"] and verdict["held_out"]["low"] > 0
        state = api.get("/retrain").json()
        assert (state["encoder"], state["can_undo"], state["last"]) == (verdict["encoder"], True, verdict)
        after = [r["id"] for r in api.post("/search", json={"like": [{"id": "p0"}]}).json()["results"]]
        assert after != before
        assert api.delete("/retrain").json()["encoder"] == "backbone"
        again = [r["id"] for r in api.post("/search", json={"like": [{"id": "p0"}]}).json()["results"]]
        assert again == before


def test_what_scores_mean_is_learned_again_for_the_new_encoder(tmp_path):
    built = build_learner(tmp_path)
    built.index.rows["label"] = built.index.rows["hue"].where(np.arange(600) % 7 > 0, "other")  # some answers are wrong
    built.index.save("made-up", built.workspace)
    collection = reopened(built)
    engine = judge(collection)
    with client(create_app(collection, engine)) as api:
        assert api.get("/about").json()["calibrated"] is False
        reopened(collection).calibrate()  # as `rectrio calibrate` does, in another process
        assert api.get("/about").json()["calibrated"] is True
        before = reopened(collection).calibration
        assert api.post("/retrain").json()["accepted"]
        assert api.get("/about").json()["calibrated"] is True
        after = reopened(collection).calibration
        assert after.encoder_hash == reopened(collection).index.encoder_hash != before.encoder_hash
        sure = api.post("/search", json={"like": [{"id": "p0"}], "minimum_probability": 0.5}).json()["results"]
        assert sure and all(result["probability"] >= 0.5 - 1e-6 for result in sure)


def test_only_who_governs_may_retrain(tmp_path):
    collection = build_learner(tmp_path, count=50)
    engine = open_database(workspace=collection.workspace)
    key = {"Authorization": f"Bearer {add_key(engine, 'bob', 'search,write')}"}
    with client(create_app(collection, engine, required=True)) as api:
        for call in (api.get, api.post, api.delete):
            assert call("/retrain", headers=key).status_code == 403
            assert call("/retrain").status_code == 401


def test_uploads_are_found_after_a_retraining(tmp_path):
    collection = build_collection(tmp_path, each=20)
    save_encoder(pretrained(), "bare", workspace=collection.workspace)
    collection = Collection.build(collection.folder, "bare", "photos", "flat", workspace=collection.workspace)
    names, labels = (collection.index.rows[name].tolist() for name in ("image_id", "label"))
    with client(create_app(collection, open_database(workspace=collection.workspace))) as api:
        uploaded = api.post("/upload", files=new_images(tmp_path / "new", 90)).json()["images"][0]["id"]
        now = api.app.state.service.now
        kept = np.flatnonzero(~now.live.current.removed)
        encoder, vectors = load_encoder("bare", collection.workspace), now.live.current.vectors_at(kept)
        save_encoder(encoder, "again", workspace=collection.workspace)
        module._replace_index(now, kept, vectors, encoder, "again", {module.BEFORE: "bare"})
        deadline = time.monotonic() + 20
        while len(api.app.state.service.now.live.current.tail) and time.monotonic() < deadline:
            time.sleep(0.05)
        found = api.post("/search", json={"like": [{"id": names[0]}], "k": 60}).json()["results"]
        assert uploaded in [result["id"] for result in found] and len(labels) == 40


def test_the_command_says_before_after_and_verdict(tmp_path, monkeypatch):
    collection = build_learner(tmp_path)
    judge(collection)
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(collection.workspace.outputs))
    lines = dict(line.split(maxsplit=1) for line in well("retrain", "made-up").splitlines())
    assert lines["Encoder"] == "made-up-learned-1" and "->" in lines["Judgements"] and "->" in lines["Labels"]
    assert well("retrain", "made-up", "--undo").split() == ["Encoder", "backbone"]
    refused = rectrio("retrain", "made-up", "--undo")
    assert (refused.exit_code, refused.stdout) == (1, "")


# --- killed


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    collection = build_learner(tmp_path_factory.mktemp("judged"))
    judge(collection)
    return collection.workspace.root


def test_killed_at_any_moment_the_old_encoder_or_the_new_one_serves(judged, tmp_path):
    shutil.copytree(judged, tmp_path / "whole")
    whole, begun = Collection.open("made-up", workspace=Workspace(tmp_path / "whole")), time.monotonic()
    assert retrain(generation(whole), open_database(workspace=whole.workspace)).accepted
    length, moments, states = time.monotonic() - begun, np.random.default_rng().random(KILLS), []
    for number, share in enumerate(moments):
        root = tmp_path / str(number)
        shutil.copytree(judged, root)
        process = Child(RETRAIN, root, FEW)
        process.wait_until((root / "ready").exists)
        time.sleep(share * length)
        process.kill()
        collection = Collection.open("made-up", workspace=Workspace(root))
        encoder = load_encoder(collection.encoder_name, Workspace(root))
        assert collection.index.encoder_hash == fingerprint(encoder)
        assert len(collection.search("p0", k=599).frame()) == 599
        assert collection.encoder_name in ("backbone", "made-up-learned-1")
        states.append(collection.encoder_name)
        now = generation(collection)
        assert now.live.current.count() == 600
        if collection.encoder_name == "backbone":  # and the next try is not in its way
            assert retrain(now, open_database(workspace=collection.workspace)).accepted
    assert set(states) <= {"backbone", "made-up-learned-1"}


def test_stopped_between_any_two_steps_the_old_encoder_serves(tmp_path, monkeypatch):
    collection = build_learner(tmp_path)
    engine = judge(collection)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    for step in ("features_of", "save_encoder", "_replace_index"):
        with monkeypatch.context() as patch:
            patch.setattr(module, step, stop)
            with pytest.raises(KeyboardInterrupt):
                retrain(generation(reopened(collection)), engine)
        assert reopened(collection).encoder_name == "backbone"
    assert retrain(generation(reopened(collection)), engine).accepted
