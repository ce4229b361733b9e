import json

import numpy as np
import pytest
import torch
from makers.networks import pictures
from makers.processes import in_another_process
from makers.texts import WORDS, dual

from rectrio_lib.encoders.dual import FIRST, PAD, PLAN, UNKNOWN, DualEncoder
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder

TEXTS = ["a red star", "coat", "warm unheard coat", "a red star " * 3]


# --- two towers, one space


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_and_texts_become_unit_vectors_of_one_length(channels):
    encoder = dual(channels=channels)
    for vectors, count in ((encoder.encode(pictures(4, channels)), 4), (encoder.encode_texts(TEXTS), len(TEXTS))):
        assert (vectors.shape, vectors.dtype) == ((count, 10), np.float32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_by_default_there_are_four_blocks_and_256_numbers_of_less_than_20_megabytes():
    encoder = DualEncoder(WORDS)
    assert PLAN.count("M") == 3 and encoder.dim == 256
    assert encoder.encode(pictures(2, size=28)).shape == encoder.encode_texts(["a", "red"]).shape == (2, 256)
    assert sum(value.nbytes for value in encoder.state_dict().values()) < 20e6


def test_a_texts_vector_depends_on_its_words_and_their_order_and_on_no_other_text():
    encoder = dual()
    together, alone = encoder.encode_texts(TEXTS), np.concatenate([encoder.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    other = encoder.encode_texts(["star red a", "A  RED, star!"])
    assert np.abs(other[0] - together[0]).max() > 1e-3
    np.testing.assert_allclose(other[1], together[0], atol=1e-6)


@torch.no_grad()
def test_padding_takes_no_part_in_mean_and_maximum():
    """With states that the test sets, so that only the pooling is left."""
    encoder = dual(length=3)
    tower = encoder.text_tower
    states = torch.linspace(-0.9, 0.9, 2 * 3 * 10).view(2, 3, 10).flip(1)
    tower.lstm.forward = lambda embedded: (states, None)
    tokens = torch.tensor([[FIRST, FIRST + 1, PAD], [UNKNOWN, FIRST, FIRST]])
    pooled = [torch.cat([s.mean(0), s.amax(0)]) for s in (states[0, :2], states[1])]
    expected = torch.nn.functional.normalize(tower.project(torch.stack(pooled)))
    torch.testing.assert_close(tower(tokens), expected)


def test_more_words_than_are_read_do_not_matter():
    encoder = dual()
    one, other = encoder.encode_texts(["a red star " * 3000, "a red star " * 3 + "coat"])
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_training_hides_words_but_never_padding_and_evaluation_hides_none():
    tower = dual(hide=0.5).text_tower
    seen = []
    tower.embed.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    tokens = torch.tensor([[FIRST, FIRST + 1, FIRST + 2, PAD]]).repeat(2000, 1)
    tower.train()(tokens)
    tower.eval()(tokens)
    hidden = seen[0] == UNKNOWN
    assert 0.45 < hidden[:, :3].float().mean() < 0.55
    assert torch.equal(seen[0][~hidden], tokens[~hidden]) and (seen[0][:, 3] == PAD).all()
    assert torch.equal(seen[1], tokens)


def test_encoding_texts_leaves_the_mode_as_it_was():
    encoder = dual()
    assert encoder.train().encode_texts(["a"]).shape == (1, 10)
    assert encoder.training and encoder.text_tower.training


# --- the temperature


def test_the_temperature_is_learned_without_weight_decay_and_stays_above_its_floor():
    encoder = dual()
    towers, temperature = encoder.parameter_groups(0.1, 0.5)
    assert temperature["params"] == [encoder.log_temperature] and temperature["weight_decay"] == 0
    assert {id(p) for g in (towers, temperature) for p in g["params"]} == {id(p) for p in encoder.parameters()}
    assert encoder.temperature.item() == pytest.approx(0.07)
    with torch.no_grad():
        encoder.log_temperature.fill_(-50)
    assert encoder.temperature.item() == pytest.approx(0.01)


# --- saved and loaded


def test_both_towers_and_the_vocabulary_come_back_in_a_new_process(tmp_path):
    encoder = dual()
    folder = save_encoder(encoder.train(), "net")
    np.save(tmp_path / "images.npy", pictures(5))
    code = (
        "import sys, json, numpy as np; from rectrio_lib import load_encoder; net = load_encoder('net'); "
        "np.savez(sys.argv[2], pictures=net.encode(np.load(sys.argv[1])), texts=net.encode_texts(sys.argv[3:]), "
        "tokens=net.tokenize(sys.argv[3:]).numpy())"
    )
    paths = [str(tmp_path / name) for name in ("images.npy", "found.npz")]
    in_another_process(code, *paths, *TEXTS)
    with np.load(paths[1]) as found:
        np.testing.assert_allclose(found["pictures"], encoder.eval().encode(pictures(5)), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["texts"], encoder.encode_texts(TEXTS), rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found["tokens"], encoder.tokenize(TEXTS))
    assert json.loads((folder / "encoder.json").read_text(encoding="utf-8"))["arguments"]["vocabulary"] == WORDS
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "weights.safetensors"]


def test_another_vocabulary_makes_another_encoder_of_equal_weights():
    one, other = dual(), dual(vocabulary=[*WORDS[1:], "zebra"])
    assert torch.equal(one.text_tower.embed.weight, other.text_tower.embed.weight)
    assert fingerprint(one) != fingerprint(other)


def test_the_card_says_who_reads_texts():
    for encoder, reads in ((dual(), True), (dual().picture_tower, False)):
        folder = save_encoder(encoder, "net")
        assert json.loads((folder / "encoder.json").read_text(encoding="utf-8"))["texts"] is reads
        assert type(load_encoder("net")) is type(encoder)


def test_an_encoder_without_a_text_tower_says_so():
    with pytest.raises(ValueError, match="'convnet'"):
        dual().picture_tower.encode_texts(["a"])
