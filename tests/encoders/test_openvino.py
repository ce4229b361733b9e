import functools
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from makers.commands import well
from makers.images import save_photograph
from makers.networks import LITE, RN, VIT, pictures, pretrained, small
from torch import nn

from rectrio_lib.core import errors
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders import openvino as openvino_module
from rectrio_lib.encoders.dual import DualEncoder, TextTower
from rectrio_lib.encoders.families.clip import ClipTextTower, build_clip, tokenize
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
    with pytest.raises(ModuleNotFoundError, match="openvino"):
        call()


@pytest.mark.parametrize(
    "call",
    [lambda p: openvino_module.export_encoder("net", pictures(20), precision=p), lambda p: load_exported("net", p)],
)
def test_an_unknown_precision_is_refused(call):
    with pytest.raises(ValueError, match=r"int8.*fp32, fp16"):
        call("int8")


def test_the_command_hands_over_its_options_and_prints_the_report(monkeypatch, tmp_path):
    def export(name, images, *options):
        calls.append((name, np.shape(images), *options))
        return pd.DataFrame([{"tower": "pictures", "same top-10": 0.995}])

    calls = []
    monkeypatch.setattr(openvino_module, "export_encoder", export)
    saved(small(channels=3))
    for number in range(14):
        save_photograph(tmp_path / "own" / f"{number}.png", number)
    (tmp_path / "own" / "broken.jpg").write_bytes(b"not an image")
    (tmp_path / "texts.txt").write_text("a cat\n\na dog\n", encoding="utf-8")
    options = ["--precision", "fp16", "--texts", tmp_path / "texts.txt"]
    said = well("export", "net", tmp_path / "own", *options)
    assert calls == [("net", (14, 3, 12, 12), ["a cat", "a dog"], "fp16")]
    assert "0.995" in said and "openvino-fp16" in said


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
    "encoder",
    [small(channels=3), pretrained(dim=8), pretrained(VIT), pretrained(LITE)],
    ids=["cnn", "head", "clip", "lite"],
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
    with pytest.raises(ValueError, match="of shape"):
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
    with pytest.raises(ValueError, match="Text 1 of 1"):
        loaded.encode_texts([" "])


def test_an_export_without_a_text_tower_reads_no_texts(net):
    with pytest.raises(ValueError, match="text tower"):
        load_exported("net").encode_texts(["a"])


def test_a_text_tower_wants_texts(openvino):
    saved(dual())
    with pytest.raises(ValueError, match="--texts"):
        openvino_module.export_encoder("net", pictures(30))


def test_sixteen_bits_halve_the_files(openvino):
    saved(small(plan=(64, "M", 128)))
    full, half = (exported_folder("net", p) for p in ("fp32", "fp16"))
    for precision in ("fp32", "fp16"):
        openvino_module.export_encoder("net", pictures(40), precision=precision)
    sizes = [(folder / "pictures.bin").stat().st_size for folder in (full, half)]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)
    assert fingerprint(load_exported("net", "fp16")) == fingerprint(load_encoder("net"))


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
    convert = openvino_module.convert
    monkeypatch.setattr(openvino_module, "convert", lambda module, inputs: convert(small(seed=1), inputs))


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


@pytest.mark.parametrize(("precision", "refused"), [("fp32", True), ("fp16", False)])
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
    with pytest.raises(ValueError, match="rectrio export net"):
        load_exported("net")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}', "[" * 100_000])
def test_a_damaged_card_of_an_export_is_refused(net, content):
    (exported_folder("net", "fp32") / "card.json").write_text(content, encoding="utf-8")
    with pytest.raises(errors.DataError, match="openvino-fp32"):
        load_exported("net")


def test_two_workspaces_hold_two_exports_of_one_name(openvino, tmp_path):
    one, other = Workspace(tmp_path / "one"), Workspace(tmp_path / "other")
    for seed, workspace in enumerate((one, other)):
        save_encoder(small(seed), "net", workspace=workspace)
    openvino_module.export_encoder("net", pictures(20), workspace=other)
    assert fingerprint(load_exported("net", workspace=other)) == fingerprint(small(1))
    with pytest.raises(errors.MissingArtefactError):
        load_exported("net", workspace=one)


def test_an_export_killed_between_its_two_renames_leaves_the_old_one(net):
    folder = exported_folder("net", "fp32")
    folder.replace(folder.with_name(f"{folder.name}.old"))
    assert fingerprint(load_exported("net")) == fingerprint(small())


@pytest.mark.parametrize("count", [0, 10])
def test_too_few_images_are_refused(openvino, count):
    saved(small())
    with pytest.raises(errors.ArgumentError, match=f"{count} readable"):
        openvino_module.export_encoder("net", pictures(count))


def test_a_missing_encoder_is_reported(openvino):
    with pytest.raises(errors.MissingArtefactError, match="net"):
        openvino_module.export_encoder("net", pictures(20))


