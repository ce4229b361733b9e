import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from makers.images import save_photograph
from makers.networks import VIT, pictures, pretrained, small
from typer.testing import CliRunner

from rectrio_lib.cli.app import app
from rectrio_lib.core import errors
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders import openvino as openvino_module
from rectrio_lib.encoders import openvino_network
from rectrio_lib.encoders.dual import DualEncoder
from rectrio_lib.encoders.openvino import _refuse, exported_folder, load_exported
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder
from rectrio_lib.index.index import Index
from rectrio_lib.search.searcher import Searcher

TEXTS = ["a red ring", "a blue star", "red star", "blue", "a ring"]


def dual(seed=0):
    torch.manual_seed(seed)
    return DualEncoder(["a", "blue", "red", "ring", "star"], size=12, plan=(8, "M", 16), dim=10, length=4).eval()


def saved(encoder, name="net"):
    save_encoder(encoder, name)
    return encoder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- without OpenVINO


@pytest.mark.parametrize(
    "call", [lambda: openvino_module.export_encoder("net", pictures(20)), lambda: load_exported("net")]
)
def test_without_openvino_one_sentence_says_what_to_install(monkeypatch, call):
    saved(small())
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rectrio\[openvino\]'"):
        call()


@pytest.mark.parametrize(
    "call",
    [lambda p: openvino_module.export_encoder("net", pictures(20), precision=p), lambda p: load_exported("net", p)],
)
def test_an_unknown_precision_is_refused(call):
    with pytest.raises(ValueError, match=r"precision='int4': choose one of fp32, fp16, int8\."):
        call("int4")


def test_the_command_hands_over_its_options_and_prints_the_report(monkeypatch, tmp_path):
    def stand_in(*arguments):
        asked.append(arguments)
        return pd.DataFrame([{"tower": "pictures", "same top-10": 0.995}])

    asked = []
    monkeypatch.setattr(openvino_module, "export_encoder", stand_in)
    (tmp_path / "texts.txt").write_text("a cat\n\na dog\n", encoding="utf-8")
    options = ["--precision", "int8", "--texts", str(tmp_path / "texts.txt")]
    result = CliRunner().invoke(app, ["export", "net", str(tmp_path), *options])
    assert asked == [("net", tmp_path, ["a cat", "a dog"], "int8")]
    assert "0.995" in result.stdout and "openvino-int8" in result.stdout


# --- with it


@pytest.fixture(scope="module")
def made(away_from_the_checkout, tmp_path_factory):
    """Folder of outputs that hold a small encoder and its export in float32, and the report."""
    pytest.importorskip("openvino")
    home = tmp_path_factory.mktemp("made") / "outputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECTRIO_OUTPUTS", str(home))
        saved(small())
        return home, openvino_module.export_encoder("net", pictures(60))


@pytest.fixture
def net(made):
    """The same in the outputs of this test; the report."""
    shutil.copytree(made[0], Workspace().outputs)
    return made[1]


@pytest.fixture
def openvino():
    return pytest.importorskip("openvino")


@pytest.mark.parametrize(
    "encoder", [small(channels=3), pretrained(dim=8), pretrained(VIT)], ids=["cnn", "head", "clip"]
)
def test_what_is_loaded_back_is_an_encoder_like_its_source(openvino, encoder):
    saved(encoder)
    images = pictures(40, *(encoder.preprocessing[k] for k in ("channels", "size")))
    report = openvino_module.export_encoder("net", images)
    loaded = load_exported("net")
    assert (loaded.dim, loaded.preprocessing, loaded.stand_in) == (encoder.dim, encoder.preprocessing, encoder.stand_in)
    assert loaded.activation == encoder.activation
    assert fingerprint(loaded) == fingerprint(encoder)
    with torch.inference_mode():
        expected = encoder(encoder.prepare(torch.from_numpy(images))).numpy()
    for count in (1, 3, 40):
        vectors = loaded.encode(images[:count])
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected[:count], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="takes pictures of shape"):
        loaded.encode(images[:, :, 1:])
    (row,) = report.to_dict("records")
    assert (row["tower"], row["compared"], row["same top-10"]) == ("pictures", 40, 1)
    assert row["cosine"] > 0.9999 and row["MB"] >= 0


