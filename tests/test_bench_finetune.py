import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from rectrio_lib import bench_finetune, cli
from rectrio_lib.networks import best_device, best_precision


@pytest.fixture(scope="module")
def outcome():
    with pytest.MonkeyPatch.context() as patch:  # six processes would only import torch six times
        patch.setattr(bench_finetune, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
        return bench_finetune.bench_finetune("torchvision:squeezenet1_0", batch_size=20, blocks=1, steps=1)


def test_every_phase_is_measured_in_float32_and_in_the_quick_precision_of_the_device(outcome):
    quick = best_precision(best_device())
    expected = ["fp32"] if quick == "no" else ["fp32", quick]
    measured = {}
    for line in outcome["lines"]:
        measured.setdefault(line["what"], []).append(line["precision"])
    assert measured == dict.fromkeys(("features", "phase 2", "phase 2, checkpointing"), expected)


def test_speed_is_told_relative_to_float32_of_the_same_phase(outcome):
    plain = {line["what"]: line for line in outcome["lines"] if line["precision"] == "fp32"}
    for line in outcome["lines"]:
        ratio = line["pictures a second"] / plain[line["what"]]["pictures a second"]
        assert line["times fp32"] == pytest.approx(ratio, rel=0.05)
        assert line["peak MB"] > 100


def test_outcome_fits_into_json_and_is_printed_as_a_table(outcome, capsys):
    assert json.loads(json.dumps(outcome)) == outcome
    bench_finetune.print_finetune(outcome)
    printed = capsys.readouterr().out
    assert "torchvision:squeezenet1_0" in printed and "phase 2, checkpointing" in printed


def test_the_command_passes_the_backbone_on(monkeypatch, capsys, outcome):
    monkeypatch.setattr(bench_finetune, "bench_finetune", lambda backbone: {**outcome, "asked": backbone})
    cli.bench_finetune("clip:RN50", as_json=True)
    assert json.loads(capsys.readouterr().out)["asked"] == "clip:RN50"