# --- agreement of two networks


def unit(count, dim=8, seed=0):
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))


def naive(vectors, exported, gallery, gallery_exported, itself):
    same, kept = [], []
    for q in range(len(vectors)):
        candidates = [i for i in range(len(gallery)) if not (itself and i == q)]
        by_right = sorted(candidates, key=lambda i: -float(vectors[q] @ gallery[i]))[:10]
        by_other = sorted(candidates, key=lambda i: -float(exported[q] @ gallery_exported[i]))[:10]
        same.append(set(by_right) == set(by_other))
        kept.append(len(set(by_right) & set(by_other)) / 10)
    return sum(same) / len(same), sum(kept) / len(kept)


@pytest.mark.parametrize("itself", [True, False], ids=["among themselves", "in a gallery"])
def test_agreement_counts_as_a_naive_loop_does(itself):
    vectors = unit(40)
    exported = F.normalize(vectors + 0.02 * unit(40, seed=1))
    galleries = None if itself else (unit(60, seed=2), F.normalize(unit(60, seed=2) + 0.02 * unit(60, seed=3)))
    figures = openvino_module.agreement(vectors, exported, galleries)
    same, kept = naive(vectors, exported, *(galleries or (vectors, exported)), itself)
    assert 0 < same < 1
    assert (figures["same top-10"], figures["neighbours kept"]) == pytest.approx((same, kept))
    cosine = torch.stack([a @ b for a, b in zip(vectors, exported, strict=True)])
    assert figures["cosine"] == pytest.approx(float(cosine.min()), abs=1e-6)
    assert figures["mean cosine"] == pytest.approx(float(cosine.mean()), abs=1e-6)


def test_equal_vectors_agree_entirely_and_turned_ones_not():
    vectors = unit(30)
    assert openvino_module.agreement(vectors, vectors) == pytest.approx(
        {"cosine": 1, "mean cosine": 1, "same top-10": 1, "neighbours kept": 1}, abs=1e-6
    )
    mirrored = openvino_module.agreement(vectors, -vectors)
    assert mirrored["cosine"] == pytest.approx(-1) and mirrored["same top-10"] == 1  # neighbours alone are not enough


def test_pictures_that_are_equally_near_may_change_places():
    vectors = torch.cat([unit(5), unit(1, seed=1).repeat(15, 1)])  # of fifteen copies ten are chosen
    figures = openvino_module.agreement(vectors, vectors.flip(0).flip(0) * (1 + 1e-7 * torch.arange(20))[:, None])
    assert figures["same top-10"] == 1


# --- networks


@functools.cache
def towers():
    torch.manual_seed(0)
    words = torch.tensor([[2, 5, 0, 0], [7, 3, 4, 0], [9, 1, 2, 3], [4, 0, 0, 0]])
    return {
        "convnet": (small(looks=6), torch.randn(4, 1, 12, 12)),
        "ViT": (pretrained(VIT, dim=16, hidden=8), torch.randn(4, 3, 64, 64)),
        "ResNet of CLIP": (pretrained(RN), torch.randn(4, 3, 64, 64)),
        "lite": (pretrained(LITE), torch.randn(4, 3, 32, 32)),
        "squeezenet": (pretrained(), torch.randn(4, 3, 32, 32)),
        "LSTM": (TextTower(10, 6, 5, 7).eval(), words),
        "texts of CLIP": (
            ClipTextTower(build_clip("ViT-B/32", tiny=True)).eval(),
            tokenize(["a cat", "a red dog on the moon", "rain", "x"]),
        ),
    }


@pytest.mark.parametrize("name", towers())
def test_a_converted_network_gives_the_vectors_of_torch_for_any_batch(name):
    pytest.importorskip("openvino")
    network, inputs = towers()[name]
    run = openvino_module.compiled(openvino_module.convert(network, inputs[:2]), "fp32")
    with torch.inference_mode():
        for batch in (inputs[:1], inputs[:3], inputs, inputs.repeat(9, *[1] * (inputs.dim() - 1))):
            vectors = run(batch)
            assert vectors.dtype == torch.float32
            torch.testing.assert_close(vectors, network(batch), rtol=0, atol=2e-5)


def test_properties_reach_openvino():
    openvino = pytest.importorskip("openvino")
    module = nn.Linear(3, 2).eval()
    model = openvino_module.convert(module, torch.randn(2, 3))
    with pytest.raises(RuntimeError, match="NO_SUCH_PROPERTY"):
        openvino_module.compiled(model, "fp32", NO_SUCH_PROPERTY=1)
    assert isinstance(model, openvino.Model)


def test_no_conversion_is_reported_to_anybody():
    pytest.importorskip("openvino")
    code = (
        "from rectrio_lib.encoders.openvino import _openvino; _openvino(); "
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
