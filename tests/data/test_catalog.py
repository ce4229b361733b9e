import pandas as pd
import pytest
from makers.images import pictures, save_classes

from rectrio_lib.core.errors import DataError, StorageError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import catalog, dataset, readers, synthetic


@pytest.fixture
def few_shapes(monkeypatch):
    """Draw three objects a class where a data set would draw hundreds."""
    draw = synthetic.draw_shapes
    monkeypatch.setattr(synthetic, "draw_shapes", lambda count, **options: draw(3, **options))


def test_stand_in_says_what_it_is_and_keeps_an_object_in_one_split(few_shapes):
    data, ledger = dataset.prepare(source="stand-in", size=20, channels=3, seed=4, val_fraction=0.2)
    assert data.stand_in and data.generated_images
    assert data.source.startswith("STAND-IN")
    assert data.classes == tuple(synthetic.SHAPES)
    assert data.pixels.shape == (120, 3, 20, 20)
    assert data.manifest.groupby("group")["split"].nunique().eq(1).all()
    assert (data.manifest.groupby("group").size() == 4).all()
    assert data.targets.min() == 0
    assert ledger.empty
    assert data.hash == dataset.prepare(source="stand-in", size=20, channels=3, seed=4, val_fraction=0.2)[0].hash
    assert data.hash != dataset.prepare(source="stand-in", size=20, channels=3, seed=5, val_fraction=0.2)[0].hash


def test_auto_without_data_and_offline_announces_the_stand_in_in_one_line(few_shapes, monkeypatch, caplog):
    monkeypatch.setattr(catalog, "download_fashion_mnist", lambda folder: pytest.fail("downloads although offline"))
    assert dataset.prepare(val_fraction=0.2)[0].stand_in
    (line,) = caplog.messages
    assert line.startswith("STAND-IN: ")
    assert "RECTRIO_OFFLINE=1" in line


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("has another checksum")])
def test_auto_falls_to_the_stand_in_when_the_download_fails_and_says_why_in_one_line(
    few_shapes, monkeypatch, caplog, error
):
    def fail(folder):
        raise error

    monkeypatch.setenv("RECTRIO_OFFLINE", "0")
    monkeypatch.setattr(catalog, "download_fashion_mnist", fail)
    assert dataset.prepare(val_fraction=0.2)[0].stand_in
    (line,) = caplog.messages
    assert line.startswith("STAND-IN: ")
    assert f"the download failed ({error})" in line


def test_auto_takes_no_stand_in_where_the_disk_takes_no_download(monkeypatch):
    def fail(folder):
        raise StorageError("no space left")

    monkeypatch.setenv("RECTRIO_OFFLINE", "0")
    monkeypatch.setattr(catalog, "download_fashion_mnist", fail)
    with pytest.raises(StorageError):
        dataset.prepare(val_fraction=0.2)


def test_auto_reads_what_it_downloads(monkeypatch):
    read_from = []

    def read_idx(folder, classes, md5):
        read_from.append((folder, md5))
        return pictures(40), pd.DataFrame({"label": ["Bag", "Coat"] * 20, "split": ["train"] * 40}), pd.DataFrame()

    monkeypatch.setenv("RECTRIO_OFFLINE", "0")
    monkeypatch.setattr(catalog, "download_fashion_mnist", lambda folder: None)
    monkeypatch.setattr(readers, "read_idx", read_idx)
    data, _ = dataset.prepare()
    assert read_from == [(Workspace().data / "fashion_mnist", catalog.official_md5())]
    assert not data.stand_in
    assert data.classes == catalog.FASHION_CLASSES


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("train-images-idx3-ubyte.gz", r"train-images-idx3-ubyte\.gz is truncated"),
        ("t10k-labels-idx1-ubyte.gz", r"train-images-idx3-ubyte\.gz is missing"),
        ("fashion-mnist_train.csv", r"fashion-mnist_train\.csv cannot be read as CSV"),
        ("fashion-mnist_test.csv", r"fashion-mnist_train\.csv is missing"),
    ],
)
@pytest.mark.parametrize("place", catalog.FASHION_FOLDERS)
def test_damaged_or_half_present_files_are_an_error_and_never_a_stand_in(capsys, place, name, sentence):
    home = Workspace().data / place
    home.mkdir(parents=True)
    (home / name).write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(DataError, match=sentence):
        dataset.prepare()
    assert capsys.readouterr().out == ""


def test_picture_folder_of_ones_own_is_found_below_the_data_folder_by_its_name():
    save_classes(Workspace().data / "pets", ["cat", "dog"] * 30)
    data, ledger = dataset.prepare("pets", size=6)
    assert (data.name, data.source, data.classes, data.stand_in) == ("pets", "folder files", ("cat", "dog"), False)
    assert set(data.manifest["split"]) == {"train", "val", "test"}
    assert set(data.targets) == {0, 1}
    assert ledger.empty


# --- Animals-10


@pytest.mark.parametrize("place", ["animals10/raw-img", "animals10"])
def test_italian_folders_are_found_in_both_places_and_shown_in_english(place):
    save_classes(Workspace().data / place, sorted(catalog.ANIMALS_FOLDERS) * 8)
    (Workspace().data / "animals10" / "notes.txt").touch()
    data, _ = dataset.prepare("animals10", size=6)
    assert not data.stand_in
    assert " ".join(data.classes) == "butterfly cat chicken cow dog elephant horse sheep spider squirrel"
    paired = dict(zip(data.manifest["path"].str.partition("/")[0], data.manifest["label"], strict=True))
    assert paired == catalog.ANIMALS_FOLDERS
    assert (paired["cane"], paired["gatto"], paired["pecora"], paired["ragno"]) == ("dog", "cat", "sheep", "spider")


def test_animals_without_data_and_offline_are_drawn_in_colour_sixty_objects_a_class(monkeypatch, caplog):
    asked = []

    def draw(count, views, **options):
        asked.append((count, views))
        return few(2, views=views, **options)

    few = synthetic.draw_shapes
    monkeypatch.setattr(synthetic, "draw_shapes", draw)
    data, _ = dataset.prepare("animals10", size=64, channels=3, test_pattern="^a10_", test_fraction=0.5, val_fraction=0)
    assert asked == [(60, 4)]
    assert data.stand_in
    assert data.pixels.shape == (80, 3, 64, 64)
    assert (data.manifest.groupby("group").size() == 4).all()
    (line,) = caplog.messages
    assert line.startswith("STAND-IN: ")
    assert "Animals-10" in line


@pytest.mark.parametrize("leftover", [None, "animals10/archive.zip", "animals10/raw-img/"])
def test_animals_are_downloaded_to_the_first_place_whatever_lies_there(monkeypatch, leftover):
    if leftover:
        path = Workspace().data / leftover
        path.parent.mkdir(parents=True)
        path.mkdir() if leftover.endswith("/") else path.touch()
    monkeypatch.setenv("RECTRIO_OFFLINE", "0")
    monkeypatch.setattr(catalog, "download_animals10", lambda folder: save_classes(folder, ["cane", "gatto"] * 9))
    data, _ = dataset.prepare("animals10", size=6)
    assert (data.classes, data.source) == (("cat", "dog"), "folder files")
    assert (Workspace().data / "animals10" / "raw-img" / "cane").is_dir()
