"""Two workspaces in one process: each has a data set, an encoder and an index of the same names, and they differ."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from makers.networks import pictures, small

from rectrio_lib.core.errors import MissingArtefactError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import dataset
from rectrio_lib.encoders import registry
from rectrio_lib.index.index import Index


def save_and_load_dataset(number: int, workspace: Workspace) -> np.ndarray:
    pixels = pictures(4, seed=number)
    manifest = dataset.make_manifest(pixels, pd.DataFrame({"label": list("abab"), "split": "train"}))
    made = dataset.ImageDataset("toy", manifest, pixels, ["a", "b"], "folder", False)
    dataset.save_dataset(made, workspace=workspace)
    return np.array(dataset.load_dataset("toy", workspace=workspace).pixels)


def save_and_load_encoder(number: int, workspace: Workspace) -> np.ndarray:
    registry.save_encoder(small(seed=number), "net", workspace=workspace)
    return registry.load_encoder("net", workspace=workspace).encode(pictures())


def save_and_load_index(number: int, workspace: Workspace) -> np.ndarray:
    vectors = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(number))).numpy()
    rows = pd.DataFrame({"image_id": [f"{number}-{n}" for n in range(5)], "label": "a"})
    Index.build("flat", vectors, rows, "hash").save("toy", workspace=workspace)
    return Index.load("toy", workspace=workspace).vectors_at(np.arange(5))


@pytest.mark.parametrize(
    ("save_and_load", "load", "name"),
    [
        (save_and_load_dataset, dataset.load_dataset, "toy"),
        (save_and_load_encoder, registry.load_encoder, "net"),
        (save_and_load_index, Index.load, "toy"),
    ],
)
def test_each_workspace_gives_back_what_was_saved_in_it(tmp_path, save_and_load, load, name):
    if "workspace" not in inspect.signature(load).parameters:
        pytest.skip(f"{load.__qualname__} does not take a workspace yet")
    one, two = Workspace(tmp_path / "one"), Workspace(tmp_path / "two")
    first, second = save_and_load(1, one), save_and_load(2, two)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, save_and_load(1, one))
    with pytest.raises(MissingArtefactError, match=name):
        load(name)  # the default workspace holds nothing
