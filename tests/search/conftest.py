import pytest
from makers.folders import save_classes, save_encoder_of_pixels
from makers.postgres import postgres_url  # noqa: F401


@pytest.fixture
def folder(tmp_path):
    save_encoder_of_pixels()
    return save_classes(tmp_path / "pets")