def test_an_index_of_the_source_takes_the_questions_of_the_export(net):
    encoder, images = load_encoder("net"), pictures(60)
    rows = pd.DataFrame({"image_id": [f"p{i}" for i in range(60)]})
    index = Index.build("flat", encoder.encode(images), rows, fingerprint(encoder))
    found = Searcher(index, load_exported("net")).search(images[:9], k=3).frame()
    assert found[found["rank"] == 1]["image_id"].tolist() == [f"p{i}" for i in range(9)]


@pytest.mark.parametrize("encoder", [dual(), pretrained(VIT, texts=True)], ids=["from scratch", "clip"])
def test_both_towers_are_exported_and_texts_keep_their_place_among_the_pictures(openvino, encoder):
    saved(encoder)
    images = pictures(30, *(encoder.preprocessing[k] for k in ("channels", "size")))
    report = openvino_module.export_encoder("net", images, TEXTS)
    assert report["tower"].tolist() == ["pictures", "texts"] and report["compared"].tolist() == [30, 5]
    loaded = load_exported("net")
    np.testing.assert_allclose(loaded.encode_texts(TEXTS[:3]), encoder.encode_texts(TEXTS[:3]), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="is empty: say in words"):
        loaded.encode_texts([" "])


def test_an_export_without_a_text_tower_reads_no_texts(net):
    with pytest.raises(ValueError, match="has no text tower"):
        load_exported("net").encode_texts(["a"])


def test_a_text_tower_wants_texts(openvino):
    saved(dual())
    with pytest.raises(ValueError, match="has a text tower: give some descriptions"):
        openvino_module.export_encoder("net", pictures(30))


def test_sixteen_bits_halve_the_files(openvino):
    saved(small(plan=(64, "M", 128)))
    full, half = (exported_folder("net", p) for p in ("fp32", "fp16"))
    for precision in ("fp32", "fp16"):
        openvino_module.export_encoder("net", pictures(40), precision=precision)
    sizes = [(folder / "pictures.bin").stat().st_size for folder in (full, half)]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)
    assert fingerprint(load_exported("net", "fp16")) == fingerprint(load_encoder("net"))


def test_eight_bits_tell_their_loss_and_are_no_match_for_an_index_of_the_source(openvino):
    pytest.importorskip("nncf")
    encoder, images = saved(small()), pictures(61)
    (row,) = openvino_module.export_encoder("net", images, precision="int8").to_dict("records")
    assert row["compared"] == 30  # every other one was calibrated with
    assert 0.9 < row["cosine"] < 0.999999 and row["same top-10"] <= row["neighbours kept"] < 1
    loaded = load_exported("net", "int8")
    index = Index.build("flat", encoder.encode(images), pd.DataFrame({"image_id": range(61)}), fingerprint(encoder))
    with pytest.raises(ValueError, match=fingerprint(loaded)):
        Searcher(index, loaded).search(images[:1])


def test_the_card_tells_source_files_and_report(net):
    folder = exported_folder("net", "fp32")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert sorted(files(folder)) == ["card.json", "pictures.bin", "pictures.xml"] == ["card.json", *card["files"]]
    assert (card["made_from"], card["hash"]) == (fingerprint(small()), fingerprint(small()))
    assert card["versions"].keys() == {"rectrio", "torch", "openvino"}
    assert card["report"] == net.to_dict("records")


# --- refusals


