import nbformat
import pytest
from makers.chapters import write_chapter

from rectrio_lib.chapters.chapter import choose_parameters, parse_overrides, read_chapter, read_profile, select_chapters
from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_chapter(tmp_path, "01_first")
    write_chapter(tmp_path, "02_second", parameters="size = 28\nsplits = ['a']\nname = 'x'\nfast = True")
    write_chapter(tmp_path, "04_fourth", parameters="# nothing to choose")
    return tmp_path


def names(chosen):
    return [chapter.name for chapter in chosen]


def write_profile(project, text):
    (project / "notebooks" / "params" / "full.yaml").write_text(text, encoding="utf-8")


def test_chapters_carry_their_title_and_committed_parameters(project):
    first, second, fourth = select_chapters()
    assert (first.name, first.title, first.parameters) == (
        "01_first",
        "Title of 01_first",
        {"epochs": 2, "lr": 0.1},
    )
    assert second.parameters == {"size": 28, "splits": ["a"], "name": "x", "fast": True}
    assert fourth.parameters == {}


def test_only_and_from_choose_chapters_in_order(project):
    assert names(select_chapters(only=["4", "01"])) == ["01_first", "04_fourth"]
    assert names(select_chapters(start="2")) == ["02_second", "04_fourth"]
    assert names(select_chapters(only=["01", "04"], start="02")) == ["04_fourth"]


@pytest.mark.parametrize("choice", [{"only": ["03"]}, {"start": "03"}])
def test_an_unknown_chapter_number_is_refused_with_those_that_exist(project, choice):
    with pytest.raises(ArgumentError, match=r"03.* 01, 02, 04\b"):
        select_chapters(**choice)


def test_a_choice_that_leaves_no_chapter_is_refused(project):
    with pytest.raises(ArgumentError, match=r"01.*02"):
        select_chapters(only=["01"], start="02")


def test_a_folder_without_chapters_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingArtefactError, match="checkout"):
        select_chapters()


def test_a_missing_parameters_tag_is_refused(project):
    path = write_chapter(project, "01_first", "epochs = 2", parameters=None)
    with pytest.raises(ArgumentError, match=r"01_first.* 0 cells"):
        read_chapter(path)


def test_a_second_parameters_tag_is_refused(project):
    path = write_chapter(project, "01_first", "epochs = 2")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)
    with pytest.raises(ArgumentError, match=r"01_first.* 2 cells"):
        read_chapter(path)


@pytest.mark.parametrize(
    "line",
    [
        "steps = epochs * 2",
        "import os",
        "a = b = 1",
        "'words'",
        "x, y = 1, 2",
        "home = str('x')",
        "%matplotlib inline",
    ],
)
def test_anything_but_literals_among_the_parameters_is_refused(project, line):
    path = write_chapter(project, "01_first", parameters=f"epochs = 2\n{line}")
    with pytest.raises(ArgumentError, match=r"01_first\.ipynb"):
        read_chapter(path)


def test_negative_numbers_and_none_are_literals(project):
    path = write_chapter(project, "01_first", parameters="low = -1\nseed = None")
    assert read_chapter(path).parameters == {"low": -1, "seed": None}


SHAPES = "epochs = 2\nlr = 0.1\nfolder = ''\nkinds = ['a']\nfast = True\nseed = None"


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("folder=/home/me/Photos #1", "/home/me/Photos #1"),
        ("folder=[0-9]+", "[0-9]+"),
        ("folder=a=b", "a=b"),
        ("folder=", ""),
        ("folder=7", "7"),
        ("folder=null", "null"),
        ("epochs=-3", -3),
        ("lr=1e-3", 0.001),
        ("lr=2", 2.0),
        ('kinds=["b", "c"]', ["b", "c"]),
        ("fast=false", False),
        ("fast=False", False),
        ("seed=3", 3),
        ("seed=today", "today"),
        ("seed=null", None),
    ],
)
def test_an_override_is_a_literal_of_the_type_of_the_committed_value_and_text_stays_text(project, pair, value):
    write_chapter(project, "01_first", parameters=SHAPES)
    (chosen,) = choose_parameters(select_chapters(only=["01"]), overrides=parse_overrides([pair])).values()
    assert chosen == {pair.partition("=")[0]: value}
    assert type(next(iter(chosen.values()))) is type(value)


ANCHORS = "&a [1,1,1,1,1,1,1,1,1]"
for _letter in "bcdefgh":
    ANCHORS = f"[{ANCHORS}, &{_letter} [*{chr(ord(_letter) - 1)},*{chr(ord(_letter) - 1)}]]"


