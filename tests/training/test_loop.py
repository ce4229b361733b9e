import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers.training import CONFIG, drawn, figures, nearest_hits, same_run, train

from rectrio_lib.core.errors import ArgumentError, OutOfMemoryError
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.convnet import ConvNet
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder
from rectrio_lib.training.config import TrainConfig
from rectrio_lib.training.loop import CollapseWarning
from rectrio_lib.training.losses import LOSSES, MINERS, make_loss

# --- learning


@pytest.mark.parametrize("loss", [{}, {"loss": "normalized-softmax", "temperature": 0.05}], ids=["triplet", "softmax"])
def test_training_makes_unseen_shapes_find_their_class(tmp_path, loss):
    unseen = drawn(20, seed=1)
    config = TrainConfig(epochs=15, batch_size=75, learning_rate=0.01, shift=1, average=0.9, precision="no", **loss)

    def make():
        return ConvNet(1, 12, (16, "M", 32, "M", 32), 16, 0.2, 0.2)

    torch.manual_seed(config.seed)
    untrained = nearest_hits(make(), *unseen)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        trained = train(tmp_path, config, lambda e: {"recall_at_1": nearest_hits(e, *unseen)}, make, drawn(60))
    assert nearest_hits(trained.encoder, *unseen) > untrained + 0.15
    assert trained.history["loss"].iloc[-1] < trained.history["loss"].iloc[0]
    assert not trained.encoder.training


@pytest.mark.parametrize(
    ("loss", "miner"), [*(("triplet", miner) for miner in MINERS), *((loss, "all") for loss in LOSSES[1:])]
)
def test_the_same_seed_gives_the_same_curves_and_weights_and_another_one_others(tmp_path, loss, miner):
    config = replace(CONFIG, epochs=2, loss=loss, miner=miner)
    first, again, other = (train(tmp_path / str(i), replace(config, seed=s)) for i, s in enumerate((0, 0, 1)))
    same_run(first, again)
    assert fingerprint(first.encoder) != fingerprint(other.encoder)
    assert not figures(first.history).equals(figures(other.history))


def test_curves_hold_every_tenth_step_every_validation_and_what_happened_there(uninterrupted):
    history = uninterrupted.history
    assert history["step"].tolist() == [3, 6, 9]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert len(uninterrupted.validations) == 3
    assert history["active"].between(0, 1).all() and history["recall_at_1"].between(0, 1).all()
    for name in ("loss", "positive_distance", "negative_distance"):
        assert history[name].between(0.01, 2).all()
    assert (np.diff(history["seconds"], append=uninterrupted.seconds) >= 0).all()


def test_long_epochs_are_looked_at_every_ten_steps_and_validated_at_their_end(tmp_path):
    run = train(tmp_path, replace(CONFIG, epochs=2, batch_size=6))
    assert run.history["step"].tolist() == [10, 15, 20, 30]
    assert run.validations["step"].tolist() == [15, 30]
    assert run.history["validated"].tolist() == [False, True, False, True]
    assert run.history["recall_at_1"].isna().tolist() == [True, False, True, False]


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 4, 6, 8, 9]), (100, [9])])
def test_validation_follows_its_own_rhythm_and_always_the_last_step(tmp_path, every, steps):
    run = train(tmp_path, replace(CONFIG, validate_every=every))
    assert run.validations["step"].tolist() == steps


@pytest.mark.parametrize("average", [0.0, 0.999])
def test_the_encoder_returned_and_best_pt_hold_the_weights_of_the_best_first_figure(tmp_path, average):
    seen = []

    def scripted(encoder):
        seen.append({key: value.clone() for key, value in encoder.state_dict().items()})
        call = len(seen) - 1
        return {"map_at_r": np.float64([0.2, 0.9, 0.4][call]), "recall_at_1": [0.1, 0.2, 0.3][call]}

    run = train(tmp_path, replace(CONFIG, average=average), scripted)
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    for state in (run.encoder.state_dict(), best):
        for key, value in seen[1].items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=0, check_device=False)
    assert not torch.equal(seen[1]["project.0.weight"], seen[2]["project.0.weight"])
    assert torch.load(tmp_path / "last.pt", weights_only=True)["best"] == 0.9
    assert run.validations[["map_at_r", "recall_at_1"]].to_numpy().tolist() == [[0.2, 0.1], [0.9, 0.2], [0.4, 0.3]]


def test_the_average_of_the_weights_is_what_is_kept_unless_it_is_switched_off(tmp_path):
    kept = [train(tmp_path / str(a), replace(CONFIG, average=a)) for a in (0.0, 0.999)]
    assert fingerprint(kept[0].encoder) != fingerprint(kept[1].encoder)
    assert kept[0].history["loss"].equals(kept[1].history["loss"])


