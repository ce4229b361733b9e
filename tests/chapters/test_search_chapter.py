"""Chapter 05 pairs each vector with the row of its own image, in whatever order the stores hold them."""

import ast
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from makers.networks import pictures, small

from rectrio_lib.data.dataset import ImageDataset, make_manifest, save_dataset
from rectrio_lib.embeddings.embed import embed
from rectrio_lib.embeddings.store import open_store
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.registry import save_encoder

PATH = Path(__file__).parents[2] / "notebooks" / "05_search_and_visualize.ipynb"
PARAMETERS = """profile, dataset, encoder, queries = "quick", "toy", "net", 30
k, kinds, recall, projected, seed = 3, ["flat"], 0.9, 9, 0"""
CLASSES = ("ant", "bee", "cow")


def run_until(name: str) -> dict:
    """Run the chapter's code until it has defined a name."""
    found = {}
    for cell in nbformat.read(PATH, as_version=4).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and "colab" not in tags:
            source = PARAMETERS if "parameters" in tags else cell.source
            exec(compile(ast.parse(source), PATH.name, "exec"), found)
        if name in found:
            return found
    raise AssertionError(f"the chapter never defines {name}")


@pytest.fixture
def extended() -> ImageDataset:
    """A data set that grew after it was embedded: the pixels' store is appended to, that of a new network made anew."""
    pixels = pictures(120)
    pixels[60:] = np.clip(pixels[:60].astype(int) + 9, 0, 255)  # each image has a near twin of its class
    labels = np.resize(np.random.default_rng(1).choice(CLASSES, 60), 120)
    frame = {"label": labels, "split": np.repeat(["train", "test"], 60)}
    manifest = make_manifest(pixels, pd.DataFrame(frame))
    data = ImageDataset("toy", manifest, pixels, CLASSES, "noise")
    some = data.manifest.index % 3 > 0
    for part, seed in ((replace(data, manifest=data.manifest[some].reset_index(drop=True)), 1), (data, 2)):
        save_dataset(part)
        for name, encoder in (("net-pixels", RawPixels(1, 12)), ("net", small(seed))):
            save_encoder(encoder, name)
            embed(part, name)
    return data


def test_the_stores_of_the_fixture_are_out_of_step(extended):
    orders = [open_store(name, "toy").select()["image_id"].tolist() for name in ("net-pixels", "net")]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_every_space_is_judged_by_the_labels_of_its_own_images(extended):
    found = run_until("judged")
    vectors = RawPixels(1, 12).encode(extended.pixels).astype(np.float16).astype(np.float32)
    test = extended.manifest["split"].eq("test").to_numpy()
    images, labels = extended.manifest["row"].to_numpy(), extended.manifest["label"].to_numpy()
    by_id = dict(zip(extended.manifest["image_id"], zip(images, labels, strict=True), strict=True))
    hits = []
    for image_id in found["answers"]["raw pixels"].query_ids:
        row, label = by_id[image_id]
        nearest = np.argmax(vectors[images[~test]] @ vectors[row])
        hits.append(labels[~test][nearest] == label)
    assert found["judged"]["raw pixels"].means()["recall_at_1"] == pytest.approx(np.mean(hits)) == 1.0
    first = found["answers"]["raw pixels"].column("label")[:, 0]
    assert (first == found["query_labels"]).all()


def test_a_store_of_other_images_is_refused_by_name(extended):
    save_dataset(replace(extended, manifest=extended.manifest.iloc[:-1]))
    try:
        with pytest.raises(ValueError, match="raw pixels, trained"):
            run_until("judged")
    finally:
        save_dataset(extended)
