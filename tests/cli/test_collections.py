"""The commands about any folder of pictures, end to end, with the stand-in backbone and with pixels."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from makers.commands import rectrio, well
from makers.folders import ENCODER, save_classes, save_encoder_of_pixels, save_photographs
from makers.networks import SQUEEZENET
from makers.texts import dual
from PIL import Image

from rectrio_lib.chapters import own_images
from rectrio_lib.cli import output
from rectrio_lib.encoders.registry import save_encoder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    save_encoder_of_pixels()
    return save_classes(tmp_path / "my pets")


def indexed(folder, *options):
    return well("index", folder, "--encoder", ENCODER, *options)


def refused(*arguments):
    """Return the one sentence with which a command ends."""
    result = rectrio(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    (line,) = result.stderr.splitlines()
    return line.removeprefix("rectrio: ")


def answers(*arguments):
    return [answer["path"] for answer in json.loads(well("search", *arguments, "--json"))["queries"][0]["answers"]]


def test_index_prints_timings_what_limits_what_was_bad_the_index_and_what_to_type_next(folder):
    (folder / "cat" / "broken.jpg").write_bytes(b"no picture")
    shutil.copy(folder / "cat" / "00.png", folder / "dog" / "twin.png")
    said = indexed(folder)
    assert re.search(r"12 of 14 embedded.*1 copy, 1 unreadable", said)
    ledger = pd.read_csv(re.search(r"Left out +2, with reasons in (.*ledger\.csv)", said)[1])
    assert ledger["picture"].tolist() == ["cat/broken.jpg", "dog/twin.png"]
    assert "my pets: flat, 12 " in said
    assert said.splitlines()[-1].endswith(' search IMAGE --index "my pets" --show answers.png')
    assert "STAND-IN" not in said


def test_ten_new_files_are_ten_embedded_and_deleted_ones_are_found_no_more(folder):
    indexed(folder)
    assert "0 of 12 embedded" in indexed(folder)
    save_photographs(folder, range(100, 110), "bird")
    (folder / "dog" / "50.png").unlink()
    assert "10 of 21 embedded" in indexed(folder)
    found = answers("bird/100.png", "--k", 50)
    assert len(found) == 20 and "bird/105.png" in found and "dog/50.png" not in found


def test_search_prints_a_table_of_rank_score_label_and_path(folder):
    indexed(folder)
    outside = shutil.copy(folder / "cat" / "03.png", folder.parent / "query.png")
    lines = well("search", outside, "--k", 3).splitlines()
    assert lines[0] == str(outside)
    assert lines[1].split() == ["rank", "score", "label", "path"]
    assert lines[2].split() == ["1", "1.000", "cat", "cat/03.png"]
    assert [line.split()[0] for line in lines[3:5]] == ["2", "3"]
    assert lines[-1] == f"Paths are below {folder.resolve()}"


def test_options_reach_the_search(folder):
    indexed(folder)
    assert set(answers("cat/00.png", "--k", 9, "--where", "label == 'dog'")) == {f"dog/{n}.png" for n in range(50, 56)}
    scores = json.loads(well("search", "cat/00.png", "--k", "11", "--json"))["queries"][0]["answers"]
    middle = scores[5]["score"] - 1e-6
    assert answers("cat/00.png", "--k", 11, "--minimum", middle) == [a["path"] for a in scores[:6]]
    for options in (["--mmr", 0.3], ["--expand", 3], ["--reciprocal", 3]):
        found = json.loads(well("search", "cat/00.png", "--k", 11, "--json", *options))["queries"][0]["answers"]
        assert [(a["path"], round(a["score"], 4)) for a in found] != [(a["path"], round(a["score"], 4)) for a in scores]
    for suffix in ("jpg", "bmp"):
        save_photographs(folder, [1], "copies", suffix)
    indexed(folder)
    assert sum(path.startswith("copies") for path in answers("cat/01.png", "--k", 5)) == 2
    assert sum(path.startswith("copies") for path in answers("cat/01.png", "--k", 5, "--distinct", 0.98)) == 1


def test_recommend_shows_what_will_be_liked_and_says_what_it_ignored(folder):
    indexed(folder)
    table = well("recommend", "cat/00.png", "cat/01.png", "--dislike", "dog/50.png", "--seen", "cat/02.png", "--k", 4)
    assert len([line for line in table.splitlines() if ".png" in line]) == 4
    assert not [name for name in ("cat/00.png", "cat/01.png", "cat/02.png", "dog/50.png") if name in table]
    first, *rows, _, _ = well("recommend", "--k", 2).splitlines()[1:]
    assert first.split() == ["rank", "label", "path"] and len(rows) == 2  # without likes there are no scores
    told = json.loads(well("recommend", "cat/00.png", "gone.png", "--k", 2, "--strategy", "best", "--json"))
    assert (list(told["ignored"]), len(told["queries"][0]["answers"])) == (["gone.png"], 2)
    assert "strategy" in refused("recommend", "cat/00.png", "--strategy", "worst")


def test_several_pictures_are_several_questions_or_one(folder):
    indexed(folder)
    both = json.loads(well("search", "cat/00.png", "dog/50.png", "--json"))["queries"]
    assert [query["query"] for query in both] == ["cat/00.png", "dog/50.png"]
    (one,) = json.loads(well("search", "cat/00.png", "dog/50.png", "--combine", "--json"))["queries"]
    assert one["query"] == "cat/00.png + dog/50.png"
    assert not {"cat/00.png", "dog/50.png"} & {answer["path"] for answer in one["answers"]}


def test_json_names_index_encoder_and_folder_and_all_that_is_known_of_an_answer(folder):
    indexed(folder, "--name", "pets")
    told = json.loads(
        well("search", shutil.copy(folder / "dog" / "51.png", folder.parent / "query.png"), "--k", 2, "--json")
    )
    queries = told.pop("queries")
    assert told == {"index": "pets", "encoder": ENCODER, "stand_in": False, "k": 2, "folder": str(folder.resolve())}
    first = queries[0]["answers"][0]
    assert first.keys() == {"rank", "score", "image_id", "path", "label", "split", "width", "height"}
    assert (first["rank"], first["path"], first["label"], first["width"]) == (1, "dog/51.png", "dog", 64)


def test_show_writes_a_grid(folder, tmp_path):
    indexed(folder)
    said = well("search", "cat/00.png", "dog/50.png", "--k", 4, "--show", tmp_path / "grid.png")
    assert f"Shown in {tmp_path / 'grid.png'}" in said
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.format == "PNG" and grid.width > 1.5 * grid.height


def test_a_grid_among_the_images_is_not_indexed_with_them(folder):
    indexed(folder)
    well("search", "cat/00.png", "--show", folder / "answers.png")
    said = indexed(folder)
    assert "0 of 13 embedded" in said and "1 unreadable" in said
    ledger = Path(re.search(r"reasons in (.*ledger\.csv)", said)[1]).read_text(encoding="utf-8")
    assert "answers.png,a figure" in ledger


def test_a_grid_that_cannot_be_written_is_one_sentence_and_leaves_nothing(folder, tmp_path):
    indexed(folder)
    well("search", "cat/00.png", "--show", tmp_path / "new" / "grid.JPG")
    with Image.open(tmp_path / "new" / "grid.JPG") as grid:
        assert grid.format == "JPEG"
    (tmp_path / "file").touch()
    for place, said in (("grid.txt", "grid.txt"), ("grid", "grid"), ("file/grid.png", "cannot be written")):
        result = rectrio("search", "cat/00.png", "--show", tmp_path / place)
        assert result.exit_code == 1 and said in result.stderr and len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("grid*"))


def test_embed_makes_vectors_and_names_the_command_that_indexes_them(folder):
    said = well("embed", folder, "--encoder", ENCODER)
    assert "12 of 12 embedded" in said and "12 of length 192" in said
    assert f' index "{folder}" --encoder {ENCODER}' in said
    assert "0 of 12 embedded" in indexed(folder)


def test_info_lists_what_there_is(folder):
    assert well("info").startswith("Indexes\nnone\n\nEmbedding stores\nnone\n\nEncoders\nname")
    indexed(folder)
    said = well("info")
    assert re.search(
        rf"my pets +12 +flat +exact +{ENCODER} +none +no +{re.escape(str(folder.resolve()))} +[\d.]+ MB", said
    )
    assert "image_id, path, label" in well("info", "my pets")


def test_the_stand_in_says_so_and_another_process_searches_with_it(tmp_path):
    few = save_photographs(tmp_path / "few", range(4))
    without = rectrio("index", few, "--backbone", SQUEEZENET)
    assert without.exit_code == 1 and "--allow-random-weights" in without.stderr.splitlines()[-1]
    said = well("index", few, "--backbone", SQUEEZENET, "--allow-random-weights")
    assert "torchvision-squeezenet1_0. STAND-IN" in said
    assert "random weights" in well("info")
    outside = shutil.copy(few / "02.png", tmp_path / "query.png")
    command = [sys.executable, "-m", "rectrio_lib.cli", "search", str(outside), "--k", "2", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["stand_in"] is True
    first = told["queries"][0]["answers"][0]
    assert first["path"] == "02.png" and first["score"] == pytest.approx(1, abs=0.01)


def test_what_is_wrong_is_told_in_one_sentence(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "missing" in refused("index", tmp_path / "missing")
    assert "empty" in refused("index", tmp_path / "empty", "--encoder", ENCODER)
    assert "rectrio index FOLDER" in refused("search", "cat/00.png")
    indexed(folder)
    assert "'cars': choose one of 'my pets'" in refused("search", "cat/00.png", "--index", "cars")
    for command, option in (("search", "--minimum"), ("search", "--distinct"), ("recommend", "--distinct")):
        per_cent = rectrio(command, "cat/00.png", option, "90")
        assert per_cent.exit_code == 2 and "less than or equal to 1" in per_cent.stderr
    assert "k=0" in refused("search", "cat/00.png", "--k", "0")
    assert "there is no column 'colour'" in refused("search", "cat/00.png", "--where", "colour == 1")
    assert "missing.png" in refused("search", "missing.png")
    assert "exclude each other" in refused("embed", folder, "--encoder", ENCODER, "--backbone", "clip:RN50")
    assert "should name family and network" in refused("index", folder, "--backbone", "resnet50")
    assert "'cars'" in refused("info", "cars")
    indexed(folder, "--name", "again")
    assert "'again', 'my pets'" in refused("search", "cat/00.png")


def asked_in_words(*arguments):
    return json.loads(well("search", *arguments, "--index", "worded", "--json"))["queries"]


def test_words_ask_alone_or_with_a_picture_and_what_to_do_without(folder, tmp_path):
    save_encoder(dual(channels=3), "words")
    well("index", folder, "--encoder", "words", "--name", "worded")
    several = asked_in_words("--text", "a red star", "--text", "warm coat", "--k", 3)
    assert [(q["query"], len(q["answers"])) for q in several] == [("a red star", 3), ("warm coat", 3)]
    picture = folder / "cat" / "03.png"
    (mixed,) = asked_in_words(picture, "--text", "red", "--without", "warm coat")
    assert mixed["query"] == "+1 03.png +1 'red' -0.5 'warm coat'"
    assert "cat/03.png" not in {answer["path"] for answer in mixed["answers"]}
    assert asked_in_words("cat/03.png", "--text", "red", "--without", "warm coat") == [mixed]
    (alone,) = asked_in_words("--text", "red", "--where", "label == 'dog'", "--k", 2)
    assert {answer["label"] for answer in alone["answers"]} == {"dog"}
    well("search", "--text", "red", "--index", "worded", "--show", tmp_path / "answers.png")
    assert Image.open(tmp_path / "answers.png").size > (400, 100)


def test_words_that_cannot_be_asked_are_told_in_one_sentence(folder):
    indexed(folder)
    assert "text tower" in refused("search", "--text", "red")
    save_encoder(dual(channels=3), "words")
    assert "words can" in refused("search", "--text", "red")
    well("index", folder, "--encoder", "words", "--name", "worded")
    assert "zebra" in refused("search", "--text", "zebra", "--index", "worded")
    assert "empty" in refused("search", "--text", " ", "--index", "worded")
    assert "positive" in refused("search", "--without", "red", "--index", "worded")
    gone = refused("search", "gone.png", "--text", "red", "--index", "worded")
    assert "gone.png" in gone
    assert "image_id" in refused("search", "--index", "worded")


def test_build_hands_over_folder_name_and_parameters(monkeypatch, tmp_path):
    calls = []

    def run_folder(*arguments):
        calls.append(arguments)
        return tmp_path / "reports" / "pets" / "index.html"

    monkeypatch.setattr(own_images, "run_folder", run_folder)
    said = well("build", tmp_path, "--name", "pets", "-p", "epochs=3", "--allow-random-weights")
    assert calls == [(str(tmp_path), "pets", {"epochs": "3"}, True)]
    assert str(tmp_path / "reports" / "pets" / "index.html") in said and "--index pets" in said


@pytest.mark.parametrize("old", [["run", "--images", "pets", "-p", "epochs=3"], ["bench", "--repeat", "3"], ["bench"]])
def test_old_spellings_name_the_new_one(old):
    result = rectrio(*old)
    assert (result.exit_code, result.stdout) == (2, "")
    assert ("rectrio build pets" if old[0] == "run" else "rectrio run --only 10") in result.stderr


def test_a_folder_that_moved_is_named(folder, tmp_path):
    indexed(folder, "--name", "pets")
    folder.rename(tmp_path / "moved")
    assert len(answers("cat/00.png", "--k", 3)) == 3
    assert str(folder) in refused("search", "cat/00.png", "--show", tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()
    said = well("search", "cat/00.png", "--folder", tmp_path / "moved", "--show", tmp_path / "grid.png")
    assert f"Paths are below {tmp_path / 'moved'}" in said and (tmp_path / "grid.png").stat().st_size > 1000


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_escape_sequences_in_names_are_shown_escaped_and_kept_in_json(folder):
    save_photographs(folder, [90], "\x1b[31mred\nline")
    indexed(folder)
    said = well("search", "cat/00.png", "--k", 50)
    assert "\x1b" not in said and r"\x1b[31mred\nline" in said
    found = json.loads(well("search", "cat/00.png", "--k", 50, "--json"))["queries"][0]["answers"]
    assert "\x1b[31mred\nline" in {answer["label"] for answer in found}


def in_another_process(*arguments, **variables):
    code = "import sys; from rectrio_lib.cli.app import app; app(standalone_mode=False); "
    code += "print(sorted({'torch', 'torchvision'} & set(sys.modules)), file=sys.stderr)"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        timeout=300,
    )


def test_json_is_utf_8_whatever_the_code_page(folder):
    save_photographs(folder, [90], "кошка 猫")
    indexed(folder)
    done = in_another_process("search", "cat/00.png", "--k", 50, "--json", PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.decode("utf-8"))["queries"][0]["answers"]
    assert "кошка 猫" in {answer["label"] for answer in found}
    table = in_another_process("search", "cat/00.png", "--k", 50, PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert table.returncode == 0 and rb"\u732b" in table.stdout


def test_images_of_the_collection_are_searched_for_without_torch(folder):
    indexed(folder)
    done = in_another_process("search", "cat/00.png", folder / "cat" / "01.png")
    assert done.stdout and done.stderr.decode().splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("started", "found", "expected"),
    [
        ("/usr/bin/rectrio", "/usr/bin/rectrio", "rectrio"),
        (".venv/bin/rectrio", None, ".venv/bin/rectrio"),
        ("/x/rectrio_lib/cli/__main__.py", None, f"{sys.executable} -m rectrio_lib.cli"),
    ],
)
def test_the_program_is_named_as_it_was_started(monkeypatch, started, found, expected):
    monkeypatch.setattr(sys, "argv", [started])
    monkeypatch.setattr(shutil, "which", lambda name: found)
    assert output.program() == expected


# --- whitening and mirror images


def test_whitening_is_told_and_kept_and_taken_back(folder):
    save_photographs(folder, range(100, 126), "bird")
    indexed(folder, "--whiten", "16")
    assert "Whitened to 16 dimensions" in well("info", folder.name)
    assert answers(folder / "bird" / "101.png", "--k", 3)
    well("index", folder)
    assert "Whitened to 16 dimensions" in well("info", folder.name)
    well("index", folder, "--whiten", "no")
    assert "Whitened" not in well("info", folder.name)


def test_mirror_images_are_told_with_their_price(folder):
    result = rectrio("index", folder, "--encoder", ENCODER, "--mirror")
    assert result.exit_code == 0 and f"Encoder    {ENCODER}-mirrored" in result.stdout
    assert "twice the time" in result.stderr


@pytest.mark.parametrize("value", ["perhaps", "-3", "2.5", "²"])
def test_what_whiten_takes_is_said(folder, value):
    said = refused("index", folder, "--encoder", ENCODER, f"--whiten={value}")
    assert said == f"--whiten {value}: expected yes, no, auto, or a number of dimensions such as 256."


def test_too_few_images_to_whiten_are_said_in_one_sentence(folder):
    result = rectrio("index", folder, "--encoder", ENCODER, "--whiten", "yes")
    assert result.exit_code == 1 and "Whitening needs 32 images to learn from" in result.stderr.splitlines()[-1]
