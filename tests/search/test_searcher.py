import math
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.data.synthetic import draw_shapes
from rectrio_lib.encoders import registry
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.convnet import ConvNet
from rectrio_lib.encoders.registry import fingerprint
from rectrio_lib.index.index import Index
from rectrio_lib.search.results import Results
from rectrio_lib.search.searcher import Searcher, search_vectors

SIZE = 16


def drawn(channels):
    pixels, frame = draw_shapes(4, views=1, size=SIZE, channels=channels)
    rows = pd.DataFrame({"image_id": [f"p{i}" for i in range(len(pixels))], "label": frame["label"]})
    return pixels, rows


def gallery(channels=1, kind="flat"):
    encoder = RawPixels(channels, SIZE)
    pixels, rows = drawn(channels)
    return Index.build(kind, encoder.encode(pixels), rows, fingerprint(encoder)), encoder, pixels


@pytest.fixture
def results():
    rows = pd.DataFrame({"image_id": ["a", "b", "c"], "label": ["x", "y", "z"]})
    scores = np.array([[0.9, 0.5], [0.8, 0.1]], np.float32)
    return Results(["q1", "q2"], scores, np.array([[2, 0], [1, 2]]), rows)


def test_a_frame_has_one_row_an_answer_with_query_rank_score_and_metadata(results):
    expected = pd.DataFrame(
        {
            "query": ["q1", "q1", "q2", "q2"],
            "rank": [1, 2, 1, 2],
            "score": np.array([0.9, 0.5, 0.8, 0.1], np.float32),
            "image_id": ["c", "a", "b", "c"],
            "label": ["z", "x", "y", "z"],
        }
    )
    pd.testing.assert_frame_equal(results.frame(), expected, check_dtype=False)
    assert len(results) == 2


def test_a_column_has_the_answers_shape(results):
    assert results.column("label").tolist() == [["z", "x"], ["y", "z"]]
    with pytest.raises(KeyError, match="colour"):
        results.column("colour")


def test_empty_places_are_nan_in_a_column_and_left_out_of_a_frame():
    rows = pd.DataFrame({"image_id": ["a", "b"], "number": [1, 2]})
    scores, positions = np.array([[0.9, np.nan], [np.nan, np.nan]], np.float32), np.array([[1, -1], [-1, -1]])
    results = Results(["q1", "q2"], scores, positions, rows)
    assert results.frame()[["query", "rank", "image_id", "number"]].to_numpy().tolist() == [["q1", 1, "b", 2]]
    assert results.frame()["number"].dtype == np.int64
    np.testing.assert_array_equal(results.column("number"), [[2, np.nan], [np.nan, np.nan]])
    assert results.column("image_id")[0, 0] == "b" and pd.isna(results.column("image_id")).sum() == 3
    none = Results(["q1", "q2"], scores[[1, 1]], positions[[1, 1]], rows.iloc[:0])
    assert none.frame().columns.tolist() == ["query", "rank", "score", "image_id", "number"] and none.frame().empty
    assert pd.isna(none.column("image_id")).all() and none.column("image_id").shape == (2, 2)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_pictures_of_the_gallery_find_themselves_first(kind):
    index, encoder, pixels = gallery(kind=kind)
    found = Searcher(index, encoder).search(pixels, k=3)
    assert found.column("image_id")[:, 0].tolist() == index.rows["image_id"].tolist()
    np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-3)
    assert found.positions.shape == found.scores.shape == (len(pixels), 3)


def test_what_is_neither_image_nor_text_is_refused():
    index, encoder, pixels = gallery()
    searcher = Searcher(index, encoder)
    for wrong, named in ((pixels[0] / 255, "float64"), ([pixels[0] / 255], "float64"), (3, "int"), ([None], "None")):
        with pytest.raises(ArgumentError, match=named):
            searcher.search(wrong)
    for text in (3, ["shoe", 3]):
        with pytest.raises(ArgumentError, match="3"):
            searcher.search(text=text)
    assert len(searcher.search(pd.Series(["p1", "p2"]), k=1)) == 2


def test_arrays_are_numbered():
    index, encoder, pixels = gallery()
    assert Searcher(index, encoder).search(pixels[:3], k=2).query_ids == ["0", "1", "2"]


