"""What went wrong far away, in one sentence: without addresses that servers made up, and without credentials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rectrio_lib.core.errors import ArgumentError, DataError, DownloadError, MissingPackageError, RectrioError
from rectrio_lib.data.decoding import UnreadableError

IN_EXTRA = ("s3", "s3a", "gs", "gcs", "http", "https")  # rectrio[remote] brings what these need
SIGN_IN = ("Credential", "Token", "Denied", "Permission", "Forbidden", "Unauthorized", "SignatureDoesNotMatch")
HOW = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS; for a public bucket FSSPEC_GS_TOKEN=anon",
}
NO_PARTS = "the server does not send parts of files, which archives need"


@contextmanager
def one_sentence(uri: str) -> Iterator[None]:
    """Raise a RectrioError that says why an address cannot be read."""
    scheme = uri.partition("://")[0]
    try:
        yield
    except RectrioError:
        raise
    except ImportError as error:
        how = "pip install 'rectrio[remote]'" if scheme in IN_EXTRA else str(error)
        raise MissingPackageError(f"{uri} needs packages that are not installed: {how}.") from error
    except FileNotFoundError as error:
        raise DataError(f"There is no {uri}: check the name of the bucket or server, and the folder.") from error
    except Exception as error:  # each kind of server has errors of its own
        if "Protocol not known" in str(error):
            raise ArgumentError(f"{scheme}:// is not known: take a folder, s3://, gs:// or https://.") from error
        how = f": {HOW[scheme]}" if is_refused(error) and scheme in HOW else ""
        raise DownloadError(f"{uri} cannot be read: {reason(error)}{how}.") from error


def is_refused(error: Exception) -> bool:
    """Tell whether credentials are missing or do not suffice."""
    said = f"{type(error).__name__} {error}"
    return (
        isinstance(error, PermissionError)
        or getattr(error, "status", 0) in (401, 403)
        or any(word in said for word in SIGN_IN)
    )


def reason(error: Exception) -> str:
    """Return what the ledger says of an error; words of servers, which may quote a request, stay out of it."""
    if isinstance(error, UnreadableError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if is_refused(error):
        return "there are no credentials for it, or they are refused"
    if "bytes so far" in str(error):  # fsspec, of an answer that is longer than what was asked for
        return NO_PARTS
    if type(error) is OSError and error.errno is None:  # so do readers of Parquet say it
        return "damaged, or it cannot be read"
    status = getattr(error, "status", 0)
    return f"the server answers {status}" if status else type(error).__name__
