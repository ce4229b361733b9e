import errno
import hashlib
import os
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kagglehub
import pytest
import requests
from kagglehub.exceptions import DataCorruptionError, UnauthenticatedError
from torchvision.datasets import FashionMNIST

from rectrio_lib.core import download
from rectrio_lib.core.errors import DownloadError, StorageError
from rectrio_lib.core.workspace import Workspace

FILES = {f"file-{n}.gz": f"content of file {n} ".encode() * 500 for n in range(4)}


class Mirror(BaseHTTPRequestHandler):
    """Serves FILES below /good/, and misbehaves in its own way below every other folder."""

    def do_GET(self):
        kind, name = self.path.strip("/").split("/")
        self.server.requests.append(name)
        content = FILES[name]
        if kind == "hangs":
            self.server.released.wait(20)
        elif kind == "no-http":
            self.wfile.write(b"welcome to the guest network\n\n")
        elif kind == "gone":
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            body = {"good": content, "wrong": bytes(len(content)), "cut": content[:100]}[kind]
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    checksums = [(name, hashlib.md5(content).hexdigest()) for name, content in FILES.items()]
    monkeypatch.setattr(FashionMNIST, "resources", checksums)
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.requests, server.released = [], threading.Event()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.address = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.released.set()
        server.shutdown()


@pytest.fixture
def use_mirrors(server, monkeypatch):
    def use(*kinds: str) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            dead = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        mirrors = [dead if kind == "dead" else f"{server.address}/{kind}/" for kind in kinds]
        monkeypatch.setattr(FashionMNIST, "mirrors", mirrors)

    return use


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def files_below(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_download_leaves_the_four_files_and_nothing_else(use_mirrors, tmp_path):
    use_mirrors("good")
    download.download_fashion_mnist(tmp_path / "sets" / "fashion")
    assert contents(tmp_path / "sets" / "fashion") == FILES
    assert files_below(tmp_path / "sets") == files_below(tmp_path / "sets" / "fashion")


@pytest.mark.parametrize("kind", ["dead", "gone", "wrong", "cut", "no-http"])
def test_download_tries_the_second_mirror(use_mirrors, tmp_path, kind):
    use_mirrors(kind, "good")
    download.download_fashion_mnist(tmp_path / "fashion")
    assert contents(tmp_path / "fashion") == FILES


@pytest.mark.parametrize("kind", ["wrong", "cut"])
def test_wrong_checksum_names_file_and_md5_and_leaves_no_half_file(use_mirrors, tmp_path, kind):
    use_mirrors(kind)
    md5 = hashlib.md5(FILES["file-0.gz"]).hexdigest()
    with pytest.raises(DownloadError, match=rf"file-0\.gz.*{md5}"):
        download.download_fashion_mnist(tmp_path / "fashion")
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("kind", ["dead", "gone", "no-http"])
def test_unreachable_mirrors_raise_an_error_that_names_the_address(use_mirrors, tmp_path, kind):
    use_mirrors(kind)
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1.*file-0\.gz"):
        download.download_fashion_mnist(tmp_path / "fashion")
    assert files_below(tmp_path) == []


def test_silent_server_is_given_up_and_the_default_time_out_stays(use_mirrors, tmp_path, monkeypatch):
    use_mirrors("hangs")
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.1)
    before = socket.getdefaulttimeout()
    with pytest.raises(DownloadError, match="timed out"):
        download.download_fashion_mnist(tmp_path / "fashion")
    assert socket.getdefaulttimeout() == before


def test_intact_files_are_not_fetched_again_and_damaged_ones_are(use_mirrors, server, tmp_path):
    use_mirrors("good")
    download.download_fashion_mnist(tmp_path)
    server.requests.clear()
    download.download_fashion_mnist(tmp_path)
    assert server.requests == []

    (tmp_path / "file-1.gz").write_bytes(b"damaged")
    download.download_fashion_mnist(tmp_path)
    assert set(server.requests) == {"file-1.gz"}
    assert contents(tmp_path) == FILES


def test_killed_download_leaves_nothing_for_readers_and_goes_on_where_it_stopped(
    use_mirrors, server, tmp_path, monkeypatch
):
    use_mirrors("good")
    fetch = download._download_from_any

    def killed_at_third(mirrors, name, md5, folder):
        if name == "file-2.gz":
            raise KeyboardInterrupt
        fetch(mirrors, name, md5, folder)

    with monkeypatch.context() as patch:
        patch.setattr(download, "_download_from_any", killed_at_third)
        with pytest.raises(KeyboardInterrupt):
            download.download_fashion_mnist(tmp_path / "fashion")
    assert files_below(tmp_path / "fashion") == []

    server.requests.clear()
    download.download_fashion_mnist(tmp_path / "fashion")
    assert set(server.requests) == {"file-2.gz", "file-3.gz"}
    assert contents(tmp_path / "fashion") == FILES


