import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers.texts import dual
from makers.training import CONFIG, Stopper, raising, same_run

from rectrio_lib.data import synthetic
from rectrio_lib.data.captions import Captions, prompts
from rectrio_lib.encoders.dual import DualEncoder, vocabulary
from rectrio_lib.training.contrastive import DescriptionLoss, contrastive_loss
from rectrio_lib.training.loop import fit
from rectrio_lib.training.losses import make_loss

NT_XENT = replace(CONFIG, loss="nt-xent", temperature=0.3)
TWO = Captions(("a red star", "star", "warm coat"), np.array([[True, True, False], [False, False, True]]))


def naive(images, texts, fits, temperature):
    """Every image chooses among the texts, then every text among the images, one at a time."""
    means = []
    for askers, others, fit_ in ((images, texts, fits), (texts, images, fits.T)):
        losses = []
        for i, asker in enumerate(askers):
            weights = [math.exp(float(asker @ other) / temperature) for other in others]
            own = [-math.log(w / sum(weights)) for j, w in enumerate(weights) if fit_[i, j]]
            if own:
                losses.append(sum(own) / len(own))
        means.append(sum(losses) / len(losses))
    return sum(means) / 2


def vectors(count, seed):
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 4, generator=rng, dtype=torch.float64))


FITS = {
    "one for each": torch.eye(5, dtype=torch.bool),
    "several share a class": torch.tensor([0, 0, 1, 1, 1])[:, None] == torch.tensor([0, 1, 1, 0])[None],
    "overlapping": torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool),
    "some fit nothing": torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool),
}


@pytest.mark.parametrize("fits", FITS.values(), ids=FITS.keys())
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_loss_is_that_of_a_naive_loop(fits, temperature):
    images, texts = vectors(len(fits), 0), vectors(fits.shape[1], 1)
    found = contrastive_loss(images, texts, fits, temperature)
    assert found.item() == pytest.approx(naive(images, texts, fits, temperature), rel=1e-9)


def test_a_image_is_pulled_towards_a_text_of_its_class_that_another_image_brought():
    """With one text for each image, the usual loss, it would be pushed away: a false negative."""
    images = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], requires_grad=True)
    texts = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])
    shared = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    moves = {}
    for name, fits in (("shared", shared), ("one for each", torch.eye(3, dtype=torch.bool))):
        (gradient,) = torch.autograd.grad(contrastive_loss(images, texts, fits, 0.5), images)
        moves[name] = float(-gradient[0] @ torch.tensor([0.0, 1, 0]))  # along the sphere, towards the second text
    assert moves["shared"] > 0.05 and moves["one for each"] < -0.05


def test_nothing_that_fits_costs_nothing():
    loss = contrastive_loss(vectors(3, 0), vectors(2, 1), torch.zeros(3, 2, dtype=torch.bool), 0.1)
    assert loss.item() == 0


# --- descriptions of a batch


def test_each_image_brings_a_text_that_fits_it_and_one_text_is_read_once():
    encoder, loss, read = dual(), DescriptionLoss(TWO), []
    tokenize = encoder.tokenize
    encoder.tokenize = lambda texts: tokenize(read.append(texts) or texts)
    torch.manual_seed(0)
    for _ in range(20):
        loss(encoder, torch.as_tensor(F.normalize(torch.randn(2, 10))), torch.tensor([0, 0]), 0.0)
        loss(encoder, torch.as_tensor(F.normalize(torch.randn(9, 10))), torch.tensor([0, 1] * 4 + [1]), 0.0)
    pairs, mixed = read[::2], read[1::2]
    assert {tuple(texts) for texts in pairs} == {("a red star",), ("star",), ("a red star", "star")}
    assert all(len(texts) == len(set(texts)) and "warm coat" in texts and len(texts) > 1 for texts in mixed)


