import base64
import shutil
from dataclasses import replace
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
from makers.folders import ENCODER, save_classes, save_encoder_of_pixels
from makers.images import photograph
from makers.walls import tiles
from PIL import Image

from rectrio_lib.report import contents, grids
from rectrio_lib.search import results
from rectrio_lib.search.collection import Collection


@pytest.fixture
def gallery(tmp_path):
    save_encoder_of_pixels()
    return Collection.build(save_classes(tmp_path / "pets"), ENCODER)


def opened(address):
    kind, _, data = address.partition(";base64,")
    picture = Image.open(BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{picture.format.lower()}"
    return picture


def test_thumbnails_are_the_pictures_in_small_and_empty_where_there_is_none(gallery):
    (gallery.folder / "broken.png").write_bytes(b"no picture")
    paths = ["cat/02.png", "dog/50.png", "broken.png", "gone.png", "cat/02.png"]
    found = results.thumbnails(gallery.folder, paths, 24)
    assert list(found) == paths[:4]
    assert (found["broken.png"], found["gone.png"]) == ("", "")
    for path, seed in (("cat/02.png", 2), ("dog/50.png", 50)):
        shown = np.asarray(opened(found[path]), int)
        expected = np.asarray(photograph(seed).resize((24, 24), Image.Resampling.BICUBIC), int)
        assert shown.shape == (24, 24, 3) and np.abs(shown - expected).mean() < 25


def test_a_figure_becomes_an_address_and_is_closed():
    figure = grids.example_grid({"ant": np.zeros((1, 3, 8, 8), np.uint8)})
    assert min(opened(contents.figure_address(figure)).size) > 20
    assert not plt.fignum_exists(figure.number)


def captions(wall, line):
    return [tile["caption"] for place, tile in sorted(wall.items()) if place[0] == line]


def test_a_grid_shows_questions_and_answers_with_their_labels_and_leaves_missing_places_empty(gallery):
    asked = ["cat/00.png", "dog/51.png"]
    wall = tiles(grids.answer_grid(gallery, asked, gallery.search(asked, k=8, where="label == 'dog'")))
    (first, *found), (second, *hits) = captions(wall, 0), captions(wall, 1)
    assert (first, second, len(found), len(hits)) == ("cat", "dog", 6, 5)
    assert all(caption.startswith("dog 0.") for caption in found)
    assert all(caption.startswith(("0.", "1.")) for caption in hits)


def test_a_grid_shows_the_pixels_of_the_files(gallery, tmp_path):
    file = shutil.copy(gallery.folder / "cat" / "03.png", tmp_path)
    wall = tiles(grids.answer_grid(gallery, [file], gallery.search(file, k=1)))
    expected = np.asarray(photograph(3).resize((grids.GRID_SIDE,) * 2, Image.Resampling.BICUBIC), int)
    for tile in wall.values():
        (pixels,) = tile["arrays"]
        assert np.abs(np.asarray(pixels, int) - expected).max() <= 2
    assert len(wall) == 2 and wall[0, 0]["caption"] == ""


def test_a_file_from_elsewhere_has_no_label_and_an_answer_that_is_gone_is_white(gallery, tmp_path):
    stranger = tmp_path / "stranger.png"
    photograph(3).save(stranger)
    (gallery.folder / "cat" / "03.png").unlink()
    wall = tiles(grids.answer_grid(gallery, [stranger], gallery.search(stranger, k=2)))
    assert captions(wall, 0)[:2] == ["", "cat 1.00"]
    assert (np.asarray(wall[0, 1]["arrays"][0]) == 255).all()
    assert [wall[0, column]["frame"] for column in (1, 2)] == [None, None]


def test_of_a_combined_question_the_first_picture_is_shown(gallery):
    asked = ["cat/00.png", "cat/01.png"]
    wall = tiles(grids.answer_grid(gallery, asked, gallery.search(asked, k=2, combine=True)))
    assert wall.keys() == {(0, 0), (0, 1), (0, 2)}


def test_of_questions_in_words_the_words_stand_above_and_no_picture_is_shown(gallery):
    by_picture = gallery.search(["cat/00.png", "dog/51.png"], k=2)
    figure = grids.answer_grid(gallery, [], replace(by_picture, query_ids=["a cat", "a dog " * 20]))
    above, wall = figure.axes[0].get_title(), tiles(figure)
    assert above.splitlines()[0] == "a cat" and above.endswith("…")
    assert len(wall) == 6 and wall[0, 0]["caption"] == ""
    assert (np.asarray(wall[0, 0]["arrays"][0]) == 255).all()
