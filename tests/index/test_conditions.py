from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index.conditions import matching

ROWS = pd.DataFrame(
    {
        "label": ["cat", "dog", "cat", "bird", "it's @home # 1", "cat"],
        "width": [100, 250, 300, 200, 7, 201],
        "height": [100, 100, 400, 50, 8, 50],
        "share": [0.5, float("nan"), 0.25, 1.0, -2.0, 0.0],
        "clean": [True, False, True, True, False, False],
    }
)


def found(where, rows=ROWS):
    mask = matching(rows, where)
    assert mask.dtype == bool and mask.shape == (len(rows),)
    return np.flatnonzero(mask).tolist()


# --- against Python itself, row by row

numbers = st.recursive(
    st.sampled_from(["width", "height", "share", "3", "-2.5", "200"]),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner) | inner.map("-{}".format),
    max_leaves=3,
)
compared = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
simple = st.one_of(
    st.builds("width {} {}".format, compared, numbers),
    st.builds("{} {} share".format, numbers, compared),
    st.builds("{} {} height {} {}".format, numbers, compared, compared, numbers),
    st.builds("label {} '{}'".format, compared, st.sampled_from(["cat", "dog", "cow", ""])),
    st.builds(
        "label {} {}".format, st.sampled_from(["in", "not in"]), st.sampled_from(["['cat']", "('dog', 3)", "[]"])
    ),
    st.builds("width + 1 {} {}".format, st.sampled_from(["in", "not in"]), st.sampled_from(["[101, 251]", "{-7, 8}"])),
    st.just("clean"),
)
conditions = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds("{} {} {}".format, inner, st.sampled_from(["and", "or"]), inner),
        st.builds("({}) {} ({})".format, inner, st.sampled_from(["and", "or"]), inner),
        inner.map("not {}".format),
        inner.map("not ({})".format),
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(conditions)
def test_any_condition_holds_where_python_says_so(where):
    rows = ROWS.to_dict("records")
    assert found(where) == [i for i, row in enumerate(rows) if eval(where, {"__builtins__": {}}, row)]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("label == 'cat' and width > 200", [2, 5]),
        ("width / height > 2 or width // 100 == 3", [1, 2, 3, 5]),
        ("width % 2 == 1", [4, 5]),
        ('label == "it\'s @home # 1"', [4]),
        ("  not clean ", [1, 4, 5]),
        ("clean == True and share != share", []),
        ("share != share", [1]),
        ("width > 99999999999999999999999999", []),
        ("label == 3", []),
    ],
)
def test_these_rows_are_found(where, expected):
    assert found(where) == expected


def test_missing_values_are_found_by_nothing_but_unlike_and_not_in():
    rows = pd.DataFrame({"label": ["a", None], "count": pd.array([1, None], dtype="Int64"), "share": [1.0, np.nan]})
    for name, value in (("label", "'a'"), ("share", "1")):
        assert found(f"{name} == {value}", rows) == found(f"{name} >= {value}", rows) == [0]
        assert found(f"{name} != {value}", rows) == found(f"{name} not in [{value}]", rows) == [1]
    assert found("count == 1", rows) == [0]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        *[("label == 1", [0, 3]), ("label != 1", [1, 2]), ("1 == label", [0, 3]), ("label in [1, 'x']", [0, 2, 3])],
        *[("label not in [1]", [1, 2]), ("width == '160'", [1]), ("width != '160'", [0, 2, 3])],
        *[("width < '20.5'", [0, 3]), ("width in ['160', 7]", [0, 1]), ("kind == 1", [0, 1]), ("mixed == 1", [0])],
        *[("mixed == 'a'", [1]), ("width == 160.0", [1]), ("label == -1", [])],
    ],
)
def test_text_and_numbers_are_compared_by_the_type_of_the_column(where, expected):
    rows = pd.DataFrame({"label": ["1", "2", "x", "1"], "width": [7, 160, 21, 20], "mixed": [1, "a", None, 2.5]})
    assert found(where, rows.assign(kind=pd.Categorical(["1", "1", "2", "2"]))) == expected


