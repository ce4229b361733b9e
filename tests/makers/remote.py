"""Servers on loopback that hold images: S3 as moto speaks it, and a plain web server with listings."""

import functools
import http.server
import io
import json
import logging
import tarfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

SECRET = "never-to-be-shown"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3_server():
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path):
    """Return fsspec's S3 with an empty bucket `shop`; the keys are in the environment."""
    import fsspec

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    system = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    system.mkdir("shop")
    yield system
    system.rm("shop", recursive=True)


def put(system, folder, address):
    """Copy a folder's files to the address."""
    for file in Path(folder).rglob("*.*"):
        if file.is_file():
            system.pipe(f"{address}/{file.relative_to(folder).as_posix()}", file.read_bytes())


@contextmanager
def web(folder):
    """Serve a folder with listings, as `python -m http.server` does; give its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *said):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def tar_of(files):
    """Return the bytes of a tar archive of {name: bytes}."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return written.getvalue()


def shard(images, **more):
    """Return a WebDataset shard of {key: PNG}: price in name.json, label in name.cls, words in name.txt."""
    files = {}
    for number, (key, data) in enumerate(images.items()):
        files |= {f"{key}.png": data, f"{key}.cls": b"7", f"{key}.txt": f"image {key}\n".encode()}
        files[f"{key}.json"] = json.dumps({"price": number, "tags": ["a"], **more}).encode()
    return tar_of(files)