def test_metadata_called_like_the_columns_of_a_frame_is_kept_under_another_name():
    rows = pd.DataFrame({"image_id": ["a", "b"], "score": [7, 8], "rank": ["x", "y"], "query": [1.5, 2.5]})
    vectors = np.eye(2, dtype=np.float32)
    found = Searcher(Index.build("flat", vectors, rows, "")).search("a", where="score > 7 and query == 2.5")
    (row,) = found.frame().to_dict("records")
    assert (row["query"], row["rank"], row["score"]) == ("a", 1, pytest.approx(0))
    assert (row["score_metadata"], row["rank_metadata"], row["query_metadata"]) == (8, "y", 2.5)
    assert found.column("score").ravel()[0] == 8


def test_answers_keep_their_metadata_when_the_index_changes_afterwards():
    index, encoder, pixels = gallery()
    found = Searcher(index, encoder).search(pixels[30:33], k=1)
    before = found.frame()
    index.remove([f"p{i}" for i in range(20)])
    assert len(index.rows) == 20
    pd.testing.assert_frame_equal(found.frame(), before)


def test_removed_pictures_are_no_answers():
    index, encoder, pixels = gallery()
    index.remove(["p5"])
    assert "p5" not in Searcher(index, encoder).search(pixels[5:6], k=39).column("image_id")


def test_vectors_are_trusted_unless_their_encoder_is_told():
    index, encoder, pixels = gallery()
    vectors = encoder.encode(pixels[:2])
    assert search_vectors(index, vectors, 1).column("image_id").tolist() == [["p0"], ["p1"]]
    with pytest.raises(ValueError, match="the query was made by encoder xyz"):
        search_vectors(index, vectors, 1, encoder_hash="xyz")


@pytest.mark.parametrize(
    "other", [ConvNet(1, SIZE, (4,), SIZE * SIZE), ConvNet(1, SIZE, (4,), 8)], ids=["same", "shorter"]
)
def test_pictures_seen_by_another_encoder_are_refused_with_both_named(other):
    index, encoder, pixels = gallery()
    sentence = f"built with encoder {fingerprint(encoder)}, the query was made by encoder {fingerprint(other)}"
    with pytest.raises(ValueError, match=sentence):
        Searcher(index, other).search(pixels[:1], k=1)


def test_more_answers_than_pictures_leave_places_empty():
    index, encoder, pixels = gallery()
    found = Searcher(index, encoder).search(pixels[:1], k=50)
    assert sorted(found.positions[0, :40].tolist()) == list(range(40))
    assert found.positions[0, 40:].tolist() == [-1] * 10


def test_the_encoder_is_checked_once(monkeypatch):
    index, encoder, pixels = gallery()
    calls = []
    monkeypatch.setattr(registry, "fingerprint", lambda encoder: calls.append(encoder) or index.encoder_hash)
    searcher = Searcher(index, encoder)
    assert [searcher.search(pixels[i], k=1).positions.tolist() for i in range(3)] == [[[0]], [[1]], [[2]]]
    assert calls == [encoder]


def test_without_an_encoder_image_ids_are_searched_for_and_nothing_else():
    index, _, pixels = gallery()
    assert Searcher(index).search("p3", k=2).positions.shape == (1, 2)
    for query in ({"images": pixels[0]}, {"text": "red"}):
        with pytest.raises(ArgumentError, match="encoder"):
            Searcher(index).search(**query)


def test_an_image_of_the_index_is_not_a_result_of_its_own_query_nor_part_of_a_mix():
    index, encoder, pixels = gallery()
    found = Searcher(index, encoder).search(["p3", pixels[3]], k=39)
    assert found.query_ids == ["p3", "image 1"]
    assert 3 not in found.positions[0] and found.positions[1, 0] == 3
    mixed = Searcher(index, encoder).search(["p3", "p4"], weights=[1, 2], k=40)
    assert mixed.query_ids == ["+1 p3 +2 p4"] and not {3, 4} & set(mixed.positions[0])


