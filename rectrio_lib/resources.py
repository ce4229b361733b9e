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

DOWNLOAD_TIMEOUT_SECONDS = 10


class MissingArtefact(FileNotFoundError):  # noqa: N818 - the name says what is wrong, as FileNotFoundError does
    """A file that another chapter makes is not there."""


def project_root() -> Path:
    """Return the checkout around the working directory, or the working directory itself outside of one."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "notebooks" / "params").is_dir()), here)


def data_root() -> Path:
    """Return the folder of data sets: `RECTRIO_DATA`, else `data/`."""
    return project_root() / Path(os.environ.get("RECTRIO_DATA") or "data").expanduser()


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