@pytest.mark.parametrize("average", [0.0, 0.999])
def test_a_trained_encoder_gives_the_same_vectors_after_saving_and_loading(tmp_path, average):
    trained = train(tmp_path, replace(CONFIG, average=average)).encoder
    save_encoder(trained, "net")
    np.testing.assert_allclose(load_encoder("net").encode(drawn()[0]), trained.encode(drawn()[0]), atol=1e-5)


def test_two_runs_in_one_process_may_have_different_precisions(tmp_path, uninterrupted):
    half = train(tmp_path, replace(CONFIG, precision="bf16"))
    assert half.history["loss"].between(0.01, 2).all()
    assert not half.history["loss"].equals(uninterrupted.history["loss"])


# --- collapse


class Point(Encoder):
    """Sends every image to the same point."""

    kind, dim = "point", 4

    def __init__(self):
        super().__init__(size=12)
        self.place = torch.nn.Parameter(torch.ones(4))

    def forward(self, images):
        return F.normalize(self.place.expand(len(images), -1))


class Blur(Point):
    """Sends every image close to the same point, with differences that say nothing about the class."""

    kind = "blur"

    def forward(self, images):
        noise = torch.randn(len(images), 4, generator=torch.Generator().manual_seed(int(images.sum() * 1e3) % 2**31))
        return F.normalize(self.place.expand(len(images), -1) + 0.1 * noise.to(images.device))


@pytest.mark.parametrize("make", [Point, Blur])
def test_a_collapse_is_reported_once_with_its_remedy_although_the_vectors_differ(tmp_path, make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CollapseWarning)
        train(tmp_path, replace(CONFIG, batch_size=6, epochs=9), lambda encoder: {"recall_at_1": 0.1}, make)
    (warning,) = [w for w in caught if issubclass(w.category, CollapseWarning)]
    assert "semihard" in str(warning.message)


@pytest.mark.filterwarnings("ignore::rectrio_lib.training.loop.CollapseWarning")
def test_weights_that_validate_no_better_than_earlier_ones_are_not_kept(tmp_path):
    seen = []

    def same(encoder):
        seen.append(encoder.place.detach().clone())
        return {"figure": 0.1}

    run = train(tmp_path, replace(CONFIG, average=0.0, weight_decay=0.5), same, Point)
    assert torch.equal(run.encoder.place.cpu(), seen[0].cpu())
    assert not torch.equal(seen[0], seen[-1])


