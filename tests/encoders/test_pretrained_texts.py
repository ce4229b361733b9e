"""CLIP's text tower, kept beside its pictures."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers.networks import SQUEEZENET, VIT, pictures, pretrained
from makers.processes import in_another_process

from rectrio_lib.data.captions import prompts
from rectrio_lib.encoders.families import clip
from rectrio_lib.encoders.families.clip import clip_module
from rectrio_lib.encoders.pretrained import Pretrained, load_pretrained
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder
from rectrio_lib.search.searcher import Searcher
from rectrio_lib.search.zero_shot import index_names

TEXTS = ["a photo of a cat", "猫 🐈", "a cat and " * 5000, "a"]


@pytest.mark.parametrize("name", [VIT, "clip:RN50"])
def test_texts_get_the_vectors_that_clip_itself_gives_them(name):
    encoder = pretrained(name, texts=True)
    model = clip.build_clip(name.partition(":")[2], tiny=True).eval()
    vectors = encoder.encode_texts(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((4, encoder.dim), np.float32)
    expected = model.encode_text(clip_module().tokenize(TEXTS, truncate=True)).float()
    np.testing.assert_allclose(vectors, F.normalize(expected).detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS[1:2]), vectors[1:2], atol=1e-6)


def test_pictures_look_the_same_with_and_without_the_text_tower():
    images = pictures(3, 3, 32)
    with_texts, without = pretrained(VIT, texts=True), pretrained(VIT)
    np.testing.assert_array_equal(with_texts.encode(images), without.encode(images))
    assert "texts" not in without.arguments, "encoders saved before keep their fingerprint"
    assert not hasattr(without, "text_tower") and fingerprint(with_texts) != fingerprint(without)


def test_real_weights_fill_both_towers(monkeypatch):
    tiny = {**clip.CLIP_NETWORKS["ViT-B/32"], **clip._TINY["ViT"]}
    state = {k: v + 0.01 for k, v in clip.build_clip("ViT-B/32", tiny=True).state_dict().items()}
    monkeypatch.setitem(clip.CLIP_NETWORKS, "ViT-B/32", tiny)
    monkeypatch.setattr(clip, "find_state", lambda *_: (state, "file"))
    encoder = load_pretrained(VIT, size=32, texts=True)
    assert not encoder.stand_in and not encoder.training
    assert torch.equal(encoder.text_tower.embed.weight, state["token_embedding.weight"])
    assert torch.equal(encoder.backbone.network.proj, state["visual.proj"])


def test_both_towers_come_back_in_a_new_process(tmp_path, caplog):
    encoder = load_pretrained(VIT, size=32, texts=True)
    assert encoder.stand_in and sum("STAND-IN" in line for line in caplog.messages) == 1
    save_encoder(encoder, "net")
    code = (
        "import sys, numpy as np; from rectrio_lib import load_encoder; "
        "np.save(sys.argv[1], load_encoder('net').encode_texts(sys.argv[2:]))"
    )
    in_another_process(code, str(tmp_path / "found.npy"), *TEXTS[:2])
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), encoder.encode_texts(TEXTS[:2]), rtol=0, atol=1e-5)
    assert load_encoder("net").stand_in


def test_classes_exist_by_being_named():
    encoder, names = pretrained(VIT, texts=True), ["cat", "dog", "zebra"]
    captions = prompts(names)
    similarity = encoder.encode(pictures(5, 3, 32)) @ captions.means(encoder.encode_texts(captions.texts)).T
    found = Searcher(index_names(encoder, names), encoder).search(pictures(5, 3, 32), k=3)
    assert found.column("image_id").tolist() == [[names[n] for n in line] for line in (-similarity).argsort(1)]
    with pytest.raises(ValueError, match="come twice: 'cat'"):
        index_names(encoder, ["cat", "dog", "cat"])


@pytest.mark.parametrize("make", [Pretrained, load_pretrained])
@pytest.mark.parametrize(
    ("backbone", "dim", "named"), [(SQUEEZENET, 0, SQUEEZENET), (VIT, 8, f"{VIT} with a head of 8")]
)
def test_what_has_no_text_tower_to_keep_is_refused(make, backbone, dim, named):
    with pytest.raises(ValueError, match=named):
        make(backbone, dim=dim, texts=True)


@pytest.mark.parametrize(("texts", "problem"), [([""], "is empty"), ([], "at least one"), ("cat", "Expected a list")])
def test_texts_that_say_nothing_are_refused(texts, problem):
    with pytest.raises(ValueError, match=problem):
        pretrained(VIT, texts=True).encode_texts(texts)


def test_a_truncated_text_is_reported_and_one_that_just_fits_is_not(caplog):
    fits, too_long = "cat " * 75, "dog " * 76
    clip.tokenize([fits.strip(), "a cat"])
    assert caplog.messages == []
    clip.tokenize(["a cat", too_long])
    (line,) = caplog.messages
    assert "dog dog" in line and "77" in line and len(line) < 150
