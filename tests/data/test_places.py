"""Places of images: what they list and open, in this process and in another one."""

import pickle

import pytest
from makers.stores import save_pictures

from rectrio_lib.core.errors import DataError
from rectrio_lib.data import image_files
from rectrio_lib.data.places.place import place_of


@pytest.fixture
def folder(tmp_path):
    return save_pictures(tmp_path / "toys", range(4))


def test_a_folder_is_a_place_that_opens_what_it_lists_after_pickling_too(folder):
    place = place_of(str(folder))
    assert (place.uri, place.name, place.there()) == (str(folder), "toys", True)
    assert place.list().equals(image_files.list_images(folder))
    again = pickle.loads(pickle.dumps(place))
    for path in place.list()["path"]:
        direct, placed = (image_files.read_image(where, path, 8, 3) for where in (folder, again))
        assert direct[:5] == placed[:5] and (direct.pixels == placed.pixels).all()
        assert again.address(path) == (folder / path).as_uri()
    assert place_of(again) is again


def test_a_folder_that_is_not_there_is_said_so(tmp_path):
    place = place_of(tmp_path / "none")
    assert not place.there()
    with pytest.raises(DataError, match="none is not a folder"):
        place.list()
