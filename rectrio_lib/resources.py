"""Where data, weights and results live, how they get here, and how a chapter finds what another one made."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

DOWNLOAD_TIMEOUT_SECONDS = 10
ANIMALS10 = "alessiocorrado99/animals10"


class MissingArtefact(FileNotFoundError):  # noqa: N818 - the name says what is wrong, as FileNotFoundError does
    """A file that another chapter makes is not there."""


def project_root() -> Path:
    """Return the checkout around the working directory, or the working directory itself outside of one."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "notebooks" / "params").is_dir()), here)


def data_root() -> Path:
    """Return the folder of data sets: `RECTRIO_DATA`, else `data/`."""
    return project_root() / Path(os.environ.get("RECTRIO_DATA") or "data").expanduser()


def weights_root() -> Path:
    """Return the folder of pretrained weights: `RECTRIO_WEIGHTS`, else `data/weights/`."""
    return project_root() / Path(os.environ.get("RECTRIO_WEIGHTS") or "data/weights").expanduser()


def outputs_root() -> Path:
    """Return the folder of everything that runs produce: `RECTRIO_OUTPUTS`, else `outputs/`."""
    return project_root() / Path(os.environ.get("RECTRIO_OUTPUTS") or "outputs").expanduser()


def offline() -> bool:
    """Tell whether `RECTRIO_OFFLINE=1` forbids downloads."""
    return os.environ.get("RECTRIO_OFFLINE", "0") not in ("", "0")


def quiet() -> bool:
    """Tell whether `RECTRIO_QUIET=1` turns progress bars off."""
    return os.environ.get("RECTRIO_QUIET", "0") not in ("", "0")


def artefact(relative: str, made_by: str) -> Path:
    """Return the path of something an earlier chapter leaves behind.

    Args:
        relative: path below `outputs/`, such as "encoders/fashion-triplet".
        made_by: the chapter that makes it, such as "02_train_fashion_triplet".

    Raises:
        MissingArtefact: if it is not there; the message names the chapter to run.
    """
    path = outputs_root() / relative
    restore_folder(path)
    if not path.exists():
        raise MissingArtefact(
            f"{path} is missing. Chapter {made_by} makes it: run `rectrio run --only {made_by[:2]}` first."
        )
    return path


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


def download_weights(url: str, sha256: str) -> Path:
    """Download a file of weights to `weights_root()`, whole and with the right checksum or not at all.

    Args:
        url: its address.
        sha256: the beginning, or all, of its checksum in hexadecimal.

    Raises:
        OSError: if the address does not answer within the time-out, or the folder cannot be written.
        RuntimeError: if what arrives has another checksum.
    """
    from torch.hub import download_url_to_file

    path = weights_root() / url.rpartition("/")[2]
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


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder so that a killed run leaves the old one whole.

    Yields an empty folder beside `folder`; when the block ends without an error it takes the place of `folder`.
    """
    restore_folder(folder)
    fresh, old = (folder.with_name(f"{folder.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    if folder.exists():
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Put back the old folder if `replaced_folder` was killed between its two renames."""
    old = folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        old.replace(folder)