def test_folder_that_cannot_be_written_is_a_storage_error(use_mirrors, tmp_path):
    use_mirrors("good")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="fashion"):
        download.download_fashion_mnist(tmp_path / "file" / "fashion")


# --- weights


def fetch_weights(server, tmp_path, kind: str) -> Path:
    checksum = hashlib.sha256(FILES["file-0.gz"]).hexdigest()
    return download.download_weights(f"{server.address}/{kind}/file-0.gz", checksum[:8], workspace=Workspace(tmp_path))


def test_weights_go_to_the_folder_of_the_workspace(server, tmp_path):
    path = fetch_weights(server, tmp_path, "good")
    assert path == tmp_path / "data" / "weights" / "file-0.gz"
    assert contents(path.parent) == {"file-0.gz": FILES["file-0.gz"]}


@pytest.mark.parametrize("kind", ["gone", "wrong", "cut", "no-http"])
def test_failed_download_of_weights_names_the_address_and_leaves_nothing(server, tmp_path, kind):
    with pytest.raises(DownloadError, match=rf"{kind}/file-0\.gz"):
        fetch_weights(server, tmp_path, kind)
    assert files_below(tmp_path) == []


# --- Animals-10


@pytest.fixture
def animals(tmp_path, monkeypatch) -> Path:
    """Return where the images should go; kagglehub has them in its own folder."""
    for name in ("cane", "gatto"):
        (tmp_path / "cache" / "raw-img" / name).mkdir(parents=True)
        (tmp_path / "cache" / "raw-img" / name / "1.jpg").write_bytes(name.encode())
    caches = {download.ANIMALS10: str(tmp_path / "cache")}
    monkeypatch.setattr(kagglehub, "dataset_download", caches.__getitem__)
    return tmp_path / "data" / "animals10" / "raw-img"


def test_animals_arrive_whole_and_leave_nothing_beside(animals):
    for _ in range(2):
        download.download_animals10(animals)
        assert contents(animals / "cane") == {"1.jpg": b"cane"}
        assert contents(animals / "gatto") == {"1.jpg": b"gatto"}
        assert [path.name for path in (*animals.parent.parent.iterdir(), *animals.parent.iterdir())] == [
            "animals10",
            "raw-img",
        ]
        shutil.rmtree(animals)
        animals.mkdir()


def test_animals_of_a_killed_copy_are_never_where_readers_look(animals, monkeypatch):
    def killed(found, arriving):
        shutil.copy(found / "cane" / "1.jpg", arriving.parent)
        (arriving / "cane").mkdir(parents=True)
        raise KeyboardInterrupt

    animals.parent.parent.mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download.shutil, "copytree", killed)
        download.download_animals10(animals)
    assert not animals.parent.exists()
    download.download_animals10(animals)
    assert {path.name for path in animals.iterdir()} == {"cane", "gatto"}


def test_folder_that_is_not_empty_is_kept_and_the_download_refused(animals):
    animals.mkdir(parents=True)
    (animals / "mine.txt").write_bytes(b"mine")
    with pytest.raises(StorageError, match="raw-img"):
        download.download_animals10(animals)
    assert contents(animals) == {"mine.txt": b"mine"}
    assert [path.name for path in animals.parent.parent.iterdir()] == ["animals10"]


@pytest.mark.parametrize("error", [DataCorruptionError("wrong MD5"), UnauthenticatedError("no"), ValueError("bad key")])
def test_refusal_of_kaggle_is_a_download_error_that_names_the_set(animals, monkeypatch, error):
    def refuse(handle):
        raise error

    monkeypatch.setattr(kagglehub, "dataset_download", refuse)
    with pytest.raises(DownloadError, match=f"{download.ANIMALS10}.*{error}"):
        download.download_animals10(animals)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_no_failed_download(animals, use_mirrors, tmp_path, monkeypatch, code):
    def unwritable(*given, **options):
        raise OSError(code, os.strerror(code))

    use_mirrors("good")
    monkeypatch.setattr(kagglehub, "dataset_download", unwritable)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", unwritable)
    monkeypatch.setattr("torch.hub.download_url_to_file", unwritable)
    for fetch in (
        lambda: download.download_animals10(animals),
        lambda: download.download_fashion_mnist(tmp_path / "fashion"),
        lambda: download.download_weights("http://127.0.0.1/net.pth", ""),
    ):
        with pytest.raises(StorageError, match=os.strerror(code)):
            fetch()


def test_silent_kaggle_is_given_up_and_requests_of_others_stay_as_they_were(animals, server, monkeypatch):
    def ask(handle):  # as kagglehub's client does
        request = requests.Request("GET", f"{server.address}/hangs/file-0.gz").prepare()
        requests.Session().send(request, stream=True)

    before = requests.Session.send
    monkeypatch.setattr(kagglehub, "dataset_download", ask)
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.1)
    with pytest.raises(DownloadError, match="timed out"):
        download.download_animals10(animals)
    assert requests.Session.send is before
