"""Everything that an older version saved opens, with the vectors and results that it gave."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from rectrio_lib.core.workspace import Workspace
from rectrio_lib.embeddings.store import open_store
from rectrio_lib.encoders.registry import load_encoder
from rectrio_lib.index.index import Index

SAVED = Path(__file__).parent / "compat"
EXPECTED = json.loads((SAVED / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def copied(tmp_path, monkeypatch):
    shutil.copytree(SAVED, tmp_path / "saved")
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(tmp_path / "saved"))


def images(channels, size):
    numbers = torch.arange(3 * channels * size * size) * 7919 // 13 % 251
    return numbers.to(torch.uint8).view(3, channels, size, size)


@pytest.mark.parametrize("name", EXPECTED["encoders"])
def test_an_encoder_gives_the_same_vectors(name):
    encoder = load_encoder(name)
    channels, size = encoder.preprocessing["channels"], encoder.preprocessing["size"]
    np.testing.assert_allclose(encoder.encode(images(channels, size)), EXPECTED["encoders"][name], atol=1e-5)


def test_a_dual_encoder_gives_the_same_vectors_of_texts():
    vectors = load_encoder("dual").encode_texts(["a red coat", "warm star"])
    np.testing.assert_allclose(vectors, EXPECTED["texts"]["dual"], atol=1e-5)


@pytest.mark.parametrize(("name", "flags"), [("net--toys", (False, True)), ("raw--photos", (False, False))])
def test_a_store_holds_the_same_rows_and_vectors(name, flags):
    store, expected = open_store(*name.split("--")), EXPECTED["stores"][name]
    rows = store.select()
    assert [rows[c].tolist() for c in ("image_id", "label", "split")] == [
        expected[key] for key in ("image_ids", "labels", "splits")
    ]
    np.testing.assert_allclose(store.vectors()[:, :8], expected["vectors"], atol=1e-5)
    assert (store.card["random_weights"], store.card["generated_images"]) == flags


@pytest.mark.parametrize("name", EXPECTED["indexes"])
def test_an_index_gives_the_same_results(name):
    index, expected = Index.load(name, Workspace()), EXPECTED["indexes"][name]
    queries = np.array(EXPECTED["queries"], np.float32)
    assert (len(index), index.search_param, index.recall) == tuple(expected[k] for k in ("count", "effort", "recall"))
    even = np.arange(len(index)) % 2 == 0
    for prefix, mask in (("", None), ("few_", even)):
        scores, positions = index.search(queries, 7, where=mask)
        np.testing.assert_allclose(scores, expected[f"{prefix}scores"], atol=1e-5)
        ids = index.rows["image_id"].to_numpy()[positions].tolist()
        assert ids == expected["few_ids" if prefix else "image_ids"]
    assert index.made_from == {}