def test_categories_and_dates_are_compared_as_pandas_does():
    rows = pd.DataFrame({"kind": pd.Categorical(["a", "b"]), "taken": pd.to_datetime(["2020-01-01", "2021-05-05"])})
    assert found("kind == 'b'", rows) == found("kind in ['b', 'c']", rows) == [1]
    assert found("taken > '2020-06-30'", rows) == found("taken == '2021-05-05'", rows) == [1]


def test_columns_of_any_index_and_empty_frames_are_taken():
    assert found("width > 200", ROWS.set_index("height")) == [1, 2, 5]
    assert found("width > 200", ROWS.iloc[:0]) == []


# --- lists, parts of text, dates

WIDE = ROWS.assign(
    tags=[["red", "new"], [], None, ["redder"], np.array(["new", "3"], object), [3, 2.5]],
    taken=pd.to_datetime(
        ["2024-05-01", "2024-05-01 12:00:00.000001", None, "1969-01-01", "2030-01-01", "2024-06-01"], format="ISO8601"
    ),
)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        *[("'red' in tags", [0]), ("'red' not in tags", [1, 2, 3, 4, 5]), ("3 in tags", [4, 5]), ("2.5 in tags", [5])],
        *[("'a' in label", [0, 2, 5]), ("'A' in label", []), ("'' in label", [0, 1, 2, 3, 4, 5]), ("1 in label", [4])],
        *[("'og' not in label and not 'ca' in label", [3, 4]), ("'%' in label", []), ("'.' in label", [])],
        *[("taken == '2024-05-01'", [0]), ("taken > '2024-05-01 12:00'", [1, 4, 5]), ("taken < '1970-01-01'", [3])],
        *[("taken == '2024-05-01T02:00+02:00'", [0]), ("taken != '2024-05-01'", [1, 2, 3, 4, 5])],
        *[("'2024-01-01' <= taken < '2025'", [0, 1, 5]), ("taken in ['2030-01-01', '1969']", [3, 4])],
        *[("taken == taken", [0, 1, 3, 4, 5]), ("taken != taken", [2]), ("not taken > '2020-01-01'", [2, 3])],
    ],
)
def test_lists_hold_elements_texts_hold_parts_and_dates_have_an_order(where, expected):
    assert found(where, WIDE) == found(where, WIDE.assign(taken=WIDE["taken"].dt.tz_localize("UTC"))) == expected


@pytest.mark.parametrize("name", ["label", "count", "share", "clean", "kind"])
def test_a_missing_value_meets_not_and_unlike_whatever_holds_the_column(name):
    rows = pd.DataFrame({"label": ["a", None], "count": pd.array([1, None], dtype="Int64"), "share": [1.0, np.nan]})
    rows["clean"], rows["kind"] = pd.array([True, None], "boolean"), pd.Categorical(["1", None])
    value = "'a'" if name == "label" else 1
    assert found(f"{name} == {value}", rows) == found(f"{name} in [{value}]", rows) == [0]
    assert found(f"not {name} == {value}", rows) == found(f"{name} != {value}", rows) == [1]
    assert found(f"{name} not in [{value}]", rows) == found(f"{name} != {name}", rows) == [1]
    assert found(f"{name} == {name}", rows) == [0]


def test_columns_of_objects_count_as_what_they_hold():
    rows = pd.DataFrame({"price": [1, None, 2.5], "clean": [True, None, False]}, dtype=object)
    rows["day"] = [date(2024, 5, 1), None, date(2025, 1, 1)]
    assert (found("price > 2", rows), found("price / 0 > 2 or price // 0 < 9", rows)) == ([2], [])
    assert (found("clean", rows), found("clean < 1", rows), found("day > '2024-12-31'", rows)) == ([0], [2], [2])


# --- what is refused

