"""WebDataset shards and Parquet files with images in them, here and on S3."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from makers.remote import s3, s3_server, shard, tar_of  # noqa: F401
from makers.stores import embed, save_pictures

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.data.decoding import UnreadableError
from rectrio_lib.data.image_files import read_image
from rectrio_lib.data.places import parquets, remote, tars
from rectrio_lib.data.places.archives import expanded
from rectrio_lib.data.places.place import place_of

pytestmark = pytest.mark.slow


@pytest.fixture
def images(tmp_path):
    """Return {number: PNG} of 12 images."""
    save_pictures(tmp_path / "here", range(12))
    return {
        int(file.stem): file.read_bytes() for file in sorted((tmp_path / "here").rglob("*.png"), key=lambda f: f.stem)
    }


@pytest.fixture
def near(tmp_path, images):
    embed(tmp_path / "here", name="near")
    store, _ = embed(tmp_path / "here", name="near")
    return dict(zip(store.rows["image_id"], store.vectors(), strict=True))


def same_vectors(store, near):
    assert set(store.rows["image_id"]) == set(near)
    for image_id, vector in zip(store.rows["image_id"], store.vectors(), strict=True):
        np.testing.assert_array_equal(vector, near[image_id])


@pytest.fixture(params=["here", "s3"])
def write(request, tmp_path):
    """Return what writes a file and gives the address of its folder."""
    if request.param == "here":

        def to_disk(name, data):
            (tmp_path / "sets" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "sets" / name).write_bytes(data)
            return str(tmp_path / "sets")

        return to_disk
    system = request.getfixturevalue("s3")
    return lambda name, data: (system.pipe(f"shop/sets/{name}", data), "s3://shop/sets")[1]


def shards(write, images, count=3):
    each = len(images) // count
    for number in range(count):
        part = {f"{n:06}": images[n] for n in range(number * each, (number + 1) * each)}
        folder = write(f"set-{number:03}.tar", shard(part))
    return folder


def parquet(images, form, rows=5):
    data, count = list(images.values()), len(images)
    column = data if form == "binary" else [{"bytes": d, "path": f"{n}.png"} for n, d in enumerate(data)]
    told = {"label": [n % 2 for n in range(count)], "price": [1.5] * count, "boxes": [[1]] * count}
    table = pa.table({"image": column} | told)
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    note = {"info": {"features": features}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(note)} if form == "struct" else {})
    written = io.BytesIO()
    pq.write_table(table, written, row_group_size=rows)
    return written.getvalue()


def looked_into(monkeypatch):
    looked, look = [], remote.RemotePlace._look
    monkeypatch.setattr(remote.RemotePlace, "_look", lambda self, row: looked.append(row[0]) or look(self, row))
    return looked


@pytest.mark.parametrize("pattern", ["", "/set-{000..002}.tar", "/set-*.tar"])
def test_shards_are_embedded_with_label_words_and_metadata(write, images, near, pattern, monkeypatch):
    folder = shards(write, images)
    store, report = embed(folder + pattern)
    same_vectors(store, near)
    assert store.card["dataset"] == ("set" if pattern else "sets") and store.card["folder"] == folder + pattern
    rows = store.select().sort_values("text", ignore_index=True)
    assert rows["label"].eq("7").all() and rows["text"].tolist() == [f"image {n:06}" for n in range(12)]
    assert rows["price"].tolist() == [0, 1, 2, 3] * 3 and "tags" not in rows
    looked = looked_into(monkeypatch)
    monkeypatch.setattr(remote.RemotePlace, "open", None)
    again, report = embed(folder + pattern)
    assert report.embedded == 0 and looked == [] and again.rows.equals(store.rows)


def test_only_shards_that_changed_are_looked_into_and_what_was_told_of_others_stays(write, images, monkeypatch):
    folder = shards(write, images)
    embed(folder + "/set-{000..001}.tar")
    looked = looked_into(monkeypatch)
    store, report = embed(folder + "/set-{000..002}.tar")
    assert looked == ["set-002.tar"] and report.embedded == 4
    write("set-000.tar", shard({"000001": images[1]}, price=9))
    store, report = embed(folder + "/set-{000..002}.tar")
    assert looked == ["set-002.tar", "set-000.tar"] and (report.embedded, report.deleted) == (0, 3)
    prices = store.select().set_index("text")["price"]
    assert prices["image 000001"] == 9 and prices["image 000011"] == 3


def test_what_a_shard_that_changed_does_not_tell_any_more_is_gone(write, images):
    folder = shards(write, images)
    embed(folder)
    write("set-000.tar", tar_of({f"{number:06}.png": images[number] for number in range(4)}))
    for _ in range(2):
        store = embed(folder)[0].select()
        plain = store["path"].str.startswith("set-000")
        assert store["price"].isna().tolist() == plain.tolist() == store["text"].isna().tolist()
        assert store["label"].eq("").tolist() == plain.tolist() and plain.sum() == 4


def test_a_killed_call_is_continued_with_all_that_the_shards_tell(write, images, near, monkeypatch):
    folder = shards(write, images)
    with pytest.MonkeyPatch.context() as patch:
        from rectrio_lib.embeddings import writer

        patch.setattr(writer.Writer, "add", lambda self, rows, vectors: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embed(folder)
    store, _ = embed(folder)
    same_vectors(store, near)
    assert store.select()["price"].notna().all()


def test_a_truncated_or_damaged_shard_gives_what_comes_before_and_is_told(write, images):
    whole = shard({f"{n:06}": images[n] for n in range(4)})
    for cut in (
        2 * 4096 + 100,
        2 * 4096 + 512,
        2 * 4096 + 600,
        2 * 4096,
    ):  # in a header, after it, in an image, between
        folder = write("set.tar", whole[:cut])
        _, report = embed(folder, name=f"cut-{cut}")
        assert (report.embedded, report.bad) == (2, 1), cut
        assert report.ledger["picture"].tolist() == ["set.tar"] and "truncated" in report.ledger["reason"][0]
    write("set.tar", b"no archive" * 1000)
    write("more.tar", whole)
    _, report = embed(folder, name="damaged")
    assert report.embedded == 4 and report.ledger["picture"].tolist() == ["set.tar"]


def test_bad_entries_are_told_by_shard_and_name(write, images):
    files = {"a/1.png": images[1], "a/1.json": b"{", "a/2.jpg": b"no image", "b/3.svg": b"<svg/>", "b/4.md": b"x"}
    folder = write("set.tar", tar_of(files))
    write("packed.tar.gz", b"x")
    write("empty.tar", tar_of({"readme.md": b"x"}))
    store, report = embed(folder)
    told = {path.rpartition("/")[2]: reason for path, reason in report.ledger.to_numpy()}
    assert store.select()["label"].tolist() == ["a"], "folders inside of an archive are classes"
    assert told.keys() == {"1.json", "2.jpg", "3.svg", "packed.tar.gz", "empty.tar"}
    assert "compressed" in told["packed.tar.gz"] and told["empty.tar"] == "holds no image"
    assert all(path.startswith("set.tar:") for path in report.ledger["picture"] if path.count("/"))


def test_a_missing_shard_is_told_and_others_are_embedded(write, images):
    folder = shards(write, images)
    _, report = embed(folder + "/set-{000..003}.tar")
    assert report.embedded == 12 and report.ledger["picture"].tolist() == ["set-003.tar"]
    with pytest.raises(DataError):
        place_of(folder + "/other-*.tar").list()


@pytest.mark.parametrize("form", ["struct", "binary"])
def test_parquet_files_are_embedded_with_the_other_columns(write, images, near, form, monkeypatch):
    folder = write("data/train-00000-of-00001.parquet", parquet(images, form))
    store, _ = embed(folder)
    same_vectors(store, near)
    rows = store.select()
    labels, numbers = rows["path"].str[-2:].astype(int) % 2, {0: "0", 1: "1"}
    assert rows["label"].tolist() == labels.map({0: "cat", 1: "dog"} if form == "struct" else numbers).tolist()
    assert rows["price"].eq(1.5).all() and rows["split"].eq("train").all() and "boxes" not in rows
    if form == "struct":
        assert rows["file_name"].tolist() == [f"{int(path[-2:])}.png" for path in rows["path"]]
    looked = looked_into(monkeypatch)
    assert embed(folder)[1].embedded == 0 and looked == []


def test_rows_without_an_image_and_files_that_are_none_are_told(write, images):
    folder = write("a.parquet", parquet(images | {3: None, 4: b""}, "binary"))
    write("b.parquet", parquet(images, "struct")[:-50])
    written = io.BytesIO()
    pd.DataFrame({"url": ["https://host/a.jpg"]}).to_parquet(written)
    write("c.parquet", written.getvalue())
    _, report = embed(folder)
    told = dict(report.ledger.to_numpy())
    assert report.embedded == 10 and told.keys() == {"a.parquet/03", "a.parquet/04", "b.parquet", "c.parquet"}
    assert "truncated" in told["b.parquet"] and "no column" in told["c.parquet"]


def test_damaged_pages_spoil_only_their_own_rows(write, images):
    data = bytearray(parquet(images, "binary"))
    column = pq.read_metadata(io.BytesIO(data)).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    folder = write("a.parquet", bytes(data))
    store, report = embed(folder)
    rows = {int(path[-2:]) for path in store.select()["path"]}
    assert rows == {0, 1, 2, 3, 4, 10, 11} and report.bad == 5
    assert report.ledger["reason"].str.contains("damaged").all()


def test_rows_are_read_in_any_order_and_a_few_batches_stay_in_memory(tmp_path, monkeypatch):
    data = {n: f"{n}".encode() * 50 for n in range(1000)}
    (tmp_path / "a.parquet").write_bytes(parquet(data, "struct", rows=300))
    rows = parquets.Rows((tmp_path / "a.parquet").open("rb"))
    order = [*range(400), 999, 0, 299, 300, 650, *np.random.default_rng(0).integers(0, 1000, 50).tolist()]
    for number in order:
        assert rows.image(number) == data[number]
        assert sum(len(batch) for _, batch in rows._kept) <= parquets.BATCH_ROWS * parquets.BATCHES_KEPT


def test_a_tar_archive_is_fetched_in_stretches_by_who_reads_it_in_order(monkeypatch):
    monkeypatch.setattr(tars, "STRETCH", 1000)
    data, asked = np.random.default_rng(0).bytes(50_000), []

    def fetch(start, end):
        asked.append((start, end))
        return data[start:end]

    stretches = tars.Stretches(fetch)
    order = np.arange(0, 40_000, 100) + np.random.default_rng(1).permutation(400) % 7  # places of images of 90 bytes
    late = [*order[:200:2], *order[1:10:2], *order[200:]]  # some threads are late
    for start in late:
        assert stretches.image(start, 90) == data[start : start + 90]
    assert len(asked) < len(late) / 4 and sum(end - start for start, end in asked) < 1.2 * len(data)
    del asked[:]
    for start in np.random.default_rng(2).permutation(np.arange(0, 40_000, 3000)):
        assert stretches.image(start, 90) == data[start : start + 90]
    assert sum(end - start for start, end in asked) < 4 * 1000, "who looks at single images fetches these alone"
    assert stretches.image(0, 500) == data[:500] and asked[-1] == (0, 500), "so does who reads large ones"
    with pytest.raises(UnreadableError):
        tars.Stretches(lambda start, end: data).image(300, 90)


def test_a_set_that_moved_is_known_and_another_one_of_its_name_is_refused(tmp_path, images):
    def write(folder, part):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "set-0.tar").write_bytes(shard({f"{n}": images[n] for n in part}))
        return str(tmp_path / folder / "set-{0..0}.tar")

    first, other = write("a", range(4)), write("b", range(4, 8))
    assert embed(first)[1].embedded == 4
    with pytest.raises(ArgumentError, match="another name"):
        embed(other)
    (tmp_path / "a").rename(tmp_path / "moved")
    store, report = embed(str(tmp_path / "moved" / "set-*.tar"))
    assert report.embedded == 0 and store.card["folder"].endswith("moved/set-*.tar")


def test_a_large_group_of_rows_is_not_fetched_whole(tmp_path):
    class Watched(io.FileIO):
        largest = 0

        def read(self, size=-1):
            self.largest = max(self.largest, size)
            return super().read(size)

    data = {n: np.random.default_rng(n).bytes(4000) for n in range(4000)}
    (tmp_path / "a.parquet").write_bytes(parquet(data, "binary", rows=len(data)))
    file = Watched(tmp_path / "a.parquet")
    rows = parquets.Rows(file)
    assert rows.image(0) == data[0] and rows.image(3999) == data[3999]
    assert file.largest < 8_000_000 < sum(map(len, data.values()))
    with pytest.raises(UnreadableError):
        rows.image(4000)


def test_images_win_over_archives_beside_them(tmp_path, images, caplog):
    save_pictures(tmp_path / "both", range(3))
    (tmp_path / "both" / "set.tar").write_bytes(shard({"9": images[9]}))
    assert embed(tmp_path / "both")[1].files == 3


def test_a_shard_that_changes_after_the_listing_gives_no_wrong_image(write, images):
    folder = shards(write, images)
    place = place_of(folder)
    listed = place.list()
    write("set-000.tar", shard({"x": images[11]}))
    for path in listed["path"][listed["path"].str.startswith("set-000")]:
        read = read_image(place, path, 8, 1)
        assert read.reason or read.pixels.shape == (1, 8, 8)


def test_patterns():
    assert [*expanded("a-{008..010}.tar")] == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert [*expanded("{train,val}-{0..1}.tar")] == ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]
    assert [*expanded("a.tar")] == ["a.tar"]


def test_hostile_names_and_metadata_harm_nothing(tmp_path, images):
    odd = {"price": 10**30, "\ud800": "\ud800", "nested": {"a": 1}, "label": 5, "image_id": "x", "path": "/etc/passwd"}
    files = {"1.png": images[1], "1.json": json.dumps(odd).encode(), "2.png": images[2], "2.json": b'{"price": "low"}'}
    files |= {"3\udcff\n.png": images[3], "4.png": images[4], "4.json": b"[1]", "5.json": b"[" * 100_000}
    files |= {"../../6.png": images[6], "6.txt": b"x" * (2 << 20)}
    (tmp_path / "set.tar").write_bytes(tar_of(files))
    store, report = embed(tmp_path / "set.tar")
    rows = store.select().set_index("image_id")
    assert len(rows) == 5 and "nested" not in rows and not rows["path"].str.startswith("/").any()
    assert set(rows["price"].dropna()) == {str(10**30), "low"} and set(rows["label"]) == {"5", "", ".."}
    assert sorted(report.ledger["picture"].str.rpartition("/")[2]) == ["4.json", "5.json", "6.txt"]
    assert embed(tmp_path / "set.tar")[0].rows.equals(store.rows)
