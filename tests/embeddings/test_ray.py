"""Embedding on Ray gives the store that one process gives, whoever dies meanwhile."""

import os
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
from makers.commands import rectrio, well
from makers.folders import ENCODER, save_classes, save_encoder_of_pixels, save_photographs
from makers.images import save_photograph
from makers.processes import Child
from makers.spread import BLOCK, SIDE, Fatal, Mortal, Telling, noise_set, spread, told
from makers.stores import ROOT, Killed, die
from PIL import Image

from rectrio_lib.core.errors import ArgumentError, ClusterError, DataError, MissingPackageError, StorageError
from rectrio_lib.core.lookup import IdSet
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import image_files
from rectrio_lib.data.places.local import LocalFolder
from rectrio_lib.embeddings.embed import embed
from rectrio_lib.embeddings.store import open_store, read_rows, read_store_card
from rectrio_lib.embeddings.writer import Writer
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.registry import fingerprint

pytest.importorskip("ray", reason="Ray is not installed: pip install 'rectrio[ray]'")
from rectrio_lib.embeddings import ray as engine
from rectrio_lib.embeddings.ray_worker import Files, Worker, versions

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@contextmanager
def quick_enough():
    """Skip where the machine is too busy: Ray gives a node half a minute to start."""
    try:
        yield
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("this machine is too busy to start a node of Ray")


