"""nbval on several processes: chapters that build on one another stay in order, on one of them."""

from pathlib import Path

import pytest

# All others build on chapters 1 and 2. Of Ray, a machine has one address file: chapter 9 runs beside no test of it.
GROUPS = {"03": "animals", "07": "products", "08": "animals", "09": "ray"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each cell with the group of its chapter, for `--dist loadgroup`."""
    for item in items:  # those of tests/ as well
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group(GROUPS.get(item.path.name[:2], "fashion")))
