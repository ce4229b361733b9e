"""Images on S3, on a web server and in memory are embedded like those of a folder: once, with what is wrong told."""

import pickle
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from makers.remote import SECRET, put, s3, s3_server, web  # noqa: F401
from makers.stores import content, embed, save_pictures

from rectrio_lib.core.errors import ArgumentError, DataError, DownloadError, MissingPackageError, RectrioError
from rectrio_lib.data import image_files
from rectrio_lib.data.places import remote
from rectrio_lib.data.places.place import place_of

pytestmark = pytest.mark.slow

ADDRESS = "s3://shop/photos"


@pytest.fixture
def folder(tmp_path):
    return save_pictures(tmp_path / "photos", range(12))


@pytest.fixture
def bucket(s3, folder):  # noqa: F811
    put(s3, folder, "shop/photos")
    return s3


def same_as_local(remotely, folder):
    (far, report), (near, _) = embed(remotely, name="far"), embed(folder, name="near")
    assert far.rows.drop(columns="deleted").equals(near.rows.drop(columns="deleted"))
    np.testing.assert_array_equal(far.vectors(), near.vectors())
    assert far.files()[["path", "size", "image_id", "reason"]].equals(
        near.files()[["path", "size", "image_id", "reason"]]
    )
    return far, report


def test_a_folder_on_s3_gives_the_store_of_the_same_folder_here(bucket, folder, monkeypatch):
    (folder / "metadata.csv").write_text("file_name,price\ncat/00.png,3.5\n", encoding="utf-8")
    (folder / "cat" / "copy of ü#%20.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    (folder / "dog" / "broken.jpg").write_bytes(b"no image")
    (folder / "dog" / "empty.png").write_bytes(b"")
    (folder / "dog" / "drawn.svg").write_bytes(b"<svg/>")
    (folder / "notes.json").write_bytes(b"{}")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    put(bucket, folder, "shop/photos")
    bucket.pipe("shop/photos/dog/without a suffix", (folder / "cat" / "02.png").read_bytes())
    (folder / "dog" / "without a suffix").write_bytes((folder / "cat" / "02.png").read_bytes())
    store, report = same_as_local(ADDRESS, folder)
    assert store.card["folder"] == ADDRESS and store.select().set_index("path")["price"]["cat/00.png"] == 3.5
    assert (report.embedded, report.copies, report.bad) == (12, 2, 3)
    monkeypatch.setattr(remote.RemotePlace, "open", None)
    assert embed(ADDRESS, name="far")[1].embedded == 0, "nothing is fetched again"


def test_only_what_changed_on_s3_is_fetched_and_what_is_gone_is_marked(bucket, folder, monkeypatch):
    embed(ADDRESS)
    before = content(embed(ADDRESS)[0])
    asked, opened = [], remote.RemotePlace.open
    monkeypatch.setattr(remote.RemotePlace, "open", lambda self, path: asked.append(path) or opened(self, path))
    assert content(embed(ADDRESS)[0]) == before and asked == []
    save_pictures(folder, [12])
    bucket.pipe("shop/photos/cat/12.png", (folder / "cat" / "12.png").read_bytes())
    bucket.pipe("shop/photos/cat/02.png", (folder / "dog" / "01.png").read_bytes())
    bucket.rm("shop/photos/dog/03.png")
    store, report = embed(ADDRESS)
    assert sorted(asked) == ["cat/02.png", "cat/12.png"]
    assert (report.files, report.embedded, report.copies, report.deleted) == (12, 1, 1, 2)
    assert {"cat/02.png", "cat/12.png"} < set(store.select()["path"]) and len(store) == 11


def test_an_object_that_vanishes_or_is_cut_off_after_the_listing_is_told_and_the_others_go_on(bucket, monkeypatch):
    listed = remote.RemotePlace.list

    def list_and_lose(self, *given):
        found = listed(self, *given)
        bucket.rm("shop/photos/cat/04.png")
        bucket.pipe("shop/photos/dog/05.png", bucket.cat_file("shop/photos/dog/05.png")[:60])
        return found

    monkeypatch.setattr(remote.RemotePlace, "list", list_and_lose)
    _, report = embed(ADDRESS)
    assert (report.embedded, report.bad) == (10, 2)
    told = report.ledger.set_index("picture")["reason"]
    assert told["cat/04.png"].startswith("FileNotFoundError") and "dog/05.png" in told


def test_a_place_opens_the_same_images_in_another_process_and_holds_no_key(bucket):
    place = place_of(ADDRESS + "/")
    paths = place.list()["path"].tolist()
    packed = pickle.dumps(place)
    assert SECRET.encode() not in packed and len(packed) < 200
    code = (
        "import pickle, sys; from rectrio_lib.data.image_files import read_image\n"
        "place = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "print(*[read_image(place, path, 8, 3).image_id for path in sys.argv[2:]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, packed.hex(), *paths], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [image_files.read_image(place, path, 8, 3).image_id for path in paths]
    assert (place.uri, place.name, place.address("cat/00.png")) == (ADDRESS, "photos", f"{ADDRESS}/cat/00.png")


def why(address):
    with pytest.raises(RectrioError) as caught:
        place_of(address).list()
    assert SECRET not in str(caught.value) and "AKIA" not in str(caught.value)
    return caught.type, str(caught.value)


def test_missing_or_refused_credentials_are_said_without_showing_any(bucket, monkeypatch):
    denied, opened = PermissionError(13, f"Access Denied {SECRET}"), remote.RemotePlace._objects
    monkeypatch.setattr(remote.RemotePlace, "_objects", lambda self: (_ for _ in ()).throw(denied))
    kind, said = why(ADDRESS)
    assert kind is DownloadError and "refused" in said and "AWS_ACCESS_KEY_ID" in said
    monkeypatch.setattr(remote.RemotePlace, "_objects", opened)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    kind, said = why(ADDRESS)
    assert kind is DownloadError and "no credentials" in said and "AWS_ACCESS_KEY_ID" in said
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert len(place_of(ADDRESS).list()) == 12, "what is set now counts"


def test_unknown_buckets_folders_and_servers_are_said_in_one_sentence(bucket, monkeypatch):
    assert why("s3://nobodys/photos")[0] is DataError
    assert why("s3://shop/nothing")[0] is DataError
    assert why("nothing://shop/photos")[0] is ArgumentError
    kind, said = why("http://127.0.0.1:9/photos")
    assert kind is DownloadError and "http://127.0.0.1:9/photos" in said
    for address in (f"https://me:{SECRET}@host/photos", f"https://host/photos?key={SECRET}"):
        kind, said = why(address)
        assert kind is ArgumentError and "https://host/photos" in said


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingPackageError, match=r"rectrio\[remote\]"):
        place_of("gs://shop/photos").list()


def test_a_folder_of_a_web_server_is_read_by_its_listings(folder, monkeypatch):
    pytest.importorskip("aiohttp")
    (folder / "cat").rename(folder / "große Katze")
    (folder / "metadata.csv").write_text("file_name,price\ngroße Katze/00.png,3.5\n", encoding="utf-8")
    with web(folder.parent) as address:
        store, _ = same_as_local(f"{address}/photos", folder)
        assert store.select()["label"].value_counts().to_dict() == {"große Katze": 6, "dog": 6}
        assert store.select()["price"].notna().sum() == 1
        monkeypatch.setattr(remote.RemotePlace, "open", None)
        assert embed(f"{address}/photos", name="far")[1].embedded == 0, "nothing is fetched again"
        assert why(f"{address}/nothing")[0] is DataError


def test_any_file_system_of_fsspec_will_do(folder):
    memory = fsspec.filesystem("memory")
    put(memory, folder, "/photos")
    try:
        same_as_local("memory://photos", folder)
    finally:
        memory.rm("/photos", recursive=True)


def test_the_name_of_other_images_elsewhere_is_refused(bucket, folder, s3):  # noqa: F811
    put(s3, folder, "shop/others/photos")
    embed(ADDRESS)
    with pytest.raises(ArgumentError, match="another name"):
        embed("s3://shop/others/photos")
    with pytest.raises(ArgumentError, match="another name"):
        embed(folder)
