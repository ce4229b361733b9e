"""The two phases as chapters call them: features, head, attached network, freed blocks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from makers.networks import SQUEEZENET, VIT, pretrained
from makers.training import a_head, photos, same_run, validate_photos
from torchvision.transforms import v2

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.pretrained import ProjectionHead
from rectrio_lib.encoders.registry import fingerprint
from rectrio_lib.training import two_phase
from rectrio_lib.training.augment import PerImage
from rectrio_lib.training.config import TrainConfig
from rectrio_lib.training.feature_cache import cache_features
from rectrio_lib.training.loop import fit

CONFIG = TrainConfig(epochs=2, batch_size=8, learning_rate=0.01, average=0.5, precision="no", margin=0.5)
FLIP = v2.RandomHorizontalFlip(1.0)

pytestmark = pytest.mark.usefixtures("full_precision")


def test_features_are_those_of_the_image_and_of_its_augmentations(tmp_path):
    frozen, (images, _) = pretrained(), photos(9)
    found = two_phase.augmented_features(frozen, frozen.encode(images), images, FLIP, 2)
    assert found.shape == (9, 3, frozen.dim)
    np.testing.assert_allclose(found[:, 0], frozen.encode(images), atol=1e-5)
    for view in (1, 2):
        np.testing.assert_allclose(found[:, view], frozen.encode(images[..., ::-1].copy()), atol=1e-5)
    assert np.abs(found[:, 0] - found[:, 1]).max() > 1e-3


def test_known_features_are_not_computed_again_and_the_workspace_owns_the_cache(tmp_path):
    frozen, (images, _), workspace = pretrained(), photos(5), Workspace(tmp_path / "mine")
    known = np.full((5, frozen.dim), 0.5, np.float32)
    found = two_phase.augmented_features(frozen, known, images, FLIP, 1, workspace)
    assert (found[:, 0] == 0.5).all()
    assert len(list((workspace.outputs / "features").iterdir())) == 1
    assert not (Workspace().outputs / "features").exists()


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("name", [SQUEEZENET, VIT])
def test_an_attached_head_gives_the_vectors_that_it_gives_on_cached_features(name, hidden):
    frozen, (images, _) = pretrained(name), photos(7)
    head = a_head(frozen, hidden)
    whole = two_phase.attach(frozen, head)
    np.testing.assert_allclose(whole.encode(images), head.encode(cache_features(frozen, images)[:, 0]), atol=1e-4)
    assert whole.dim == 6 and not whole.training
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.zero_()
    assert any(p.any() for p in frozen.parameters()) and any(p.any() for p in head.parameters()), "copies of both"


def test_phase_1_trains_the_head_on_views_at_random(tmp_path):
    frozen, (images, targets) = pretrained(), photos()
    features = two_phase.augmented_features(frozen, frozen.encode(images), images, FLIP, 1)
    start = a_head(frozen)
    run = two_phase.train_head(
        lambda: a_head(frozen), features, targets, CONFIG, lambda head: {"figure": 1.0}, tmp_path
    )
    assert not torch.equal(run.encoder.project[0].weight, start.project[0].weight)
    single = two_phase.train_head(
        lambda: a_head(frozen), features[:, :1], targets, CONFIG, lambda head: {"figure": 1.0}, tmp_path
    )
    assert not np.allclose(run.history["loss"], single.history["loss"])


@pytest.mark.parametrize("blocks", [0, 2])
def test_phase_2_is_the_loop_of_every_chapter_with_half_of_the_images_augmented(tmp_path, blocks):
    frozen, (images, targets) = pretrained(), photos()
    head, half = a_head(frozen), PerImage(v2.RandomApply([FLIP], p=0.5))
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in (frozen, head)]

    def start():
        encoder = two_phase.attach(frozen, head)
        encoder.backbone.unfreeze_last(blocks)
        return encoder

    ours = two_phase.train_blocks(frozen, head, images, targets, CONFIG, validate_photos, tmp_path / "a", blocks, FLIP)
    same_run(ours, fit(start, images, targets, CONFIG, validate_photos, tmp_path / "b", half))
    assert fingerprint(ours.encoder) != fingerprint(start())
    for network, state in zip((frozen, head), before, strict=True):  # what it started from is as it was
        torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)


def test_gradient_checkpointing_gives_the_same_network(tmp_path):
    frozen, (images, targets), config = pretrained(), photos(), replace(CONFIG, epochs=1, learning_rate=1e-3)
    options = (frozen, a_head(frozen), images, targets, config, validate_photos)
    runs = [two_phase.train_blocks(*options, tmp_path / str(on), 2, FLIP, on) for on in (False, True)]
    for one, other in zip(*(run.encoder.parameters() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_more_blocks_than_the_backbone_has_are_refused(tmp_path):
    frozen, (images, targets) = pretrained(), photos()
    with pytest.raises(ArgumentError, match="99"):
        two_phase.train_blocks(frozen, a_head(frozen), images, targets, CONFIG, validate_photos, tmp_path, 99, FLIP)


FIGURES = {
    "frozen": {"recall_at_1": 0.7, "map_at_r": 0.2},
    "better": {"recall_at_1": 0.7, "map_at_r": 0.5},
    "best": {"recall_at_1": 0.8, "map_at_r": 0.6},
    "nearest neighbours lost": {"recall_at_1": 0.69, "map_at_r": 0.9},
}


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("better", "best"), "best"),
        (("better", "nearest neighbours lost"), "better"),
        (("nearest neighbours lost",), "frozen"),
    ],
)
def test_training_that_loses_nearest_neighbours_is_not_preferred(names, kept):
    assert two_phase.preferred({name: FIGURES[name] for name in ("frozen", *names)}, "frozen") == kept


def test_after_a_whitening_head_the_images_vary_alike_in_all_directions():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(4000, 8)) * [5, 3, 2, 1, 1, 0.5, 0.3, 0.2]).astype(np.float32) @ rng.normal(
        size=(8, 8)
    )
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    (weights,) = two_phase.whitening_head(features, 5, floor=0.0).parameters()
    turned = features @ weights.detach().numpy().T
    moments = turned.T @ turned / len(turned)
    np.testing.assert_allclose(moments / moments[0, 0], np.eye(5), atol=1e-3)
    kept = np.linalg.svd(features, full_matrices=False)[2][:5]  # the directions in which they vary most
    rest = weights.detach().numpy() @ (np.eye(8) - kept.T @ kept)
    assert np.abs(rest).max() < 1e-3 * np.abs(weights.detach().numpy()).max()


def test_a_direction_that_hardly_varies_is_not_blown_up():
    features = np.eye(3, dtype=np.float32)[[0] * 50 + [1] * 49 + [2]]
    (weights,) = two_phase.whitening_head(features, 3, floor=1.0).parameters()
    lengths = torch.linalg.vector_norm(weights.detach(), dim=1).numpy()
    variance = np.array([0.5, 0.49, 0.01])
    np.testing.assert_allclose(lengths / lengths[0], np.sqrt((0.5 + 1 / 3) / (variance + 1 / 3)), rtol=1e-5)


def test_a_whitening_head_has_the_size_of_an_untrained_one_and_makes_unit_vectors():
    torch.manual_seed(0)
    untrained = ProjectionHead(12, 7).project[0].weight
    features = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    head = two_phase.whitening_head(features, 7)
    assert head.project[0].weight.abs().mean().item() == pytest.approx(untrained.abs().mean().item(), rel=0.2)
    np.testing.assert_allclose(np.linalg.norm(head.encode(features), axis=1), 1, atol=1e-5)


def test_a_whitening_head_keeps_no_more_directions_than_there_are():
    with pytest.raises(ArgumentError, match="dim=13: features of length 12"):
        two_phase.whitening_head(np.eye(12, dtype=np.float32), 13)
