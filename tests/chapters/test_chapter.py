import nbformat
import pytest
from makers.chapters import write_chapter

from rectrio_lib.chapters.chapter import choose_parameters, parse_overrides, read_chapter, read_profile, select_chapters


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
    with pytest.raises(ValueError, match=r"no chapter 03: there are 01, 02, 04\."):
        select_chapters(**choice)


def test_a_choice_that_leaves_no_chapter_is_refused(project):
    with pytest.raises(ValueError, match="No chapter is both among 01 and from 02 on"):
        select_chapters(only=["01"], start="02")


def test_a_folder_without_chapters_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no chapters: run rectrio inside a checkout"):
        select_chapters()


def test_a_missing_parameters_tag_is_refused(project):
    path = write_chapter(project, "01_first", "epochs = 2", parameters=None)
    with pytest.raises(ValueError, match="has 0 cells tagged `parameters`: it needs exactly one"):
        read_chapter(path)


def test_a_second_parameters_tag_is_refused(project):
    path = write_chapter(project, "01_first", "epochs = 2")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)
    with pytest.raises(ValueError, match="has 2 cells tagged `parameters`"):
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
    with pytest.raises(ValueError, match=r"01_first.ipynb: its parameters cell must hold only `name = literal` lines"):
        read_chapter(path)


def test_negative_numbers_and_none_are_literals(project):
    path = write_chapter(project, "01_first", parameters="low = -1\nseed = None")
    assert read_chapter(path).parameters == {"low": -1, "seed": None}


def test_overrides_are_yaml():
    pairs = ["a=1", "b=0.5", "c=[1, 2]", "d=x=y", "e='7'", "f=true"]
    expected = {"a": 1, "b": 0.5, "c": [1, 2], "d": "x=y", "e": "7", "f": True}
    assert parse_overrides(pairs) == expected


@pytest.mark.parametrize("pair", ["epochs", "=1", "two words=1"])
def test_an_override_that_is_no_pair_is_refused(pair):
    with pytest.raises(ValueError, match="is not `name=value`"):
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
    with pytest.raises(ValueError, match=r"Parameter epoch is unknown .* 01_first knows epochs, lr; 02_second knows"):
        choose_parameters(select_chapters(), overrides={"epoch": 5})


def test_an_override_known_only_to_chapters_that_do_not_run_is_refused(project):
    with pytest.raises(ValueError, match="Parameter size is unknown"):
        choose_parameters(select_chapters(only=["01"]), overrides={"size": 5})


def test_an_unknown_parameter_in_a_profile_is_refused(project):
    write_profile(project, "02_second: {epochs: 10}")
    with pytest.raises(ValueError, match="Parameter epochs is unknown to 02_second: 02_second knows size"):
        choose_parameters(select_chapters(), "full")


def test_an_unknown_chapter_in_a_profile_is_refused_even_if_another_one_runs(project):
    write_profile(project, "09_ninth: {epochs: 10}")
    with pytest.raises(ValueError, match=r"full.yaml names chapters that do not exist: 09_ninth\."):
        choose_parameters(select_chapters(only=["01"]), "full")


def test_an_unknown_profile_is_refused_with_those_that_exist(project):
    write_profile(project, "")
    with pytest.raises(ValueError, match=r"no profile 'ful': there are quick, full\."):
        read_profile("ful")


@pytest.mark.parametrize("text", ["- a\n- b", "01_first: 3"])
def test_a_profile_of_another_shape_is_refused(project, text):
    write_profile(project, text)
    with pytest.raises(ValueError, match="must map each chapter to its parameters"):
        read_profile("full")


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", "x"), ("epochs", 1.5), ("epochs", True), ("lr", "x"), ("lr", True), ("lr", None)],
)
def test_a_value_of_another_type_is_refused(project, name, value):
    with pytest.raises(ValueError, match=f"Parameter {name} takes (int|float) values such as .*, not"):
        choose_parameters(select_chapters(), overrides={name: value})


def test_numbers_become_floats_where_the_committed_value_is_one(project):
    chosen = choose_parameters(select_chapters(only=["01"]), overrides={"lr": 1})
    assert isinstance(chosen["01_first"]["lr"], float)


def test_a_parameter_committed_as_none_takes_anything(project):
    write_chapter(project, "01_first", parameters="seed = None")
    chosen = choose_parameters(select_chapters(only=["01"]), overrides={"seed": 3})
    assert chosen == {"01_first": {"seed": 3}}