REFUSED = (
    *(f"epochs={ANCHORS}", f"epochs={'[' * 5000}", "epochs=__import__('os')", "epochs=2.5", "epochs=true", "epochs=\0"),
    *("epochs=", "lr=fast", "lr=1e999", "lr=nan", "kinds=hnsw", "kinds={'a': 1}", "fast=1", "fast=yes"),
)


@pytest.mark.parametrize("pair", REFUSED)
def test_an_override_of_another_type_is_refused_in_a_short_sentence_that_names_it(project, pair):
    write_chapter(project, "01_first", parameters=SHAPES)
    with pytest.raises(ArgumentError, match=pair.partition("=")[0]) as refused:
        choose_parameters(select_chapters(only=["01"]), overrides=parse_overrides([pair]))
    assert len(str(refused.value)) < 300


def test_a_profile_that_is_not_yaml_is_refused_by_name(project):
    write_profile(project, "01_first: [1, 2")
    with pytest.raises(DataError, match=r"full.yaml"):
        read_profile("full")


@pytest.mark.parametrize("pair", ["epochs", "=1", "two words=1"])
def test_an_override_that_is_no_pair_is_refused(pair):
    with pytest.raises(ArgumentError, match="name=value"):
        parse_overrides([pair])


def test_without_profile_and_overrides_nothing_changes(project):
    nothing = {"01_first": {}, "02_second": {}, "04_fourth": {}}
    assert choose_parameters(select_chapters()) == nothing
    assert choose_parameters(select_chapters(), "quick") == nothing


def test_an_override_reaches_every_chapter_that_knows_it_and_beats_the_profile(project):
    write_chapter(project, "03_third")
    write_profile(project, "01_first: {epochs: 10, lr: 1e-3}\n02_second: {size: 64}\n")
    chosen = choose_parameters(select_chapters(), "full", {"epochs": 5})
    assert chosen == {
        "01_first": {"epochs": 5, "lr": 0.001},
        "02_second": {"size": 64},
        "03_third": {"epochs": 5},
        "04_fourth": {},
    }


def test_an_unknown_override_is_refused_with_what_each_chapter_knows(project):
    with pytest.raises(ArgumentError, match=r"epoch .*01_first.* epochs, lr; 02_second"):
        choose_parameters(select_chapters(), overrides={"epoch": 5})


def test_an_override_known_only_to_chapters_that_do_not_run_is_refused(project):
    with pytest.raises(ArgumentError, match="size"):
        choose_parameters(select_chapters(only=["01"]), overrides={"size": 5})


def test_an_unknown_parameter_in_a_profile_is_refused(project):
    write_profile(project, "02_second: {epochs: 10}")
    with pytest.raises(ArgumentError, match=r"epochs.* 02_second.* size"):
        choose_parameters(select_chapters(), "full")


def test_an_unknown_chapter_in_a_profile_is_refused_even_if_another_one_runs(project):
    write_profile(project, "09_ninth: {epochs: 10}")
    with pytest.raises(ArgumentError, match="09_ninth"):
        choose_parameters(select_chapters(only=["01"]), "full")


def test_an_unknown_profile_is_refused_with_those_that_exist(project):
    write_profile(project, "")
    with pytest.raises(ArgumentError, match=r"'ful'.* quick, full"):
        read_profile("ful")


@pytest.mark.parametrize("text", ["- a\n- b", "01_first: 3"])
def test_a_profile_of_another_shape_is_refused(project, text):
    write_profile(project, text)
    with pytest.raises(ArgumentError, match=r"full.yaml"):
        read_profile("full")


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", "x"), ("epochs", 1.5), ("epochs", True), ("lr", "x"), ("lr", True), ("lr", None)],
)
def test_a_value_of_another_type_is_refused(project, name, value):
    with pytest.raises(ArgumentError, match=name):
        choose_parameters(select_chapters(), overrides={name: value})


def test_numbers_become_floats_where_the_committed_value_is_one(project):
    chosen = choose_parameters(select_chapters(only=["01"]), overrides={"lr": 1})
    assert isinstance(chosen["01_first"]["lr"], float)


def test_a_parameter_committed_as_none_takes_anything(project):
    write_chapter(project, "01_first", parameters="seed = None")
    chosen = choose_parameters(select_chapters(only=["01"]), overrides={"seed": 3})
    assert chosen == {"01_first": {"seed": 3}}
