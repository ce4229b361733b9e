import json
from functools import partial

import numpy as np
import torch

from rectrio_lib import bench, datasets, shapes
from rectrio_lib.networks import ConvNet


def small_dataset() -> datasets.ImageDataset:
    pixels, frame = shapes.draw_shapes(12, views=4)
    manifest = datasets.make_manifest(pixels, frame.rename(columns={"object": "group"}))
    manifest = datasets.split_by_group(manifest, {"val": 0.2, "test": 0.2})
    return datasets.ImageDataset("shapes", manifest, pixels, tuple(shapes.SHAPES), "drawn", stand_in=True)


def test_random_triplets_hold_anchor_positive_and_negative():
    targets = np.repeat(np.arange(4), 5)
    images = np.broadcast_to(targets[:, None, None, None], (20, 1, 2, 2)).astype(np.uint8)
    triplets = bench.RandomTriplets(images, targets, lambda x: x.float())
    classes = np.array([[int(picture.mean()) for picture in triplets[i]] for i in range(20) for _ in range(10)])
    assert (classes[:, 0] == classes[:, 1]).all()
    assert (classes[:, 0] != classes[:, 2]).all()
    assert len(set(classes[:, 2])) == 4


def test_usual_way_stops_at_the_target_and_learns(monkeypatch):
    monkeypatch.setattr(bench, "TARGET_RECALL", 0.5)
    data = small_dataset()
    torch.manual_seed(0)
    network = ConvNet(plan=(4, "M", 8), dim=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    answers = iter([0.1, 0.2, 0.5, 0.9])
    triplets = bench.RandomTriplets(data.images, data.targets, network.prepare)
    curve = bench.train_the_usual_way(network, triplets, lambda _: {"recall_at_1": next(answers)}, validate_every=2)
    assert [(row["step"], row["recall_at_1"]) for row in curve] == [(2, 0.1), (4, 0.2), (6, 0.5)]
    assert [row["seconds"] for row in curve] == sorted(row["seconds"] for row in curve)
    assert any(not torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_bench_train_compares_both_ways_and_fits_into_json(monkeypatch, capsys):
    monkeypatch.setattr(bench, "TARGET_RECALL", 0.05)
    monkeypatch.setattr(bench, "ConvNet", partial(ConvNet, plan=(4, "M", 8)))
    monkeypatch.setattr(bench.datasets, "prepare", lambda: (small_dataset(), None))
    outcome = bench.bench_train()
    ours, usual = json.loads(json.dumps(outcome))["contenders"]
    assert ours["reached"] and usual["reached"]
    assert outcome["ratio"] == round(usual["seconds"] / ours["seconds"], 2)
    assert outcome["setting"]["stand_in"]
    bench.print_bench(outcome)
    assert f"ratio: {outcome['ratio']} times faster" in capsys.readouterr().out


def test_a_target_that_is_never_reached_is_not_called_a_ratio(monkeypatch):
    rows = [{"step": 20, "seconds": 1.0, "recall_at_1": 0.3}, {"step": 40, "seconds": 2.0, "recall_at_1": 0.6}]
    monkeypatch.setattr(bench, "TARGET_RECALL", 0.5)
    assert bench._outcome("x", rows) == {"name": "x", "seconds": 2.0, "steps": 40, "recall_at_1": 0.6, "reached": True}
    monkeypatch.setattr(bench, "TARGET_RECALL", 0.7)
    assert not bench._outcome("x", rows)["reached"]
