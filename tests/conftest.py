"""Tests work in folders of their own, fetch nothing and report nothing."""

from pathlib import Path

import pytest

from rectrio_lib.core.workspace import Workspace

REAL_DATA = Workspace().data  # before the fixture below points elsewhere


@pytest.fixture(scope="session")
def real_data() -> Path:
    return REAL_DATA


@pytest.fixture(scope="module", autouse=True)
def away_from_the_checkout(tmp_path_factory):  # not for the session: notebooks are run after the tests
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("RECTRIO_DATA", "RECTRIO_WEIGHTS", "RECTRIO_OUTPUTS"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable.lower())))
        for variable in ("RECTRIO_OFFLINE", "RECTRIO_QUIET"):
            patch.setenv(variable, "1")
        yield


@pytest.fixture
def full_precision(monkeypatch):
    """Compute in float32 on every processor."""
    monkeypatch.setattr("rectrio_lib.core.device.best_precision", lambda device: "no")


@pytest.fixture(autouse=True)
def own_folders(away_from_the_checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("RECTRIO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RECTRIO_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(tmp_path / "outputs"))
