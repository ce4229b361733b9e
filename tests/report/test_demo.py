import shutil

import numpy as np
import pytest
from makers.commands import rectrio
from makers.folders import ENCODER, save_encoder_of_pixels
from makers.images import photograph
from makers.pages import Page

from rectrio_lib.core.workspace import Workspace
from rectrio_lib.report import demo
from rectrio_lib.search import building
from rectrio_lib.search.collection import Collection

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Take pixels for the pretrained backbone, and few pictures."""
    save_encoder_of_pixels()
    monkeypatch.setattr(building, "BACKBONE", ENCODER)
    monkeypatch.setattr(demo, "MOST", 14)
    monkeypatch.setattr(demo, "DRAWN", 2)
    monkeypatch.setattr(demo, "SIDE", 32)


@pytest.fixture
def products():
    """Write 28 products of three views, one of a single view, and a picture that is no product's."""
    home = Workspace().data / "products"
    home.mkdir(parents=True)
    for number in range(28):
        for view in range(3):
            side = 60 + 4 * view
            photograph(number).resize((side, side)).save(home / f"cup{number:02}_{view}.png")
    photograph(99).save(home / "alone_0.png")
    photograph(98).save(home / "stray.png")
    return home


def look():
    path = demo.run_demo()
    assert path == Workspace().outputs / "reports" / "demo" / "index.html"
    return Page(path.read_text(encoding="utf-8"))


def test_a_dozen_products_find_their_other_views(products, capsys):
    page = look()
    strips = page.strips_of("neighbours")
    assert len({strip[0][0].partition("/")[0] for strip in strips}) == len(strips) == 12
    for (asked, kind), *answers in strips:
        assert kind == "query" and [kind for _, kind in answers] == ["hit"] * 2 + ["miss"] * 6
        assert {path.partition("/")[0] for path, _ in answers[:2]} == {asked.partition("/")[0]}
    assert "STAND-IN" not in page.text["top"] + page.text["contents"] + capsys.readouterr().out
    assert f"{products}. Nothing was trained" in page.text["contents"]


def test_the_products_are_chosen_evenly_among_those_with_several_views(products):
    demo.run_demo()
    rows = Collection.open("demo").index.rows
    assert sorted(set(rows["label"])) == [f"cup{number:02}" for number in range(0, 28, 2)]
    assert rows["path"].iloc[0] == "cup00/0.png" and len(rows) == 14 * 3
    copied = Workspace().outputs / "demo" / "cup26" / "2.png"
    assert copied.read_bytes() == (products / "cup26_2.png").read_bytes()


def test_drawings_stand_in_and_the_page_says_so_on_top(caplog, tmp_path):
    page = look()
    assert "STAND-IN: these images are generated drawings" in page.text["top"]
    assert "holds no product photographs" in page.text["contents"]
    assert "STAND-IN" in caplog.text
    gallery = Collection.open("demo")
    assert len(gallery.index) == 10 * 2 * 4 and "ring0001" in set(gallery.index.rows["label"])
    query = shutil.copy(Workspace().outputs / "demo" / "ring0001" / "0.png", tmp_path / "query.png")
    np.testing.assert_allclose(gallery.search(query, k=1).scores, 1, atol=1e-3)


def test_products_that_have_come_replace_the_drawings_and_nothing_is_embedded_twice(request, capsys):
    demo.run_demo()
    request.getfixturevalue("products")
    capsys.readouterr()
    assert "STAND-IN" not in look().text["top"]
    assert set(Collection.open("demo").index.rows["label"].str[:3]) == {"cup"}
    assert "0 of 42 embedded" in look().text["search"]


def test_the_command_tells_where_the_page_is_and_that_the_weights_are_random(monkeypatch):
    monkeypatch.setattr(building, "BACKBONE", "torchvision:squeezenet1_0")
    monkeypatch.setattr(demo, "DRAWN", 1)
    result = rectrio("demo")
    assert result.exit_code == 0, result.output
    page = Workspace().outputs / "reports" / "demo" / "index.html"
    assert f"Page       {page}\n" in result.stdout and result.stderr.count("STAND-IN") >= 2
    assert Page(page.read_text(encoding="utf-8")).text["top"].count("STAND-IN") == 2