@pytest.fixture(scope="module", autouse=True)
def for_workers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="module")
def cluster(away_from_the_checkout, for_workers):
    """A Ray of one node with one core, on this machine; this process is connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    with quick_enough():
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.init(nodes.address, log_to_driver=False)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(scope="module")
def two_nodes(cluster):
    """The same with another node."""
    with quick_enough():
        cluster.add_node(num_cpus=1)
    return cluster


@pytest.fixture
def tales(tmp_path):
    """Where encoders tell what they embedded."""
    folder = tmp_path / "told"
    folder.mkdir()
    return folder


def folder_of_photographs(home):
    for number in range(40):
        save_photograph(home / ("cat", "dog")[number % 2] / f"{number:02}.png", number)
    shutil.copy(home / "cat" / "00.png", home / "cat" / "01copy.png")  # within a block
    shutil.copy(home / "cat" / "02.png", home / "dog" / "zz.png")  # of another block
    (home / "dog" / "07.png").write_text("not an image", encoding="utf-8")
    (home / "dog" / "09.png").write_bytes((home / "dog" / "11.png").read_bytes()[:60])
    return home


def content(store):
    vectors = {path.name: path.read_bytes() for path in store.folder.glob("*.npy")}
    files = store.files().drop(columns="mtime_ns").to_dict("list") if store.card["folder"] else None
    return vectors, store.rows.to_dict("list"), files, {**store.card, "checksums": sorted(store.card["checksums"])}


def alone(source, monkeypatch, outputs, tales):
    """What one process makes of a source."""
    with monkeypatch.context() as patch:
        patch.setenv("RECTRIO_OUTPUTS", str(outputs))
        store, report = spread(source, tales, engine="local")
        return content(store), report


def committed():
    folder = Workspace().outputs / "embeddings" / "telling--noise"
    return len(read_rows(folder, read_store_card(folder)))


def without_time(report):
    return {key: value for key, value in vars(report).items() if key not in ("seconds", "ledger")}


def test_the_command_line_indexes_on_ray_and_says_where_nobody_answers(cluster, tmp_path):
    save_encoder_of_pixels()
    command = ["index", save_classes(tmp_path / "pets"), "--encoder", ENCODER]
    missing = rectrio(*command, "--ray", "127.0.0.1:9")
    assert missing.exit_code == 1 and "127.0.0.1:9" in missing.stderr
    assert "starting" in well(*command, "--ray", "--name", "toys") and len(open_store(ENCODER, "toys")) == 12


def test_a_full_disk_ends_the_call_and_what_is_written_counts(cluster, monkeypatch, tales):
    save, left = np.save, [2]

    def save_until_full(file, array):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, os.strerror(28))
        save(file, array)

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(np, "save", save_until_full)
        spread(noise_set(8 * BLOCK), tales)
    assert committed() == 2 * BLOCK
    _, report = spread(noise_set(8 * BLOCK), tales, engine="local")
    assert report.embedded <= 5 * BLOCK  # the third was in the journal
    assert sum(told(tales).values()) <= 9 * BLOCK


def test_an_encoder_that_kills_its_workers_ends_the_call(cluster, monkeypatch, tales):
    monkeypatch.setattr(engine, "MOST_DEATHS", 2)
    with pytest.raises(ClusterError, match="2 workers died"):
        embed(noise_set(8), Fatal(tales), encoder_name="telling", engine="ray")


def test_a_worker_refuses_to_embed_what_would_differ(cluster, tmp_path, monkeypatch, tales):
    import ray

    encoder = Telling(tales)
    sent, made_by = [ray.put(encoder)], fingerprint(encoder)
    worker = Worker()
    with pytest.raises(ClusterError, match=r"torch .* instead of 1\.0"):
        worker.start(sent, made_by, {"torch": "1.0"}, 1)
    with pytest.raises(ClusterError, match="other weights"):
        worker.start(sent, "of another", versions(), 1)
    with monkeypatch.context() as patch, pytest.raises(ClusterError, match="cannot open the encoder"):
        patch.setattr(ray, "get", lambda reference: import_module("a_package_that_is_missing"))
        worker.start(sent, made_by, versions(), 1)
    worker.start(sent, made_by, versions(), 1)

    home = folder_of_photographs(tmp_path / "photos")
    names = sorted(path.relative_to(home).as_posix() for path in home.rglob("*.png"))
    first = image_files.read_image(home, names[0], SIDE, 1)
    files = tuple((name, image_files.UNLISTED) for name in names)
    block = Files(LocalFolder(home), files, SIDE, 1, ray.put(IdSet([first.image_id, "f" * 16])))
    done = worker.embed(block)
    assert [read.path for read in done.reads] == names
    assert len(done.vectors) == 37  # of 42: one is known, one its copy, one another copy, two are unreadable
    for read in done.reads:
        if read.pixels is not None:
            pixels = image_files.read_image(home, read.path, SIDE, 1).pixels
            np.testing.assert_array_equal(done.vectors[read.pixels], RawPixels(1, SIDE).encode(pixels[None])[0])
    home.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="on the node"):
        worker.embed(block)


def test_a_folder_gives_the_same_store_to_the_byte_and_the_same_ledger(two_nodes, tmp_path, monkeypatch, tales):
    home = folder_of_photographs(tmp_path / "photos")
    Image.fromarray(np.zeros((300, 300), np.uint8)).save(home / "large.png")
    monkeypatch.setenv("RECTRIO_MAX_PIXELS", "80000")
    expected, once = alone(home, monkeypatch, tmp_path / "alone", tmp_path)
    store, report = spread(home, tales)
    assert content(store) == expected
    assert without_time(report) == without_time(once) and report.copies == 2 and report.bad == 3
    pd.testing.assert_frame_equal(report.ledger, once.ledger)
    assert report.seconds["starting"] > 0 and report.seconds["reading"] > 0
    assert os.getpid() not in told(tales)


def test_a_worker_that_dies_costs_the_block_that_it_encodes(two_nodes, tmp_path, monkeypatch, tales):
    count = 24 * BLOCK
    expected, _ = alone(noise_set(count), monkeypatch, tmp_path / "alone", tmp_path)
    store, report = spread(noise_set(count), tales, seconds=0.1, kind=Mortal)
    assert content(store) == expected
    assert told(tales)[int((tales / "died").read_text())] == 2 * BLOCK
    assert report.embedded == count == sum(told(tales).values())  # what it had encoded before had been received


@pytest.mark.parametrize("of_files", [True, False])
def test_what_the_journal_holds_already_starts_no_ray(tmp_path, monkeypatch, tales, of_files):
    source = save_photographs(tmp_path / "photos", range(9), "cat") if of_files else noise_set(9)
    expected, once = alone(source, monkeypatch, tmp_path / "alone", tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Writer, "close", lambda writer: die())
        spread(source, tales, engine="local")
    monkeypatch.setattr(engine, "_connected", None)
    store, report = spread(source, tales)
    assert content(store) == expected and report.embedded == 0 and report.files == once.files
    assert told(tales) == {os.getpid(): 9}


def answer_once(server, answer):
    with server.accept()[0] as connection:
        connection.sendall(answer)
        time.sleep(0.5)


def test_an_address_that_nobody_answers_is_an_error_at_once(monkeypatch, tales):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for given in (address, "no-such-host.invalid:6379"):
        with pytest.raises(ClusterError, match=given):
            spread(noise_set(4), tales, address=given)
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 0.3)
    for answer in (b"", b"HTTP/1.0 400 Bad Request"):  # who says nothing, and who is no Ray
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=answer_once, args=(server, answer)).start()
            with pytest.raises(ClusterError, match="No Ray answers"):
                spread(noise_set(4), tales, address=f"127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=address):
        spread(noise_set(4), tales)
    for wrong in ("6379", "ray://127.0.0.1:10001", "127.0.0.1:port"):
        with pytest.raises(ArgumentError, match="HOST:PORT"):
            spread(noise_set(4), tales, address=wrong)
    for options in ({"engine": "spark"}, {"engine": "local", "address": address}):
        with pytest.raises(ArgumentError, match="engine"):
            spread(noise_set(4), tales, **options)
    assert not (Workspace().outputs / "embeddings").exists()


def test_without_ray_the_extra_is_named(monkeypatch, tales):
    import rectrio_lib.embeddings as package

    monkeypatch.delattr(package, "ray", raising=False)
    monkeypatch.delitem(sys.modules, "rectrio_lib.embeddings.ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"rectrio\[ray\]"):
        spread(noise_set(4), tales)


DRIVE = """
import signal, sys
from makers.spread import noise_set, spread
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background ignores it
spread(noise_set(int(sys.argv[1])), sys.argv[2], 0.15, address=sys.argv[3] or None)
"""


def drive(count, tales, address=""):
    """Start a process that embeds noise on Ray; return it, and what waits until blocks are embedded."""
    child = Child(DRIVE, count, tales, address)
    return child, lambda blocks: child.wait_until(lambda: sum(told(tales).values()) >= blocks * BLOCK)


def test_a_node_dies_half_way_then_the_driver_and_the_next_call_goes_on(two_nodes, tmp_path, monkeypatch, tales):
    count = 40 * BLOCK
    expected, _ = alone(noise_set(count), monkeypatch, tmp_path / "alone", tmp_path)
    driver, wait_for = drive(count, tales, two_nodes.address)
    wait_for(12)
    two_nodes.remove_node(two_nodes.list_all_nodes()[-1], allow_graceful=False)
    wait_for(26)
    driver.kill()
    deadline = time.monotonic() + 60
    while not all(map(gone, told(tales))) and time.monotonic() < deadline:  # the workers of a killed driver end with it
        time.sleep(0.1)
    before, kept = sum(told(tales).values()), committed()
    assert 0 < kept < count
    store, report = spread(noise_set(count), tales)
    assert content(store) == expected
    assert report.embedded == sum(told(tales).values()) - before <= count - kept
    # what the node's worker encoded when it died, and then the only other one when the driver did
    assert sum(told(tales).values()) - count <= 2 * BLOCK


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_ctrl_c_ends_the_ray_that_was_started_and_the_next_call_goes_on(tmp_path, monkeypatch, tales):
    driver, wait_for = drive(40 * BLOCK, tales)
    wait_for(4)
    os.kill(driver.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in driver.wait()[1]
    workers = [*told(tales)]
    assert workers and all(map(gone, workers))
    spread(noise_set(40 * BLOCK), tales, engine="local")
    assert sum(told(tales).values()) - 40 * BLOCK <= len(workers) * BLOCK
    assert len(open_store("telling", "noise")) == 40 * BLOCK
