import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from picture_maker import save_photograph
from PIL import Image
from typer.testing import CliRunner

from rectrio_lib import bench_embed, cli
from rectrio_lib.embeddings import STAGES
from rectrio_lib.readers import BadData

SQUEEZENET = "torchvision:squeezenet1_0"


@pytest.fixture(scope="module")
def measured(away_from_the_checkout):
    """The whole benchmark in small: what it returned, and what it left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_embed, "ROUNDS", 2)
        patch.setattr(bench_embed, "BATCH", 2)
        outcome = bench_embed.bench_embed(SQUEEZENET, 3)
    return outcome, [path for path in Path(os.environ["RECTRIO_OUTPUTS"]).rglob("*") if path.is_file()]


def test_both_ways_are_measured_on_the_same_pictures(measured):
    outcome, left = measured
    disk, memory = outcome["contenders"]
    for row in (disk, memory):
        assert row["pictures_per_second"] == pytest.approx(3 / row["seconds"], rel=0.01)
    assert outcome["ratio"] == round(disk["pictures_per_second"] / memory["pictures_per_second"], 3)
    assert outcome["agreement"] > 0.999
    assert outcome["setting"]["pictures"] == "3, generated, 640 x 480"
    assert left == []


def test_the_stages_share_the_time_and_the_largest_limits(measured):
    stages = measured[0]["stages"]
    assert list(stages) == [*STAGES, "rest"]
    assert sum(stages.values()) == pytest.approx(1, abs=1e-3)
    assert stages[measured[0]["limit"]] == max(stages.values()) and stages["encoding"] > 0


def test_the_second_run_embeds_nothing(measured):
    assert measured[0]["second_run"]["embedded"] == 0
    assert measured[0]["second_run"]["seconds"] > 0


def test_figures_are_medians_of_the_rounds_and_shares_of_their_sum():
    rounds = pd.DataFrame({"disk": [2.0, 4.0, 30.0], "memory": [1.0, 2.0, 3.0]})
    rounds = rounds.assign(listing=0.0, reading=[1.0, 2.0, 24.0], encoding=1.0, writing=0.0)
    summary = bench_embed._summary(rounds, 8)
    assert [row["seconds"] for row in summary["contenders"]] == [4.0, 2.0]
    assert [row["pictures_per_second"] for row in summary["contenders"]] == [2.0, 4.0]
    assert (summary["ratio"], summary["limit"]) == (0.5, "reading")
    assert summary["stages"] == {"listing": 0, "reading": 0.75, "encoding": 0.0833, "writing": 0, "rest": 0.1667}


def test_generated_photographs_differ_and_are_the_same_in_every_run(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert bench_embed.write_photographs(tmp_path / name, 3) == 3
    files = {name: [path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("a", "b")}
    assert files["a"] == files["b"] and len(set(files["a"])) == 3
    assert all(40_000 < len(content) < 400_000 for content in files["a"])  # as photographs of that size have
    with Image.open(tmp_path / "a" / "000000.jpg") as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (640, 480), "RGB")
        assert np.asarray(picture).std() > 20


def test_the_first_pictures_of_a_folder_are_taken_and_it_stays_as_it_is(tmp_path):
    source, taken = tmp_path / "source", tmp_path / "taken"
    taken.mkdir()
    for number, name in enumerate(("b/z.png", "a.jpg", "c.PNG")):
        save_photograph(source / name, number)
    assert bench_embed.copy_pictures(source, taken, 2) == 2
    assert {path.name for path in taken.iterdir()} == {"000000.jpg", "000001.png"}
    assert (taken / "000001.png").read_bytes() == (source / "b" / "z.png").read_bytes()
    assert {p.relative_to(source).as_posix() for p in source.rglob("*.*")} == {"b/z.png", "a.jpg", "c.PNG"}


def test_a_folder_is_measured_without_what_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_embed, "ROUNDS", 1)
    for number in range(2):
        save_photograph(tmp_path / "own" / f"{number}.jpg", number)
    (tmp_path / "own" / "broken.jpg").write_bytes(b"no picture")
    outcome = bench_embed.bench_embed(SQUEEZENET, 10, tmp_path / "own")
    assert outcome["setting"]["pictures"] == f"2, {tmp_path / 'own'}"
    assert outcome["agreement"] > 0.999


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="count=0: take 1 picture, or more"):
        bench_embed.bench_embed(SQUEEZENET, 0)
    with pytest.raises(BadData, match="is no folder"):
        bench_embed.bench_embed(SQUEEZENET, 1, tmp_path / "nowhere")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"None of the 1 pictures in .*bad can be read"):
        bench_embed.bench_embed(SQUEEZENET, 1, tmp_path / "bad")


def test_the_command_passes_its_options_on_and_json_is_one_object(measured, monkeypatch, tmp_path):
    def stand_in(backbone, count, folder):
        print("measuring")
        return {**measured[0], "asked_for": [backbone, count, folder and str(folder)]}

    monkeypatch.setattr(bench_embed, "bench_embed", stand_in)
    options = ["--backbone", SQUEEZENET, "--count", "5", "--folder", str(tmp_path)]
    result = CliRunner().invoke(cli.app, ["bench", "embed", *options, "--json"])
    assert json.loads(result.stdout) == {**measured[0], "asked_for": [SQUEEZENET, 5, str(tmp_path)]}
    printed = CliRunner().invoke(cli.app, ["bench", "embed"]).stdout
    assert f"ratio: {measured[0]['ratio']} of the bare forward pass" in printed
    assert "second run over the unchanged folder" in printed