def test_the_loss_of_a_batch_is_the_contrast_with_the_texts_and_that_among_the_images():
    encoder, targets = dual(), torch.tensor([0, 1, 0, 1, 1])
    images = F.normalize(torch.randn(5, 10, generator=torch.Generator().manual_seed(0)))
    single = Captions(("red star", "warm coat"), np.eye(2, dtype=bool))  # nothing is random
    texts = torch.as_tensor(encoder.encode_texts(single.texts))
    own = contrastive_loss(images, texts, torch.as_tensor(single.fits)[targets], encoder.temperature)
    assert DescriptionLoss(single)(encoder, images, targets, 0.5).item() == pytest.approx(own.item(), rel=1e-5)
    both = own + make_loss("nt-xent", temperature=0.3)(images, targets, 0.5)
    found = DescriptionLoss(single, NT_XENT)(encoder, images, targets, 0.5)
    assert found.item() == pytest.approx(both.item(), rel=1e-5)


def test_everything_that_takes_part_gets_a_gradient():
    encoder = dual().train()
    images = torch.rand(8, 1, 12, 12)
    DescriptionLoss(TWO)(encoder, encoder(images), torch.tensor([0, 1] * 4), 0.0).backward()
    idle = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert idle == []


def test_equal_losses_look_equal_and_others_do_not():
    other = Captions(("a red star", "star", "cold coat"), TWO.fits)
    moved = Captions(TWO.texts, ~TWO.fits)
    keys = [repr(DescriptionLoss(c, o)) for c in (TWO, other, moved) for o in (None, CONFIG, NT_XENT)]
    assert len(set(keys)) == len(keys)
    assert repr(DescriptionLoss(TWO, replace(CONFIG, epochs=9))) == keys[1]


# --- trained with the loop of every chapter


COLOURS = sorted(synthetic.COLOURS)
TOLD = prompts(COLOURS, ("{}", "something {}", "a thing in {}"))


def drawn(objects=9, seed=0):
    """Images of 12 x 12 pixels and the numbers of their colours."""
    pixels, frame = synthetic.draw_shapes(objects, views=1, size=12, channels=3, seed=seed)
    return pixels, np.array([COLOURS.index(colour) for colour in frame["colour"]])


def small():
    words = vocabulary(TOLD.texts)
    return DualEncoder(words, 3, 12, (8, "M", 8), 16, 0.2, 0.2, embedding=8, hidden=8, length=8)


def named(encoder):
    """Share of other drawings whose colour has the nearest texts."""
    pixels, targets = drawn(4, seed=1)
    centres = TOLD.means(encoder.encode_texts(TOLD.texts))
    return {"named": float(((encoder.encode(pixels) @ centres.T).argmax(1) == targets).mean())}


def train_dual(folder, validation=named, config=CONFIG, loss=None):
    loss = loss or DescriptionLoss(TOLD, NT_XENT)
    return fit(small, *drawn(), config, validation, folder, loss=loss)


def test_training_learns_to_name_colours_and_moves_towers_and_temperature(tmp_path):
    torch.manual_seed(CONFIG.seed)
    before = small()
    run = train_dual(tmp_path, config=replace(CONFIG, epochs=8, erase=0.0))
    assert run.validations["named"].max() > 0.5 > named(before.eval())["named"] + 0.2
    run.encoder.cpu(), before.cpu()
    assert run.encoder.temperature != before.temperature
    assert not torch.equal(run.encoder.text_tower.lstm.weight_hh_l0, before.text_tower.lstm.weight_hh_l0)


def test_a_stopped_training_goes_on_with_both_towers_as_if_it_had_never_been_stopped(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        train_dual(tmp_path / "a", Stopper(3, raising(KeyboardInterrupt()), named))
    same_run(*(train_dual(tmp_path / name) for name in "ab"))
    assert "Continuing after epoch 2 of 3" in caplog.text


def test_an_unfinished_training_with_other_descriptions_is_not_continued(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        train_dual(tmp_path, Stopper(3, raising(KeyboardInterrupt()), named))
    train_dual(tmp_path, loss=DescriptionLoss(prompts(COLOURS, ("in {}",))))
    assert "Continuing" not in caplog.text
