"""`rectrio calibrate`: what scores mean, learned once and kept beside the index."""

import numpy as np
from makers.commands import rectrio
from makers.learned import build_learner
from makers.served import build_collection

from rectrio_lib.search.collection import Collection


def calibrate(monkeypatch, collection, *arguments):
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(collection.workspace.outputs))
    return rectrio("calibrate", *arguments)


def test_it_learns_and_says_from_which_score_on_results_are_right(tmp_path, monkeypatch):
    collection = build_collection(tmp_path, each=20)
    assert collection.calibration is None
    done = calibrate(monkeypatch, collection)
    assert done.exit_code == 0, done.output
    known = Collection.open("photos", workspace=collection.workspace).calibration
    lines = dict(line.split(" right", 1) for line in done.stdout.splitlines()[1:])
    for share in (0.5, 0.9, 0.99):
        least, told = known.minimum(sure=share), lines[f"{share:.0%}"]
        assert f"{least:.3f}" in told if least <= 1 else not any(map(str.isdigit, told))
    assert f"{known.pairs:,}" in done.stdout
    assert np.diff([known.minimum(sure=share) for share in (0.5, 0.9, 0.99)]).min() >= 0


def test_what_cannot_be_learned_from_is_told_in_one_sentence(tmp_path, monkeypatch):
    done = calibrate(monkeypatch, build_learner(tmp_path, labelled=False, count=50), "made-up")
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert calibrate(monkeypatch, build_learner(tmp_path / "other", count=50), "gone").exit_code == 1
