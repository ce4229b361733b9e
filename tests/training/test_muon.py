import copy
import warnings
from dataclasses import replace

import pytest
import torch
from makers.training import CONFIG, same_run, small, train

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.training.config import check
from rectrio_lib.training.muon import AS_ADAMW, FARTHER, Muon, orthogonal

MUON = replace(CONFIG, optimizer="muon")


def moved(optimizer, network, steps=3, **options):
    """A copy of a network after some steps with drawn gradients."""
    network = copy.deepcopy(network)
    optimizer, random = optimizer(network.parameters(), 0.01, **options), torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        optimizer.step()
    return dict(network.named_parameters())


@pytest.mark.parametrize("shape", [(8, 8), (16, 144), (144, 16), (1, 9), (9, 1)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    near, (left, values, right) = orthogonal(matrix), torch.linalg.svd(matrix, full_matrices=False)
    turned = left.T @ near @ right.T
    assert (values.max() / values.min() > 1.5) == (min(shape) > 1), "nothing to do"
    assert turned.diagonal().min() > 0.6 and turned.diagonal().max() < 1.25
    torch.testing.assert_close(turned, turned.diagonal().diag(), atol=1e-4, rtol=0)


def test_the_scale_of_a_matrix_does_not_matter_and_zero_stays_zero():
    matrix = torch.randn(16, 144, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonal(matrix * 1e-4), orthogonal(matrix), atol=1e-4, rtol=0)
    assert not orthogonal(torch.zeros(4, 36)).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this version of torch has no Muon")
def test_kernels_move_like_matrices_in_the_muon_of_torch():
    kernel = torch.nn.Conv2d(8, 16, 3, bias=False).to(memory_format=torch.channels_last)
    own = moved(Muon, kernel, weight_decay=0.05)["weight"]
    matrix = torch.nn.Linear(72, 16, bias=False)
    matrix.weight.data = kernel.weight.detach().flatten(1).clone()
    optimizer, random = (
        torch.optim.Muon(matrix.parameters(), 0.01 * FARTHER, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.Generator().manual_seed(0),
    )
    for _ in range(3):
        matrix.weight.grad = torch.randn((16, 8, 3, 3), generator=random).flatten(1)
        optimizer.step()
    move = (matrix.weight - kernel.weight.flatten(1)).norm()
    assert (own.flatten(1) - matrix.weight).norm() < 0.03 * move, "torch computes in bfloat16"
    assert AS_ADAMW == 0.2, "match_rms_adamw"


def test_all_but_kernels_moves_exactly_as_in_adamw():
    network = small()
    own, adamw = moved(Muon, network), moved(torch.optim.AdamW, network)
    kernels = {name for name, parameter in network.named_parameters() if parameter.ndim == 4}
    assert kernels and kernels == {name for name in own if not torch.equal(own[name], adamw[name])}


def test_frozen_kernels_stay_and_gradients_outlive_a_step():
    network = small()
    network.features[0].weight.requires_grad_(False)
    before = network.features[0].weight.clone()
    optimizer = Muon(network.parameters(), 0.01)
    loss = optimizer.step(lambda: (network.train()(torch.rand(4, 1, 12, 12))[0].sum().backward(), 7.0)[1])
    assert loss == 7.0
    assert torch.equal(network.features[0].weight, before)
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_a_stopped_run_ends_like_one_that_never_stopped(tmp_path):
    def stop_after_two_epochs(encoder):
        stops.append(1)
        if len(stops) == 3:
            raise KeyboardInterrupt
        return {"recall_at_1": 0.5}

    stops, whole = [], train(tmp_path / "whole", MUON, lambda e: {"recall_at_1": 0.5})
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", MUON, stop_after_two_epochs)
    same_run(train(tmp_path / "stopped", MUON, lambda e: {"recall_at_1": 0.5}), whole)


def test_a_few_steps_lower_the_loss_farther_than_with_adamw(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = [
            train(tmp_path / name, replace(CONFIG, epochs=12, learning_rate=0.003, optimizer=name)).history["loss"]
            for name in ("muon", "adamw")
        ]
    first, last = (run.iloc[-3:].mean() for run in runs)
    assert first < last


def test_an_unknown_optimizer_is_named_with_the_known_ones():
    with pytest.raises(ArgumentError, match=r"optimizer='sgd' is unknown: choose one of adamw, muon\."):
        check(torch.tensor([0, 0, 1, 1] * 10).numpy(), replace(CONFIG, optimizer="sgd"))