@pytest.mark.parametrize("k", ["5", 2.5, 0, -1, None])
def test_k_must_be_a_whole_number(k):
    index, encoder, pixels = gallery()
    with pytest.raises(ArgumentError, match="k="):
        Searcher(index, encoder).search(pixels[0], k=k)


def test_nothing_to_search_for_and_wrong_weights_are_refused():
    searcher = Searcher(*gallery()[:2])
    for query in ({}, {"images": ["p1"], "weights": [1, 2]}, {"images": ["p1", "nothing"]}):
        with pytest.raises(ArgumentError):
            searcher.search(**query)


@pytest.mark.parametrize("weights", [["a"], [1, "2"], ["1"], [None], [True], {"a": 1}, [[1], [1, 2]], [math.nan]])
def test_weights_must_be_numbers(weights):
    with pytest.raises(ArgumentError, match="weights="):
        Searcher(*gallery()[:2]).search(["p1", "p2"], weights=weights)


@pytest.mark.parametrize("weights", [(1, 2), np.array([1.0, 2.0]), [np.float32(1), np.int64(2)], pd.Series([1, 2])])
def test_weights_may_be_numbers_of_any_kind(weights):
    found = Searcher(*gallery()[:2]).search(["p1", "p2"], weights=weights)
    assert found.query_ids == ["+1 p1 +2 p2"]


def test_pictures_of_another_size_are_refused():
    index, encoder, _ = gallery()
    with pytest.raises(ValueError, match="takes images of shape"):
        Searcher(index, encoder).search(np.zeros((1, 1, SIZE + 1, SIZE), np.uint8), k=1)


# --- picture files


def write_picture(path, picture, mode, factor=1):
    image = Image.fromarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)).convert(mode)
    image.resize((SIZE * factor, SIZE * factor), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (1, "RGB"), (1, "RGBA"), (3, "RGB"), (3, "RGBA")])
@pytest.mark.parametrize("factor", [1, 3])
def test_a_file_of_another_size_and_other_colours_finds_its_picture_first(tmp_path, channels, mode, factor):
    index, encoder, pixels = gallery(channels)
    paths = [write_picture(tmp_path / f"{i}.png", pixels[i], mode, factor) for i in range(0, 40, 3)]
    found = Searcher(index, encoder).search(paths, k=2)
    assert found.column("image_id")[:, 0].tolist() == [f"p{i}" for i in range(0, 40, 3)]
    assert (found.scores[:, 0] > 0.98).all()
    assert found.query_ids == [str(path) for path in paths]


def test_a_colour_file_is_looked_at_in_grey_by_a_grey_encoder(tmp_path):
    index, encoder, _ = gallery()
    colours, _ = drawn(3)
    paths = [str(write_picture(tmp_path / f"{i}.png", colours[i], "RGB")) for i in range(0, 40, 5)]
    assert Searcher(index, encoder).search(paths, k=1).column("image_id")[:, 0].tolist() == [
        f"p{i}" for i in range(0, 40, 5)
    ]


@pytest.mark.parametrize("content", [b"no picture", b""], ids=["text", "empty"])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    index, encoder, pixels = gallery()
    good, bad = write_picture(tmp_path / "good.png", pixels[0], "L"), tmp_path / "bad.png"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(bad))):
        Searcher(index, encoder).search([good, bad], k=1)


def test_a_cut_picture_file_is_named(tmp_path):
    index, encoder, pixels = gallery()
    path = write_picture(tmp_path / "cut.png", pixels[0], "L", factor=9)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"cut\.png"):
        Searcher(index, encoder).search([path], k=1)


def test_files_are_searched_with_every_option(tmp_path):
    index, encoder, pixels = gallery()
    paths = [write_picture(tmp_path / f"{i}.png", pixels[i], "L") for i in (0, 4)]
    label = index.rows["label"][4]
    found = Searcher(index, encoder).search(paths, k=99, where=f"label == '{label}'", minimum=-1.0)
    assert (index.rows["label"] == label).sum() == (found.positions[0] >= 0).sum() < 40
    assert found.positions[1, 0] == 4 and set(found.frame()["label"]) == {label}
    assert len(Searcher(index, encoder).search(paths, k=3, combine=True)) == 1
    assert Searcher(index, encoder).search([], k=3).positions.shape == (0, 3)
