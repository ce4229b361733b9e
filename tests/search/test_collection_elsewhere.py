"""A collection whose images lie on S3, or there in archives: built, searched, shown, served, changed."""

import json
import shutil

import pytest
from makers import commands
from makers.folders import ENCODER, save_photographs
from makers.pages import Page
from makers.remote import SECRET, put, s3, s3_server, shard  # noqa: F401
from PIL import Image

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.search import building
from rectrio_lib.search.collection import Collection

pytestmark = pytest.mark.slow


@pytest.fixture(params=["folder", "shards"])
def address(request, s3, folder):  # noqa: F811
    """Return the address of twelve photographs on S3; `folder` holds the same."""
    if request.param == "folder":
        put(s3, folder, "shop/pets")
        return "s3://shop/pets"
    for label in ("cat", "dog"):
        images = {f"{label}/{file.stem}": file.read_bytes() for file in sorted((folder / label).glob("*.png"))}
        s3.pipe(f"shop/pets/{label}.tar", shard(images, label=label))
    return "s3://shop/pets"


def rectrio(*arguments):
    result = commands.rectrio(*arguments)
    assert result.exit_code == 0, result.output
    assert SECRET not in result.output
    return result.stdout


def data_uris(html):
    return html.count("data:image/jpeg;base64,")


def test_it_finds_and_shows_what_the_same_folder_here_does(address, tmp_path):
    shop = Collection.build(address, ENCODER)
    Collection.build(tmp_path / "pets", ENCODER, name="here")
    assert (shop.name, shop.uri, shop.folder, len(shop.index)) == ("pets", address, None, 12)
    query = shutil.copy(tmp_path / "pets" / "cat" / "01.png", tmp_path / "query.png")
    found, wanted = (Collection.open(name).search(query, k=6) for name in ("pets", "here"))
    assert found.frame()["image_id"].tolist() == wanted.frame()["image_id"].tolist()
    assert found.frame()["label"].tolist() == wanted.frame()["label"].tolist()
    assert data_uris(found._repr_html_()) == data_uris(wanted._repr_html_()) == 6
    own = shop.search(found.frame()["path"][0], k=3)  # an image of the collection, by its path
    assert len(own) == 1 and shop.located(own.query_ids[0])[0] == shop.place
    card = (Workspace().path("indexes", "pets") / "card.json").read_text(encoding="utf-8")
    assert json.loads(card)["made_from"]["folder"] == address and SECRET not in card
    assert shop.calibrate().encoder_hash == shop.index.encoder_hash


def test_objects_that_come_change_and_go_update_the_index(s3, folder, tmp_path):  # noqa: F811
    put(s3, folder, "shop/pets")
    first = rectrio("index", "s3://shop/pets", "--encoder", ENCODER)
    assert "12 of 12 embedded" in first and "s3://shop/pets" not in first.partition("Next")[2]
    s3.rm("shop/pets/cat/01.png")
    put(s3, save_photographs(tmp_path / "more", [90], "bird"), "shop/pets")
    again = rectrio("index", "s3://shop/pets")
    assert "1 of 12 embedded" in again and "1 deleted" in again
    rows = Collection.open("pets").index.rows
    assert {"bird/90.png"} < set(rows["path"]) and "cat/01.png" not in set(rows["path"])


def test_the_commands_take_an_address(address, tmp_path):
    said = rectrio("embed", address, "--encoder", ENCODER)
    assert f"index {address} --encoder {ENCODER}" in said
    rectrio("index", address, "--encoder", ENCODER)
    query = tmp_path / "pets" / "dog" / "50.png"
    said = rectrio("search", query, "--index", "pets", "--show", tmp_path / "shown.png")
    assert f"Paths are below {address}" in said
    with Image.open(tmp_path / "shown.png", formats=["PNG"]) as shown:
        assert len(set(shown.convert("RGB").resize((64, 64)).tobytes())) > 100, "photographs, not white squares"
    told = json.loads(rectrio("search", query, "--json"))
    assert told["folder"] == address
    shutil.rmtree(tmp_path / "outputs" / "embeddings")
    assert rectrio("info", "pets").count(address) >= 1


def test_build_reports_without_training_and_says_why(address, monkeypatch):
    monkeypatch.setattr(building, "BACKBONE", ENCODER)
    rectrio("build", address)
    page = Page((Workspace().outputs / "reports" / "pets" / "index.html").read_text(encoding="utf-8"))
    assert "in a folder of this machine" in page.text["contents"] and "12 different images" in page.text["contents"]
    assert len(page.figures["neighbours"]) >= 12


def test_it_is_served_with_its_images(address):
    pytest.importorskip("fastapi")
    from makers.served import application, client

    shop = Collection.build(address, ENCODER)
    with client(application(shop)) as api:
        for image_id in shop.index.rows["image_id"][:3]:
            for what in (f"/thumbnails/{image_id}", f"/images/{image_id}/view"):
                answer = api.get(what)
                assert answer.status_code == 200 and answer.content[:3] == b"\xff\xd8\xff", answer.text


def test_what_is_gone_there_is_said(s3, folder):  # noqa: F811
    pytest.importorskip("fastapi")
    from makers.served import application, client

    put(s3, folder, "shop/pets")
    shop = Collection.build("s3://shop/pets", ENCODER)
    s3.rm("shop/pets/cat/01.png")
    gone = shop.row("cat/01.png")["image_id"]
    with client(application(shop)) as api:
        assert api.get(f"/thumbnails/{gone}").status_code == 404
    assert data_uris(shop.search("cat/02.png", k=12)._repr_html_()) == 10, "of eleven found"


def test_files_of_this_machine_are_added_and_addresses_are_not(address, tmp_path):
    shop = Collection.build(address, ENCODER)
    assert shop.add(save_photographs(tmp_path / "more", [90, 91], "bird")) == 2
    birds = shop.index.rows["path"][12:].tolist()
    assert data_uris(shop.search(birds[0], k=14)._repr_html_()) == 14
    with pytest.raises(ArgumentError, match="build"):
        shop.add("s3://shop/others")


def test_training_and_data_sets_need_a_folder_of_this_machine(address):
    from rectrio_lib.chapters import own_images
    from rectrio_lib.data.dataset import prepare

    shop = Collection.build(address, ENCODER)
    with pytest.raises(DataError, match="folder of this machine"):
        shop.images_folder()
    with pytest.raises(DataError, match="folder of this machine"):
        prepare("pets", "folder", address)
    with pytest.raises(ArgumentError, match="folder of this machine"):
        own_images.train(address, backbone=ENCODER)


def test_it_moves_to_a_folder_here(s3, folder):  # noqa: F811
    put(s3, folder, "shop/pets")
    Collection.build("s3://shop/pets", ENCODER)
    moved = Collection.open("pets", folder=folder)
    assert moved.folder == folder and data_uris(moved.search("cat/01.png", k=4)._repr_html_()) == 4
    with pytest.raises(ArgumentError, match="another name"):
        Collection.build(folder, ENCODER)
