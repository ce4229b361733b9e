"""The two phases of fine-tuning, from end to end: what moves, what stays, what is the same either way."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from makers.networks import RESNET, RN, SQUEEZENET, VIT, pretrained
from makers.training import Stopper, nearest_hits, photos, raising, same_run, validate_photos
from safetensors.torch import save_file
from torchvision import models

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders import base
from rectrio_lib.encoders.pretrained import ProjectionHead, load_pretrained
from rectrio_lib.training.augment import RandomView
from rectrio_lib.training.config import TrainConfig
from rectrio_lib.training.feature_cache import cache_features
from rectrio_lib.training.loop import fit

ALL = [SQUEEZENET, RESNET, VIT, RN]
CONFIG = TrainConfig(
    epochs=2, batch_size=8, learning_rate=0.01, average=0.5, shift=0, flip=False, precision="no", margin=0.5
)

pytestmark = pytest.mark.usefixtures("full_precision")


def maker(name=SQUEEZENET, blocks=0, checkpointing=False, **options):
    def make():
        encoder = pretrained(name, **{"dim": 6, **options})
        encoder.backbone.unfreeze_last(blocks)
        encoder.backbone.set_grad_checkpointing(checkpointing)
        return encoder

    return make


def tune(folder, make, config=CONFIG, validation=validate_photos, data=None, augmentation=None):
    return fit(make, *(data or photos()), config, validation, folder, augmentation)


def moved(before, after):
    """Names of what differs in a single bit, buffers included."""
    after = after.state_dict()
    return {key for key, value in before.state_dict().items() if not torch.equal(value, after[key])}


# --- what moves


@pytest.mark.parametrize("average", [0.0, 0.5])
@pytest.mark.parametrize("name", ALL)
def test_phase_1_moves_the_head_and_not_a_bit_of_the_backbone(tmp_path, name, average):
    before = pretrained(name, dim=6)
    after = tune(tmp_path, maker(name), replace(CONFIG, epochs=1, average=average)).encoder
    assert moved(before.backbone, after.backbone) == set()
    torch.manual_seed(CONFIG.seed)
    assert moved(maker(name)().head, after.head) == {"project.0.weight"}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("blocks", [1, 2])
def test_phase_2_moves_the_named_blocks_with_what_follows_them_and_no_statistics(tmp_path, name, blocks):
    before = pretrained(name, dim=6)
    run = tune(tmp_path, maker(name, blocks), replace(CONFIG, epochs=1, batch_size=12))
    network, after = before.backbone, run.encoder.backbone
    free = (*network.blocks[-blocks:], *network.tail)
    expected = {
        key for key, _ in network.network.named_parameters() if any(f"{key}.".startswith(f"{f}.") for f in free)
    }
    assert moved(network.network, after.network) == expected != set()
    assert "head.project.0.weight" in moved(before, run.encoder)


def test_the_backbone_moves_less_at_a_lower_rate(tmp_path):
    distances = []
    for rate in (0.01, 1.0):
        after = tune(
            tmp_path / str(rate), maker(blocks=1), replace(CONFIG, backbone_rate=rate, weight_decay=0.0)
        ).encoder
        before = pretrained(dim=6).backbone.state_dict()
        changes = [(value - before[key]).abs().max() for key, value in after.backbone.state_dict().items()]
        distances.append(max(changes).item())
    assert 0 < 10 * distances[0] < distances[1]


# --- the same either way


@pytest.mark.parametrize("name", [SQUEEZENET, VIT])
def test_phase_1_on_cached_features_gives_the_head_that_the_whole_network_gives(tmp_path, name):
    images, targets = photos()
    bare, asked = pretrained(name), photos(12, seed=1)
    cached = cache_features(bare, images)
    asked_features = cache_features(bare, asked[0])[:, 0]

    def validate_features(head):
        return {"recall_at_1": nearest_hits(head, np.array(asked_features), asked[1])}

    def make():
        return ProjectionHead(bare.dim, 6, hidden=5)

    config = replace(CONFIG, epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of the read-only memory map
        one = tune(tmp_path / "cached", make, config, validate_features, (cached, targets), RandomView())
    other = tune(tmp_path / "whole", maker(name, hidden=5), config)
    for key, value in one.encoder.state_dict().items():
        torch.testing.assert_close(value, other.encoder.head.state_dict()[key], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(one.history["loss"], other.history["loss"], atol=1e-4)
    torch.manual_seed(config.seed)
    assert "project.3.weight" in moved(make(), one.encoder)


@pytest.mark.parametrize("name", [SQUEEZENET, VIT])
def test_checkpointing_gives_the_same_fine_tuned_network(tmp_path, name):
    config = replace(CONFIG, learning_rate=1e-3, epochs=1)
    plain, thrifty = (tune(tmp_path / str(on), maker(name, 2, on), config).encoder for on in (False, True))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(thrifty.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    assert len(moved(pretrained(name, dim=6), plain)) > 2


# --- stopped, and continued


def views_of(count=40):
    """Features of images in four views each, with the class in the first few of many numbers."""
    rng = np.random.default_rng(0)
    targets = np.arange(count) % 4
    features = rng.normal(size=(count, 4, 30))
    features[:, :, :4] += 4 * np.eye(4)[targets][:, None]
    return features.astype(np.float32), targets


def validate_head(head):
    features, targets = views_of()
    return {"recall_at_1": nearest_hits(head, features[:, 1], targets)}


def make_head():
    return ProjectionHead(30, 6, hidden=8)


def test_phase_1_learns_from_cached_features(tmp_path):
    torch.manual_seed(CONFIG.seed)
    before = validate_head(make_head())["recall_at_1"]
    run = tune(tmp_path, make_head, replace(CONFIG, epochs=15), validate_head, views_of(), RandomView())
    assert validate_head(run.encoder)["recall_at_1"] > before + 0.2


@pytest.mark.parametrize("call", [1, 2, 3])
def test_phase_1_on_cached_views_goes_on_and_ends_as_if_it_had_never_been_stopped(tmp_path, caplog, call):
    config = replace(CONFIG, epochs=3, average=0.9)

    def run(folder, validation=validate_head):
        return tune(tmp_path / folder, make_head, config, validation, views_of(), RandomView())

    with pytest.raises(KeyboardInterrupt):
        run("stopped", Stopper(call, raising(KeyboardInterrupt()), validate_head))
    same_run(run("stopped"), run("whole"))
    assert (f"Continuing after epoch {call - 1} of 3" in caplog.text) is (call > 1)


@pytest.mark.parametrize("call", [2, 4])
def test_phase_2_with_even_classes_and_accumulation_goes_on_as_if_never_stopped(tmp_path, caplog, call):
    config = replace(CONFIG, epochs=3, batch_size=6, per_class=2, accumulate=2, flip=True, shift=1, validate_every=2)
    with pytest.raises(KeyboardInterrupt):
        tune(
            tmp_path / "stopped", maker(blocks=1), config, Stopper(call, raising(KeyboardInterrupt()), validate_photos)
        )
    continued, whole = (tune(tmp_path / folder, maker(blocks=1), config) for folder in ("stopped", "whole"))
    same_run(continued, whole)
    assert len(whole.validations) == 6
    assert (f"Continuing after epoch {call // 2 - 1 + call % 2} of 3" in caplog.text) is (call > 2)


@pytest.mark.parametrize(
    "other", [maker(RESNET, 1), maker(blocks=2), maker(blocks=0)], ids=["backbone", "more blocks", "frozen"]
)
def test_a_stopped_run_of_another_backbone_or_other_blocks_is_not_continued(tmp_path, caplog, other):
    config = replace(CONFIG, batch_size=12)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, maker(blocks=1), config, Stopper(2, raising(KeyboardInterrupt()), validate_photos))
    tune(tmp_path, other, config)
    assert "Continuing" not in caplog.text


def test_another_augmentation_is_not_continued(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        tune(
            tmp_path,
            make_head,
            CONFIG,
            Stopper(2, raising(KeyboardInterrupt()), validate_head),
            views_of(),
            RandomView(),
        )
    first_view = views_of()[0][:, :1], views_of()[1]
    tune(tmp_path, make_head, CONFIG, validate_head, first_view, torch.nn.Flatten())
    assert "Continuing" not in caplog.text


# --- what is refused


def test_a_frozen_backbone_without_a_head_leaves_nothing_to_train(tmp_path):
    with pytest.raises(ArgumentError, match="blocks"):
        tune(tmp_path, maker(dim=0))
    with pytest.raises(ArgumentError, match="blocks"):
        tune(tmp_path, lambda: base.RawPixels(3, 32))
    assert not any(tmp_path.iterdir())


def test_a_validation_figure_that_is_no_number_stops_the_run_and_brings_no_older_weights_back(tmp_path):
    tune(tmp_path, make_head, CONFIG, validate_head, views_of(), RandomView())
    with pytest.raises(ArgumentError, match=r"'figure' is NaN at step \d+"):
        tune(tmp_path, make_head, replace(CONFIG, seed=1), lambda e: {"figure": np.nan}, views_of(), RandomView())


def test_a_loss_that_is_no_number_any_more_is_answered_with_the_remedy(tmp_path):
    wild = replace(CONFIG, epochs=9, learning_rate=1e30, average=0)
    with pytest.raises(ArgumentError, match=r"nan at step \d+"):
        tune(tmp_path, make_head, wild, lambda e: {"figure": 0.0}, views_of(), RandomView())


# --- precision


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_half_precision_weights_are_trained_in_float32_and_the_loss_stays_finite(tmp_path, precision):
    path = Workspace().weights / "squeezenet1_0.safetensors"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    save_file({key: value.half() for key, value in models.squeezenet1_0().state_dict().items()}, path)

    def make():
        encoder = load_pretrained(SQUEEZENET, size=32, resolution=32, dim=6)
        encoder.backbone.unfreeze_last(3)
        return encoder

    run = tune(tmp_path / "run", make, replace(CONFIG, precision=precision))
    assert not run.encoder.stand_in
    assert {p.dtype for p in run.encoder.parameters()} == {torch.float32}
    assert np.isfinite(run.history["loss"]).all()
    assert all(torch.isfinite(value).all() for value in run.encoder.state_dict().values())
    assert len(moved(make(), run.encoder)) > 6


def test_bf16_reaches_clip_and_keeps_its_weights_in_float32(tmp_path):
    runs = [tune(tmp_path / p, maker(VIT, 1), replace(CONFIG, precision=p)) for p in ("no", "bf16")]
    for run in runs:
        assert {p.dtype for p in run.encoder.parameters()} == {torch.float32}
        assert np.isfinite(run.history["loss"]).all()
    assert moved(runs[0].encoder, runs[1].encoder)
