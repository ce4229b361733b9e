import pytest
from makers.folders import ENCODER, save_classes, save_encoder_of_pixels, save_photographs
from makers.networks import SQUEEZENET
from typer.testing import CliRunner

from rectrio_lib.cli import info
from rectrio_lib.cli.app import app
from rectrio_lib.cli.output import program
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.search.collection import Collection


@pytest.fixture
def there(tmp_path):
    """Two indexes, one of them by a stand-in."""
    save_encoder_of_pixels()
    Collection.build(save_classes(tmp_path / "pets"), ENCODER)
    Collection.build(save_photographs(tmp_path / "few", range(3)), SQUEEZENET, allow_random_weights=True)
    return tmp_path


def test_everything_is_listed_with_counts_kind_recall_folder_and_weights(there):
    tables = info.overview()
    indexes = {row["name"]: row for row in tables["Indexes"]}
    assert {n: (r["images"], r["kind"], r["recall"], r["encoder"]) for n, r in indexes.items()} == {
        "few": (3, "flat", "exact", "torchvision-squeezenet1_0"),
        "pets": (12, "flat", "exact", ENCODER),
    }
    assert indexes["pets"]["folder"] == str((there / "pets").resolve())
    for title in tables:
        weights = {row["stand-in"] for row in tables[title] if "squeezenet" in str(row) or row["name"] == "few"}
        assert weights == {"random weights"}
        assert {row["stand-in"] for row in tables[title]} == {"random weights", "no"}
    stores = {row["name"]: (row["images"], row["length"], row["state"]) for row in tables["Embedding stores"]}
    assert stores[f"{ENCODER}--pets"] == (12, 192, "complete")


def test_sizes_are_those_on_disk(there):
    folder = Workspace().outputs / "encoders" / "torchvision-squeezenet1_0"
    size = sum(path.stat().st_size for path in folder.iterdir())
    (row,) = [row for row in info.overview()["Encoders"] if row["name"] == folder.name]
    assert row["size"] == f"{size / 1e6:.1f} MB" and size > 2e6
    assert row["kind"] == "torchvision:squeezenet1_0"


def test_a_name_chooses_what_belongs_to_it_and_tells_the_columns(there):
    tables = info.overview("pets")
    assert {title: [row["name"] for row in rows] for title, rows in tables.items()} == {
        "Indexes": ["pets"],
        "Embedding stores": [f"{ENCODER}--pets"],
        "Encoders": [ENCODER],
    }
    assert tables["Indexes"][0]["columns"] == "image_id, path, label, split, width, height"
    assert [row["name"] for row in info.overview(ENCODER)["Encoders"]] == [ENCODER]


def test_an_unknown_name_is_told_with_those_that_there_are(there):
    with pytest.raises(ValueError, match=r"'cars'.* few, pets, pixels"):
        info.overview("cars")


def test_nothing_is_listed_where_nothing_is():
    assert info.overview() == {"Indexes": [], "Embedding stores": [], "Encoders": []}
    with pytest.raises(ValueError, match="there is nothing yet"):
        info.overview("cars")


def test_a_damaged_index_is_listed_with_a_remark_and_an_unfinished_one_is_not(there):
    home = Workspace().outputs / "indexes"
    (home / "pets" / "card.json").write_text('{"kind": "flat"', encoding="utf-8")
    (home / "few").rename(home / "few.old")
    (row,) = info.overview()["Indexes"]
    assert row["name"] == "pets" and "damaged" in row["remark"]


def test_where_nothing_is_the_next_command_is_told():
    next_line = CliRunner().invoke(app, ["info"]).stdout.splitlines()[-1]
    assert next_line.split() == ["Next", *program().split(), "index", "FOLDER"]
