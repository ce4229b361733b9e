"""A backbone cut before the blocks that training frees."""

import numpy as np
import pytest
import torch
from makers.networks import LITE, RESNET, SQUEEZENET, VIT, pretrained
from makers.training import a_head, nearest_hits, photos
from torchvision.transforms import v2

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders import backbone as backbone_module
from rectrio_lib.encoders.pretrained import Pretrained
from rectrio_lib.training import two_phase
from rectrio_lib.training.config import TrainConfig
from rectrio_lib.training.cut import Cut

CONFIG = TrainConfig(1, 8, 0.01, backbone_rate=1.0, average=0.5, precision="no", loss="nt-xent")
FLIP = v2.RandomHorizontalFlip(1.0)
CUTTABLE = [SQUEEZENET, RESNET, LITE]

pytestmark = pytest.mark.usefixtures("full_precision")


@pytest.mark.parametrize("blocks", [0, 2, "all but one"])
@pytest.mark.parametrize("name", CUTTABLE)
def test_both_halves_give_what_the_whole_gives(name, blocks):
    frozen, (images, _) = pretrained(name), photos(5)
    whole_vectors = frozen.encode(images)  # on a GPU, if there is one
    cut = Cut(frozen, len(frozen.backbone.blocks) - 1 if blocks == "all but one" else blocks)
    inputs = cut.inputs(images)
    assert inputs.dtype == np.float16 and inputs.shape == (5, np.prod(cut.lower.shape))
    np.testing.assert_allclose(cut.features(inputs), whole_vectors, atol=2e-3)  # maps are kept in 16 bits
    whole = two_phase.attach(frozen, a_head(frozen, 5))
    assert {weights.device.type for weights in whole.state_dict().values()} == {"cpu"}
    np.testing.assert_allclose(cut.encode(whole, inputs), whole.encode(images), atol=5e-3)


def test_the_lower_half_runs_once_for_each_image_and_augmentation(monkeypatch):
    frozen, (images, _) = pretrained(), photos(6)
    cut = Cut(frozen, 2)
    inputs = cut.inputs(images)
    views = cut.views(images, inputs, FLIP, 2)
    assert views.shape == (6, 3, inputs.shape[1])
    np.testing.assert_array_equal(views[:, 0], inputs)
    np.testing.assert_array_equal(views[:, 1], cut.inputs(images[..., ::-1].copy()))
    assert cut.features(views).shape == (6, 3, frozen.dim)
    assert len(list((Workspace().outputs / "features").iterdir())) == 3
    monkeypatch.setattr(Cut.__init__.__globals__["Lower"], "forward", lambda *given: pytest.fail("computed again"))
    np.testing.assert_array_equal(cut.views(images, cut.inputs(images), FLIP, 2), views)


@pytest.mark.parametrize("name", [RESNET, LITE])
def test_training_changes_the_freed_blocks_and_the_head_and_no_statistics(name, tmp_path):
    frozen, (images, targets) = pretrained(name), photos(24)
    cut, head = Cut(frozen, 2), a_head(frozen, 5)
    inputs = cut.inputs(images)
    views, seen = cut.views(images, inputs, FLIP, 1), []

    def validate(network):
        seen.append(network.encode(inputs).shape)
        return {"figure": float(len(seen))}

    run = cut.train(head, images, views, targets, CONFIG, validate, tmp_path, FLIP)
    assert isinstance(run.encoder, Pretrained) and not run.encoder.training and seen == [(24, 6)]
    before, after = frozen.backbone.state_dict(), run.encoder.backbone.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    freed = tuple(f"network.{name}." for name in run.encoder.backbone.names_of_last(2))
    assert changed and all(key.startswith(freed) for key in changed)
    assert not [key for key in changed if "running" in key]
    assert not torch.equal(run.encoder.head.project[0].weight, head.project[0].weight)
    np.testing.assert_allclose(cut.encode(run.encoder, inputs), run.encoder.encode(images), atol=5e-3)
    np.testing.assert_allclose(cut.features(inputs), frozen.encode(images), atol=2e-3)  # the frozen one is as it was


def test_checkpointing_runs_each_freed_block_twice_and_gives_the_same_network(tmp_path, monkeypatch):
    frozen, (images, targets), runs, again = pretrained(RESNET), photos(24), [], []
    own = backbone_module.checkpoint
    monkeypatch.setattr(backbone_module, "checkpoint", lambda *given, **how: again.append(1) or own(*given, **how))
    cut, head = Cut(frozen, 2), a_head(frozen, 5)
    views = cut.views(images, cut.inputs(images), FLIP, 1)
    given = images, views, targets, CONFIG, lambda network: {"figure": 1.0}
    for on in (False, True):
        assert not again
        runs.append(cut.train(head, *given, tmp_path / str(on), FLIP, on))
    assert len(again) == 2 * CONFIG.epochs * (24 // CONFIG.batch_size)
    for one, other in zip(*(run.encoder.parameters() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_it_learns(tmp_path):
    frozen, (images, targets) = pretrained(), photos(48)
    cut = Cut(frozen, 3)
    inputs = cut.inputs(images)
    views = cut.views(images, inputs, FLIP, 1)

    def gap(vectors):
        similarity, same = vectors @ vectors.T, targets[:, None] == targets
        return float(similarity[same].mean() - similarity[~same].mean())

    head, config = a_head(frozen, 5), TrainConfig(6, 16, 0.003, backbone_rate=1.0, average=0.5)
    before = gap(cut.encode(two_phase.attach(frozen, head), inputs))
    given = images, views, targets, config, lambda network: {"gap": gap(network.encode(inputs))}, tmp_path, FLIP
    run = cut.train(head, *given)
    assert run.validations["gap"].max() > before + 0.1
    assert nearest_hits(run.encoder, images, targets) > 0.9


def test_a_network_that_cannot_be_cut_works_on_its_images(tmp_path):
    frozen, (images, targets) = pretrained(VIT), photos(16)
    cut = Cut(frozen, 1)
    assert cut.lower is None and cut.inputs(images) is images
    features = cut.features(images)
    np.testing.assert_allclose(features, frozen.encode(images), atol=1e-5)
    views = cut.views(images, images, FLIP, 1)
    assert views.shape == (16, 2, frozen.dim) and cut.features(views) is views
    config = TrainConfig(1, 8, 0.01, average=0.5, precision="no")
    run = cut.train(
        a_head(frozen, 5), images, views, targets, config, lambda n: {"x": n.encode(images).mean()}, tmp_path, FLIP
    )
    np.testing.assert_allclose(cut.encode(run.encoder, images), run.encoder.encode(images))


@pytest.mark.parametrize("blocks", [-1, 99])
def test_a_number_of_blocks_that_it_does_not_have_is_refused(blocks):
    with pytest.raises(ArgumentError, match=f"blocks={blocks}.*9 blocks"):
        Cut(pretrained(), blocks)
