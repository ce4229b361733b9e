"""Errors that a user can act on: each message says what is wrong, what was expected and what to do.

The command line shows these as one sentence; any other exception is a bug and keeps its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class RectrioError(Exception):
    """Base of all errors that RecTrio raises on purpose."""


class ArgumentError(RectrioError, ValueError):
    """An argument is out of range, unknown, or does not fit the others."""


class DataError(RectrioError, ValueError):
    """A file of data, weights or results is missing, damaged, or not what it should be."""


class MissingArtefactError(RectrioError, FileNotFoundError):
    """A data set, encoder, store or index is not there; the message names the command that makes it."""


class MissingPackageError(RectrioError, ModuleNotFoundError):
    """An optional package is not installed; the message names the extra that brings it."""


@contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Say which extra brings what something needs, where a package that the block imports is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        told = f"{what} needs a package that is not installed ({error.name})"
        raise MissingPackageError(f"{told}: pip install 'rectrio[{extra}]'.") from error


class DownloadError(RectrioError, OSError):
    """A server is out of reach, refuses, or sends something damaged."""


class StorageError(RectrioError, OSError):
    """A file or folder cannot be written."""


class StoreInUseError(StorageError):
    """Another process is writing the store."""


class ClusterError(RectrioError, RuntimeError):
    """The machines that share a piece of work cannot be reached, differ, or fail."""


class OutOfMemoryError(RectrioError, RuntimeError):
    """A batch does not fit the device."""


class ProcessError(RectrioError, RuntimeError):
    """Another process that shares the work has ended before its time."""


class RecallOutOfReachError(RectrioError, ValueError):
    """An index of this kind cannot reach the requested recall at any search setting."""


class ChapterError(RectrioError, RuntimeError):
    """A chapter could not be run to its end."""
