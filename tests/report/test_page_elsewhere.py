"""A report of a collection that lies in another workspace than the usual one."""

from makers.folders import save_classes

from rectrio_lib.core.workspace import Workspace
from rectrio_lib.embeddings.store import open_store
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.registry import save_encoder
from rectrio_lib.report.page import write_page
from rectrio_lib.search.collection import Collection


def test_report_and_ledger_are_those_of_the_workspace_of_the_collection(tmp_path):
    there = Workspace(tmp_path, outputs=tmp_path / "there")
    save_encoder(RawPixels(3, 8), "pixels", workspace=there)
    pets = save_classes(tmp_path / "pets")
    (pets / "broken.jpg").write_bytes(b"no image")
    shop = Collection.build(pets, "pixels", workspace=there)
    page = write_page(shop, open_store("pixels", "pets", there), shop.report, "None was trained.")
    assert page.is_relative_to(there.outputs)
    assert str(there.outputs / "embeddings" / "pixels--pets" / "ledger.csv") in page.read_text(encoding="utf-8")
    assert not Workspace().outputs.exists() or not any(Workspace().outputs.rglob("*--pets"))
