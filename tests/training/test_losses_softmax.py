"""The loss that has weights of its own: its values, and that training changes, keeps and restores them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers.training import CONFIG, Stopper, drawn, raising, same_run, small, train

from rectrio_lib.core.device import best_device
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.training.losses import make_loss

SOFT = replace(CONFIG, loss="normalized-softmax", temperature=0.05)


def class_vectors(folder) -> torch.Tensor:
    return torch.load(folder / "last.pt", weights_only=True)["loss"]["loss.W"]


def test_the_loss_is_the_cross_entropy_of_cosines_to_class_vectors_of_whatever_length():
    torch.manual_seed(0)
    numbers = np.array([3, 40, 7])
    loss = make_loss("normalized-softmax", temperature=0.05, classes=numbers, dim=5)
    vectors, targets = F.normalize(torch.randn(6, 5)), torch.tensor([7, 3, 40, 40, 7, 3])
    torch.testing.assert_close(loss.loss.W.norm(dim=0), torch.ones(3))
    with torch.no_grad():
        loss.loss.W.mul_(torch.tensor([1.0, 3.0, 0.2]))
        centres = F.normalize(loss.loss.W.T)
        place = {3: 0, 7: 1, 40: 2}
        terms = []
        for vector, target in zip(vectors, targets.tolist(), strict=True):
            chances = torch.exp(centres @ vector / 0.05)
            terms.append(-torch.log(chances[place[target]] / chances.sum()))
        found = loss(vectors.to(best_device()), targets.to(best_device()), 0.5)
        torch.testing.assert_close(found.cpu(), torch.stack(terms).mean())


def test_its_weights_follow_from_the_seed():
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(make_loss("normalized-softmax", classes=np.arange(4), dim=5).loss.W.detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("given", [{}, {"classes": np.arange(3)}, {"dim": 4}])
def test_without_classes_or_dim_it_is_refused(given):
    with pytest.raises(ArgumentError, match="classes and dim"):
        make_loss("normalized-softmax", **given)


def test_a_checkpoint_holds_its_weights_and_training_changes_them(tmp_path):
    train(tmp_path, replace(SOFT, epochs=1))
    trained = class_vectors(tmp_path)
    train(tmp_path, replace(SOFT, epochs=1, learning_rate=1e-9))
    assert trained.shape == (6, 10)
    start = class_vectors(tmp_path)
    torch.testing.assert_close(start.norm(dim=0), torch.ones(10))
    assert F.cosine_similarity(trained, start, dim=0).max() < 1 - 1e-5, "decay alone would leave the directions"
    train(tmp_path, CONFIG)
    assert "loss" not in torch.load(tmp_path / "last.pt", weights_only=True)


@pytest.mark.parametrize("call", [2, 3])
def test_a_stopped_run_goes_on_with_its_class_vectors_and_ends_as_if_it_had_never_been_stopped(tmp_path, caplog, call):
    whole = train(tmp_path / "whole", SOFT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", SOFT, Stopper(call, raising(KeyboardInterrupt())))
    same_run(train(tmp_path / "cut", SOFT), whole)
    assert f"Continuing after epoch {call - 1} of 3" in caplog.text
    torch.testing.assert_close(class_vectors(tmp_path / "cut"), class_vectors(tmp_path / "whole"), rtol=0, atol=0)


def test_gaps_between_class_numbers_change_nothing(tmp_path):
    pixels, targets = drawn()
    same_run(train(tmp_path / "a", SOFT), train(tmp_path / "b", SOFT, data=(pixels, targets * 7 + 100)))


def test_batches_that_add_up_give_the_class_vectors_the_mean_of_their_gradients(tmp_path, monkeypatch):
    steps, real = [], torch.optim.AdamW.step

    def step(self, *arguments, **options):
        steps.append(self.param_groups[-1]["params"][0].grad.clone())
        return real(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(tmp_path, replace(SOFT, epochs=1, batch_size=15, accumulate=3))
    assert len(steps) == 2
    assert all(gradient.shape == (6, 10) and gradient.any() for gradient in steps)


def test_an_encoder_with_nothing_to_train_is_refused_although_the_loss_has_weights(tmp_path):
    with pytest.raises(ArgumentError, match="blocks"):
        train(tmp_path, SOFT, make=lambda: small().requires_grad_(False))
