import logging

import pytest
from makers.training import train


@pytest.fixture(autouse=True)
def messages(caplog):
    """Catch what the library logs, INFO included."""
    caplog.set_level(logging.INFO)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("uninterrupted"))