def test_healthy_training_and_batches_without_a_negative_raise_no_alarm(tmp_path):
    images, _ = drawn()
    rare = np.zeros(len(images), np.int64)
    rare[0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        train(tmp_path, replace(CONFIG, batch_size=6))
        run = train(tmp_path, replace(CONFIG, batch_size=6), lambda encoder: {"recall_at_1": 0.1}, data=(images, rare))
    assert run.history["negative_distance"].isna().any()


# --- batches and steps


class Watcher(torch.nn.Module):
    """An augmentation that changes nothing and keeps what it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images.clone())
        return images


class Slope(Encoder):
    """Points in a plane at the angle of the first pixel, moved by one parameter: a gradient that is easily compared."""

    kind, dim = "slope", 2

    def __init__(self):
        super().__init__(size=12)
        self.weight = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, images):
        x = images[:, 0, 0]
        return F.normalize(torch.stack([x[:, 0] - x[:, 1] * self.weight[0], x[:, 1] + x[:, 2] * self.weight[1]], 1))


def unequal(count=60):
    """Noise whose first pixel tells images apart, of three classes of unequal size."""
    rng = np.random.default_rng(0)
    targets = rng.choice(3, count, p=[0.7, 0.2, 0.1])
    return rng.integers(0, 256, (count, 1, 12, 12), dtype=np.uint8), targets


def classes_of(batch, data):
    names = {image.tobytes(): target for image, target in zip(*data, strict=True)}
    return [int(names[image.cpu().numpy().tobytes()]) for image in batch]


@pytest.mark.parametrize(("per_class", "classes"), [(4, 3), (6, 2), (2, 3)])
def test_per_class_fills_every_batch_with_that_many_images_of_each_class(tmp_path, per_class, classes):
    watcher, data = Watcher(), unequal()
    config = replace(CONFIG, epochs=2, batch_size=per_class * classes, per_class=per_class)
    train(tmp_path, config, lambda e: {"figure": 1.0}, Slope, data, watcher)
    assert len(watcher.seen) == 2 * (60 // config.batch_size)
    drawn_classes = [classes_of(batch, data) for batch in watcher.seen]
    for row in drawn_classes:
        assert sorted(map(row.count, set(row))) == [per_class] * classes
    assert {number for row in drawn_classes for number in row} == {0, 1, 2}


def test_without_per_class_every_image_is_seen_once_an_epoch_in_another_order(tmp_path):
    watcher, data = Watcher(), unequal()
    train(tmp_path, replace(CONFIG, epochs=2, batch_size=20), lambda e: {"figure": 1.0}, Slope, data, watcher)
    first, second = (torch.cat(watcher.seen[i : i + 3]).cpu().numpy() for i in (0, 3))
    assert sorted(p.tobytes() for p in first) == sorted(p.tobytes() for p in second)
    assert sorted(p.tobytes() for p in first) == sorted(p.tobytes() for p in data[0])
    assert not np.array_equal(first, second)


def spy_on_steps(monkeypatch):
    """Collect the gradients that the optimizer is given."""
    steps, real = [], torch.optim.AdamW.step

    def step(self, *arguments, **options):
        steps.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return real(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return steps


def test_accumulate_steps_once_in_so_many_batches_with_the_mean_of_their_gradients(tmp_path, monkeypatch):
    steps, watcher, data = spy_on_steps(monkeypatch), Watcher(), unequal()
    config = replace(CONFIG, epochs=2, batch_size=12, accumulate=2, learning_rate=1e-12, weight_decay=0.0)
    train(tmp_path, config, lambda e: {"figure": 1.0}, Slope, data, watcher)
    assert len(watcher.seen) == 2 * 4, "the fifth batch of an epoch would be left over"
    assert len(steps) == 2 * 2
    for number, (gradient,) in enumerate(steps):
        means = []
        for batch in watcher.seen[2 * number : 2 * number + 2]:
            slope, targets = Slope(), torch.tensor(classes_of(batch, data))
            loss = make_loss(margin=config.margin)(slope(slope.prepare(batch)), targets, 0.0)
            means.append(torch.autograd.grad(loss, slope.weight)[0] / 2)
        torch.testing.assert_close(gradient, sum(means), rtol=1e-3, atol=1e-6)
        assert (means[0] - means[1]).abs().max() > 1e-4


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_the_learning_rate_runs_through_the_whole_cycle_however_many_batches_make_a_step(tmp_path, accumulate):
    config = replace(CONFIG, epochs=2, batch_size=6, accumulate=accumulate)
    rates = train(tmp_path, config, lambda e: {"figure": 1.0}, Slope, unequal()).history["learning_rate"]
    assert rates.max() > 0.5 * config.learning_rate
    assert rates.iloc[-1] < 1e-3 * config.learning_rate


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("warm_up", [0.0, 0.25, 0.5, 1.0])
def test_runs_of_a_few_steps_train_at_a_rate_that_is_neither_negative_nor_too_high(tmp_path, epochs, warm_up):
    config = replace(CONFIG, epochs=epochs, batch_size=60, warm_up=warm_up)
    run = train(tmp_path, config, lambda e: {"figure": 1.0}, Slope, unequal())
    assert run.history["learning_rate"].between(0, config.learning_rate).all()
    assert not torch.equal(run.encoder.weight, Slope().weight)


def test_an_augmentation_replaces_the_configured_one(tmp_path):
    config = replace(CONFIG, epochs=1, shift=1, flip=True, erase=1.0)
    watcher, data = Watcher(), unequal()
    train(tmp_path, config, lambda e: {"figure": 1.0}, Slope, data, watcher)
    assert len(classes_of(torch.cat(watcher.seen), data)) == 60


# --- what is refused


class TooLarge(Slope):
    message = ""

    def forward(self, images):
        raise RuntimeError(self.message)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    ],
)
def test_a_batch_that_does_not_fit_the_memory_is_answered_with_what_to_lower(tmp_path, monkeypatch, message):
    monkeypatch.setattr(TooLarge, "message", message)
    with pytest.raises(OutOfMemoryError, match=r"batch of 30 .* batch_size") as caught:
        train(tmp_path, make=TooLarge)
    assert str(caught.value.__cause__) == message


def test_another_error_of_the_network_is_passed_on_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(TooLarge, "message", "size mismatch")
    with pytest.raises(RuntimeError, match=r"^size mismatch$"):
        train(tmp_path, make=TooLarge)


@pytest.mark.parametrize(("change", "token"), [({"loss": "x"}, "'x'"), ({"miner": "x"}, "'x'"), ({"margin": 0}, "=0")])
def test_an_impossible_loss_is_refused_before_anything_is_written(tmp_path, change, token):
    with pytest.raises(ArgumentError, match=token):
        train(tmp_path, replace(CONFIG, **change))
    assert not any(tmp_path.iterdir())