CODE = [
    "__import__('os').mkdir('harm')",
    "label.str.contains('a')",
    "label.__class__ == 1",
    "width.pipe(print)",
    "len(label) > 2",
    "width[0] == 100",
    "[x for x in label]",
    "(lambda: clean)()",
    "(width := 3) > 2",
    "clean if clean else clean",
    "f'{label}' == 'cat'",
]
MEANINGLESS = [
    *("width", "label", "'cat'", "1 < 2", "width + 1", "not width", "clean and width", "width == (width > 2)"),
    *("width ** 2 > 9", "(width > 2) & clean", "~clean", "width & 1 == 1", "+width > 2", "width @ width > 1"),
    *("label is 'cat'", "label in 'cat'", "width in [height]", "3 in [3]", "width in [[1]]"),
    *("label == None", "label == b'cat'", "width == 1j", "label == ['cat', 'dog']", "width == ..."),
    *("label * 9 == 'cat'", "'a' * 9 == label", "'%9d' % width == label", "-label == 'a'", "label + 'x' == 'catx'"),
]
UNREADABLE = ["", "label ==", "label = 'cat'", "@ROWS", "`label` == 'cat'", "import os", "\0", "(" * 300, "width > 08"]


@pytest.mark.parametrize("where", CODE + MEANINGLESS)
def test_whatever_is_no_condition_is_refused_with_an_example(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"means nothing here|not a column of numbers"):
        matching(ROWS, where)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", UNREADABLE)
def test_what_cannot_be_read_is_refused_with_an_example(where):
    with pytest.raises(ValueError, match="cannot be read"):
        matching(ROWS, where)


@pytest.mark.parametrize("where", ["colour == 'red'", "clean and __builtins__ == 1", "width > ROWS", "share > nan"])
def test_an_unknown_column_names_those_there_are(where):
    with pytest.raises(ValueError, match=r"no column '\w+'; the columns are label, width, height, share, clean\.$"):
        matching(ROWS, where)


@pytest.mark.parametrize(
    "where",
    [
        "label > 3",
        "width < 'cat'",
        "width == 'wide'",
        "label in [3] and clean == 'True'",
        "width == label",
        "1 // 0 < width",
        "1e999 > width",
        f"width + {10**400} > 0",
        f"{10**400} == width",
        "'3' in width",
        "True in clean",
        "tags == 'red'",
        "tags in ['red']",
        "tags == tags",
        "taken > 5",
        "taken == 'soon'",
        "taken == ''",
        "taken == label",
    ],
)
def test_what_does_not_compare_is_refused(where):
    with pytest.raises(ValueError, match="cannot be"):
        matching(WIDE, where)


@pytest.mark.parametrize(
    ("where", "number"),
    [
        *[("not " * 500 + "clean", "2,005"), ("-" * 1_993 + "1 < width", "2,002"), ("x" * 10**7, "10,000,000")],
        *[("+".join(["width"] * 100) + " > 1", "201"), (f"width in [{'1,' * 198}]", "201")],
        ("not " * 200 + "clean", "201"),
    ],
)
def test_endless_conditions_are_refused(where, number):
    with pytest.raises(ArgumentError, match=rf"^where has {number} .* at most 2"):
        matching(ROWS, where)


@pytest.mark.parametrize(
    "where",
    ["not " * 199 + "clean", "+".join(["width"] * 99) + " > 1", f"width in [{'1,' * 197}]", "-" * 197 + "1 < width"],
)
def test_conditions_up_to_the_limit_are_read(where):
    assert matching(ROWS, where).shape == (6,)


@pytest.mark.parametrize("where", [r"label == 'a\0'", r"'\ud800' in label", r"label in ['x', '\0']"])
def test_text_that_no_database_takes_is_refused(where):
    with pytest.raises(ArgumentError, match="Unicode"):
        matching(ROWS, where)


@pytest.mark.parametrize("where", ["(width % 7 + 1) % 3 == 1", "width // 2 // 2 == 1", "3 % (width // 2) == 1"])
def test_remainders_of_remainders_are_refused(where):
    with pytest.raises(ArgumentError, match="%"):
        matching(ROWS, where)