@pytest.fixture
def wrong(monkeypatch):
    """Make the converter convert another network than it was given."""
    convert = openvino_network.convert
    monkeypatch.setattr(openvino_network, "convert", lambda module, *rest: convert(small(seed=1), *rest))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_export_that_gives_other_vectors_is_refused_and_the_one_before_stays(net, wrong, precision):
    folder = exported_folder("net", precision)
    if precision != "fp32":
        shutil.copytree(exported_folder("net", "fp32"), folder)
    before = files(folder)
    said = rf"not exported in {precision}: .* on 40 pictures: cosine .* \(at least 0\.999\)"
    with pytest.raises(ValueError, match=said):
        openvino_module.export_encoder("net", pictures(40), precision=precision)
    assert files(folder) == before


def test_a_refused_export_is_not_there(openvino, wrong):
    saved(small())
    with pytest.raises(ValueError, match="not exported"):
        openvino_module.export_encoder("net", pictures(40))
    with pytest.raises(errors.MissingArtefactError, match="rectrio export net FOLDER --precision fp32"):
        load_exported("net")


def test_vectors_that_are_no_numbers_are_refused():
    report = pd.DataFrame([{"tower": "pictures", "compared": 100, "cosine": np.nan, "same top-10": 1.0}])
    with pytest.raises(ValueError, match=r"cosine nan \(at least 0\.999\)\.$"):
        _refuse(report, "net", "fp16")


@pytest.mark.parametrize(("precision", "refused"), [("fp32", True), ("fp16", False), ("int8", False)])
def test_too_few_equal_neighbours_are_refused_in_float32_alone(precision, refused):
    report = pd.DataFrame([{"tower": "pictures", "compared": 100, "cosine": 0.9995, "same top-10": 0.98}])
    if refused:
        with pytest.raises(ValueError, match=r"same top-10 0\.9800 \(at least 0\.99\)\.$"):
            _refuse(report, "net", precision)
    else:
        _refuse(report, "net", precision)


def test_an_export_of_another_encoder_is_refused_with_both_named(net, made):
    folder, second = exported_folder("net", "fp32"), saved(small(seed=1))
    assert not folder.exists()  # it went with its encoder
    shutil.copytree(made[0] / "encoders" / "net" / folder.name, folder)
    said = f"made from encoder {fingerprint(small())}, but net is {fingerprint(second)}"
    with pytest.raises(ValueError, match=said):
        load_exported("net")


@pytest.mark.parametrize("name", ["pictures.bin", "pictures.xml"])
@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_damaged_export_is_refused(net, name, harm):
    path = exported_folder("net", "fp32") / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content) if harm == "changed" else path.unlink()
    with pytest.raises(ValueError, match="is damaged: make it again, `rectrio export net"):
        load_exported("net")


def test_an_export_killed_between_its_two_renames_leaves_the_old_one(net):
    folder = exported_folder("net", "fp32")
    folder.replace(folder.with_name(f"{folder.name}.old"))
    assert fingerprint(load_exported("net")) == fingerprint(small())


@pytest.mark.parametrize(("count", "precision"), [(10, "fp32"), (21, "int8")])
def test_too_few_pictures_are_refused(openvino, count, precision):
    saved(small())
    with pytest.raises(ValueError, match=f"{count} readable pictures cannot show"):
        openvino_module.export_encoder("net", pictures(count), precision=precision)


def test_pictures_may_come_from_a_folder(openvino, tmp_path, monkeypatch):
    saved(small(channels=3))
    for number in range(14):
        save_photograph(tmp_path / "own" / f"{number}.png", number)
    (tmp_path / "own" / "broken.jpg").write_bytes(b"no picture")
    assert openvino_module.export_encoder("net", tmp_path / "own")["compared"].tolist() == [14]
    monkeypatch.setattr(openvino_module, "MOST_PICTURES", 12)
    assert openvino_module.export_encoder("net", tmp_path / "own")["compared"].tolist() in ([12], [11])
    for path in (tmp_path / "own").glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="0 readable pictures"):
        openvino_module.export_encoder("net", tmp_path / "own")


def test_a_missing_encoder_is_told(openvino):
    with pytest.raises(errors.MissingArtefactError, match=r"encoders.net is missing"):
        openvino_module.export_encoder("net", pictures(20))
