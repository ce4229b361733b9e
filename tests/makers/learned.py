"""A collection whose encoder can learn: made-up features with a strong class and a faint colour, and judgements."""

from secrets import token_hex

import numpy as np
import pandas as pd

from makers.networks import pretrained
from rectrio_lib.app.generation import Generation
from rectrio_lib.app.records.database import KeyRow, open_database, writing
from rectrio_lib.app.records.judgements import Judgements
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.registry import fingerprint, save_encoder
from rectrio_lib.index.index import Index
from rectrio_lib.search.collection import Collection

COUNT, CLASSES, COLOURS, DIM = 600, 6, 4, 512


def features(count=COUNT, seed=0):
    """Unit vectors float32 (N, 512), their classes and their colours (N,), which are faint."""
    rng = np.random.default_rng(seed)
    classes, colours = rng.integers(CLASSES, size=count), rng.integers(COLOURS, size=count)
    hidden = np.concatenate([np.eye(CLASSES)[classes], 0.35 * np.eye(COLOURS)[colours]], axis=1)
    hidden = np.concatenate([hidden, 0.2 * rng.normal(size=(count, 20))], axis=1) + 0.05 * rng.normal(size=(count, 30))
    vectors = hidden @ np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, 30)))[0].T
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), classes, colours


def build_learner(root, labelled=True, count=COUNT):
    """Save an encoder and an index of made-up vectors of it."""
    workspace, encoder = Workspace(root), pretrained()
    save_encoder(encoder, "backbone", workspace=workspace)
    vectors, classes, colours = features(count)
    rows = pd.DataFrame({"image_id": [f"p{i}" for i in range(count)], "path": [f"{i}.png" for i in range(count)]})
    rows["label"] = [f"class {c}" if labelled else "" for c in classes]
    rows["hue"] = [f"hue {c}" for c in colours]
    made_from = {"encoder": "backbone", "store": "", "dataset": "", "folder": "", "random_weights": False}
    index = Index.build("flat", vectors, rows, fingerprint(encoder), made_from=made_from)
    index.save("made-up", workspace)
    return Collection.open("made-up", workspace=workspace)


def judge(collection, owners=24, each=10, taste=True, seed=0):
    """Let owners like one colour and dislike the others; without taste they like at random."""
    engine, rng = open_database(workspace=collection.workspace), np.random.default_rng(seed)
    hues = collection.index.rows["hue"].to_numpy()
    for number in range(owners):
        own = hues == f"hue {number % COLOURS}" if taste else rng.random(len(hues)) < 0.5
        said = [(rng.choice(np.flatnonzero(own), each, replace=False), "like")]
        said += [(rng.choice(np.flatnonzero(~own), each, replace=False), "dislike")]
        rows = [
            {"image_id": f"p{image}", "kind": kind, "anchor": None, "search": None}
            for images, kind in said for image in images
        ]  # fmt: skip
        says(engine, collection, f"owner {number}", rows)
    return engine


def says(engine, collection, owner, rows):
    """Let somebody who has a key judge images."""
    with writing(engine) as session:
        session.add(KeyRow(name=owner, secret_hash=token_hex()))
    assert Judgements(engine, collection.name).add(owner, rows) == len(rows)


def generation(collection):
    return Generation.of(collection, open_database(workspace=collection.workspace))
