"""Downloads with mirrors, time-outs and checksums."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partialmethod
from http.client import HTTPException
from pathlib import Path
from zipfile import BadZipFile

from rectrio_lib.core.errors import DownloadError
from rectrio_lib.core.files import REFUSED, storage_errors
from rectrio_lib.core.workspace import Workspace, quiet

TIMEOUT_SECONDS = 10
ANIMALS10 = "alessiocorrado99/animals10"


def download_fashion_mnist(folder: Path) -> None:
    """Download the four official files, 30.9 MB, to a folder; intact ones that are there stay.

    Raises:
        DownloadError: if no mirror answers in time, or what arrives has another checksum than torchvision knows.
        StorageError: if the folder cannot be written.
    """
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import check_integrity

    arriving = folder.with_name(f"{folder.name}.part")  # not temporary: a later call continues a killed download
    with storage_errors(folder), _timeouts():
        for place in (folder, arriving):
            place.mkdir(parents=True, exist_ok=True)
        for name, md5 in FashionMNIST.resources:
            if not check_integrity(folder / name, md5):
                _download_from_any(FashionMNIST.mirrors, name, md5, arriving)
        for path in arriving.iterdir():
            path.replace(folder / path.name)
        arriving.rmdir()


def _download_from_any(mirrors: Sequence[str], name: str, md5: str, folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    for mirror in mirrors:
        try:
            return download_url(f"{mirror}{name}", folder, filename=name, md5=md5)
        except (OSError, HTTPException) as error:
            _raise_if_unwritable(error)
            failure = DownloadError(f"{mirror}{name}: {error}")
        except RuntimeError:
            failure = DownloadError(f"{mirror}{name} does not have the published md5 checksum {md5}")
        (folder / name).unlink(missing_ok=True)
    raise failure


def download_weights(url: str, sha256: str, *, workspace: Workspace | None = None) -> Path:
    """Download a file to `workspace.weights`, complete and with the checksum that begins with `sha256` or not at all.

    Raises:
        DownloadError: if the address does not answer in time, or what arrives has another checksum.
        StorageError: if the folder cannot be written.
    """
    from torch.hub import download_url_to_file

    path = (workspace or Workspace()).weights / url.rpartition("/")[2]
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _timeouts():
            download_url_to_file(url, str(path), hash_prefix=sha256, progress=not quiet())
    except (OSError, HTTPException, RuntimeError) as error:
        with storage_errors(path):
            _raise_if_unwritable(error)
        raise DownloadError(f"{url}: {str(error).strip()}") from error
    return path


def download_animals10(folder: Path) -> None:
    """Download the 26,179 images of Animals-10 from Kaggle, without an account, to a folder that is absent or empty.

    Raises:
        DownloadError: if Kaggle does not answer in time, refuses, or sends something damaged.
        StorageError: if the folder cannot be written, or holds something.
    """
    import kagglehub
    from kagglehub.exceptions import BackendError, DataCorruptionError, NotFoundError, UnauthenticatedError

    refusals = (BackendError, DataCorruptionError, NotFoundError, UnauthenticatedError)
    try:
        with _timeouts():
            cached = Path(kagglehub.dataset_download(ANIMALS10)) / "raw-img"
    except (*refusals, BadZipFile, OSError, ValueError) as error:
        with storage_errors(folder):
            _raise_if_unwritable(error)
        raise DownloadError(f"Kaggle's {ANIMALS10}: {error}") from error
    arriving = folder.parent.with_name(f"{folder.parent.name}.part")  # not inside, where it would be taken for a class
    with storage_errors(folder):
        try:
            shutil.rmtree(arriving, ignore_errors=True)
            shutil.copytree(cached, arriving)  # a copy: Colab's cache is read-only
            folder.mkdir(parents=True, exist_ok=True)
            folder.rmdir()  # refuses a folder that holds something; Windows renames to no folder that exists
            arriving.replace(folder)
        finally:
            shutil.rmtree(arriving, ignore_errors=True)


def _raise_if_unwritable(error: Exception) -> None:
    """Raise an error again if it is of this machine's disk, and not of a server; see `storage_errors`."""
    if getattr(error, "errno", None) in REFUSED:
        raise error


@contextmanager
def _timeouts() -> Iterator[None]:
    """Give up silent servers: torchvision, torch.hub and kagglehub have no setting for it.

    urllib takes the time-out of sockets; `requests`, which kagglehub calls, ignores it: its method must be changed.
    """
    from requests import Session

    before, send = socket.getdefaulttimeout(), Session.send
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    Session.send = partialmethod(send, timeout=TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
        Session.send = send
