import logging

import pytest


@pytest.fixture(autouse=True)
def messages(caplog):
    """Catch what the library logs, INFO included."""
    caplog.set_level(logging.INFO)
