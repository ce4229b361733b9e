"""Downloads with mirrors, time-outs and checksums."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from rectrio_lib.core.workspace import Workspace, quiet

DOWNLOAD_TIMEOUT_SECONDS = 10
ANIMALS10 = "alessiocorrado99/animals10"


def download_fashion_mnist(folder: Path) -> None:
    """Download the four official Fashion-MNIST files, 30.9 MB, each checked against its published md5.

    Addresses and checksums are torchvision's own.

    Args:
        folder: where the .gz files go; files already there and intact are kept.

    Raises:
        OSError: if no mirror answers within the time-out, or the folder cannot be written.
        RuntimeError: if what arrives has another checksum.
    """
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import check_integrity

    arriving = folder.with_name(f"{folder.name}.part")  # a killed download leaves no half set where readers look
    for place in (folder, arriving):
        place.mkdir(parents=True, exist_ok=True)
    with _socket_timeout(DOWNLOAD_TIMEOUT_SECONDS):
        for name, md5 in FashionMNIST.resources:
            if not check_integrity(folder / name, md5):
                _download_from_any(FashionMNIST.mirrors, name, md5, arriving)
    for path in arriving.iterdir():
        path.replace(folder / path.name)
    arriving.rmdir()


def _download_from_any(mirrors: Sequence[str], name: str, md5: str, folder: Path) -> None:
    """Download one file from the first mirror that has it; raise what the last one did wrong."""
    from torchvision.datasets.utils import download_url

    for mirror in mirrors:
        try:
            return download_url(f"{mirror}{name}", folder, filename=name, md5=md5)
        except (OSError, HTTPException) as error:
            failure = OSError(f"{mirror}{name}: {error}")
        except RuntimeError:
            failure = RuntimeError(f"{mirror}{name} has another checksum than the published {md5}")
        (folder / name).unlink(missing_ok=True)
    raise failure


def download_weights(url: str, sha256: str, *, workspace: Workspace | None = None) -> Path:
    """Download a file of weights to the `weights` folder of a workspace, complete and with the right checksum.

    Args:
        url: its address.
        sha256: the beginning, or all, of its checksum in hexadecimal.
        workspace: whose weights folder to use.

    Raises:
        OSError: if the address does not answer within the time-out, or the folder cannot be written.
        RuntimeError: if what arrives has another checksum.
    """
    from torch.hub import download_url_to_file

    path = (workspace or Workspace()).weights / url.rpartition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    with _socket_timeout(DOWNLOAD_TIMEOUT_SECONDS):
        download_url_to_file(url, str(path), hash_prefix=sha256, progress=not quiet())
    return path


def download_animals10(folder: Path) -> None:
    """Download the pictures of Animals-10, 26,179 files, from Kaggle; no account is needed.

    kagglehub goes on where a broken download stopped and checks its checksum. What it brings is copied beside
    `folder` and renamed: `folder` is there only when it is whole.

    Args:
        folder: where the ten class folders go; absent or empty.

    Raises:
        OSError: if Kaggle does not answer within the time-out, or the folder cannot be written.
        RuntimeError: if Kaggle refuses, or what arrives is damaged.

    Source: https://www.kaggle.com/datasets/alessiocorrado99/animals10
    """
    import kagglehub
    from kagglehub import exceptions

    refusals = (exceptions.BackendError, exceptions.NotFoundError, exceptions.UnauthenticatedError)
    try:
        with _requests_timeout(DOWNLOAD_TIMEOUT_SECONDS):
            found = Path(kagglehub.dataset_download(ANIMALS10)) / "raw-img"
    except (*refusals, exceptions.DataCorruptionError, BadZipFile, ValueError) as error:
        raise RuntimeError(f"Kaggle's {ANIMALS10}: {error}") from error
    arriving = folder.parent.with_name(f"{folder.parent.name}.part")
    shutil.rmtree(arriving, ignore_errors=True)
    shutil.copytree(found, arriving)  # no move: on Colab kagglehub answers with a read-only folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir():
        folder.rmdir()  # Windows renames to no folder that is there, be it empty
    arriving.replace(folder)


@contextmanager
def _requests_timeout(seconds: float) -> Iterator[None]:
    """Give up silent servers: kagglehub asks without a time-out, and `requests` ignores the socket's."""
    from requests import Session

    send = Session.send

    def send_within(session: Session, request: Any, **options: Any) -> Any:
        return send(session, request, **{**options, "timeout": options.get("timeout") or seconds})

    Session.send = send_within
    try:
        yield
    finally:
        Session.send = send


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
