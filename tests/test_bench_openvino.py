import json
import sys

import pytest
from typer.testing import CliRunner

from rectrio_lib import bench_openvino, cli

LINES = [
    {"what": "torch fp32", bench_openvino.ONE: 80.0, bench_openvino.MANY: 1700.0, "of torch fp32": 1.0, "cosine": 1.0},
    {
        "what": "OpenVINO fp32",
        bench_openvino.ONE: 30.0,
        bench_openvino.MANY: 700.0,
        "of torch fp32": 0.375,
        "cosine": 1.0,
    },
    {
        "what": "OpenVINO int8",
        bench_openvino.ONE: 20.0,
        bench_openvino.MANY: 500.0,
        "of torch fp32": 0.25,
        "cosine": 0.98,
    },
]
OUTCOME = {"setting": {"backbone": "clip:RN50"}, "lines": LINES}


@pytest.fixture(scope="module")
def outcome():
    pytest.importorskip("openvino"), pytest.importorskip("nncf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_openvino, "ROUNDS", 1)
        patch.setattr(bench_openvino, "COUNTS", {bench_openvino.ONE: 1, bench_openvino.MANY: 3})
        return bench_openvino.bench_openvino("torchvision:squeezenet1_0")


def test_torch_and_openvino_are_measured_in_every_precision(outcome):
    expected = ["torch fp32", "torch bf16", "OpenVINO fp32", "OpenVINO bf16", "OpenVINO int8"]
    assert [line["what"] for line in outcome["lines"]] == expected
    for line in outcome["lines"]:
        assert line[bench_openvino.MANY] > 0
        assert line["of torch fp32"] == round(line[bench_openvino.ONE] / outcome["lines"][0][bench_openvino.ONE], 3)


def test_all_compute_the_same_network_and_each_in_its_own_precision(outcome):
    cosine = {line["what"]: line["cosine"] for line in outcome["lines"]}
    assert cosine["torch fp32"] == cosine["OpenVINO fp32"] == 1
    assert all(value > 0.9 for value in cosine.values())
    assert cosine["OpenVINO int8"] < 1


def test_the_table_ends_with_the_ratio_of_the_fastest(capsys):
    bench_openvino.print_openvino(OUTCOME)
    printed = capsys.readouterr().out
    assert "clip:RN50" in printed and "1,700" in printed
    assert printed.splitlines()[-1] == "ratio: OpenVINO int8 takes 0.25 of the time of torch fp32 for one picture"


def test_the_command_passes_the_backbone_on_and_json_is_one_object(monkeypatch):
    def stand_in(backbone):
        print("measuring")
        return {**OUTCOME, "asked": backbone}

    monkeypatch.setattr(bench_openvino, "bench_openvino", stand_in)
    result = CliRunner().invoke(cli.app, ["bench", "openvino", "--backbone", "clip:RN50", "--json"])
    assert json.loads(result.stdout) == {**OUTCOME, "asked": "clip:RN50"}
    assert "ratio: " in CliRunner().invoke(cli.app, ["bench", "openvino"]).stdout


@pytest.mark.parametrize("name", ["openvino", "nncf"])
def test_a_missing_package_is_told_before_anything_is_built(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(bench_openvino, "Pretrained", lambda backbone: pytest.fail("built a network"))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rectrio\[openvino\]'"):
        bench_openvino.bench_openvino()
