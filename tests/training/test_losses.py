import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import NTXentLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, TripletMarginMiner

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.training import losses
from rectrio_lib.training.losses import (
    HARD_AFTER,
    HARDER_AFTER,
    LOSSES,
    MINERS,
    TRIPLET_LOSSES,
    batch_statistics,
    make_loss,
    pairwise_distances,
)

BATCHES = st.tuples(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 4))
MARGINS = st.sampled_from([0.05, 0.2, 1.0])


def batch(seed, size, classes, dim=5):
    """Raw vectors to be normalised, in float64 and with a gradient, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(size, dim, generator=generator, dtype=torch.float64).requires_grad_()
    return raw, torch.randint(classes, (size,), generator=generator)


def triplets(vectors, targets):
    """d(a, p) and d(a, n) of every triplet, one at a time."""
    size = range(len(targets))
    for a in size:
        for p in size:
            for n in size:
                if a != p and targets[a] == targets[p] and targets[a] != targets[n]:
                    yield (vectors[a] - vectors[p]).norm(), (vectors[a] - vectors[n]).norm()


def mean(terms, vectors):
    return torch.stack(terms).mean() if terms else 0 * vectors.sum()


def hinge(positive, negative, margin):
    return (positive - negative + margin).clamp_min(0)


def soft(positive, negative, margin):
    """Hermans et al., without a margin."""
    return torch.log(1 + torch.exp(positive - negative))


def naive_all(vectors, targets, margin, term):
    kept = [(p, n) for p, n in triplets(vectors, targets) if term is soft or p + margin > n]
    return mean([term(p, n, margin) for p, n in kept], vectors)


def naive_semihard(vectors, targets, margin, term):
    kept = [(p, n) for p, n in triplets(vectors, targets) if p < n < p + margin]
    return mean([term(p, n, margin) for p, n in kept], vectors)


def naive_hard(vectors, targets, margin, term):
    terms = []
    for a, label in enumerate(targets):
        to = [(vectors[a] - other).norm() for other in vectors]
        positives = [d for i, d in enumerate(to) if targets[i] == label and i != a]
        negatives = [d for i, d in enumerate(to) if targets[i] != label]
        if positives and negatives and (term is soft or max(positives) + margin > min(negatives)):
            terms.append(term(max(positives), min(negatives), margin))
    return mean(terms, vectors)


def naive_nt_xent(vectors, targets, temperature):
    """Of each pair: -log of the softmax over it and the anchor's negatives."""
    terms = []
    for a, p in itertools.permutations(range(len(targets)), 2):
        negatives = [n for n, label in enumerate(targets) if label != targets[a]]
        if targets[a] == targets[p] and negatives:
            logits = torch.stack([vectors[a] @ vectors[i] for i in (p, *negatives)]) / temperature
            terms.append(-logits.log_softmax(0)[0])
    return mean(terms, vectors)


def naive_supcon(vectors, targets, temperature):
    """Of each anchor with a positive: the mean of -log(softmax over all others) at its positives, unless it is 0."""
    terms = []
    for a, label in enumerate(targets if len(set(targets)) > 1 else []):
        others = [i for i in range(len(targets)) if i != a]
        positives = [i for i in others if targets[i] == label]
        if positives:
            logits = torch.stack([vectors[a] @ vectors[i] for i in others]) / temperature
            chances = dict(zip(others, logits.log_softmax(0), strict=True))
            terms.append(-torch.stack([chances[i] for i in positives]).mean())
    return mean([term for term in terms if term > 1e-15], vectors)


MINED = {
    "all": naive_all,
    "semihard": naive_semihard,
    "hard": naive_hard,
    "semihard-then-hard": naive_hard,  # at the end of the training
}


def same_value_and_gradient(ours, theirs, raw):
    (got,), (expected,) = (torch.autograd.grad(value, raw) for value in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


# --- values and gradients


@pytest.mark.parametrize(("loss", "term"), [("triplet", hinge), ("soft-margin", soft)])
@pytest.mark.parametrize("miner", MINED)
@settings(deadline=None, max_examples=40)
@given(drawn=BATCHES, margin=MARGINS)
def test_a_triplet_loss_and_its_gradient_equal_the_naive_triple_loop(loss, term, miner, drawn, margin):
    raw, targets = batch(*drawn)
    ours = make_loss(loss, miner, margin)(F.normalize(raw), targets, 1.0)
    same_value_and_gradient(ours, MINED[miner](F.normalize(raw), targets.tolist(), margin, term), raw)


@pytest.mark.parametrize(("loss", "naive"), [("nt-xent", naive_nt_xent), ("supcon", naive_supcon)])
@settings(deadline=None, max_examples=40)
@given(drawn=BATCHES, temperature=st.sampled_from([0.05, 0.1, 0.5]))
def test_a_softmax_over_cosines_and_its_gradient_equal_the_naive_loop(loss, naive, drawn, temperature):
    raw, targets = batch(*drawn)
    ours = make_loss(loss, temperature=temperature)(F.normalize(raw), targets, 1.0)
    same_value_and_gradient(ours, naive(F.normalize(raw), targets.tolist(), temperature), raw)


@settings(deadline=None, max_examples=100)
@given(drawn=BATCHES, temperature=st.sampled_from([0.05, 0.1, 0.5]))
def test_nt_xent_equals_pytorch_metric_learnings_in_value_and_gradient(drawn, temperature):
    raw, targets = batch(*drawn)
    theirs = NTXentLoss(temperature)(F.normalize(raw), targets)
    ours = make_loss("nt-xent", temperature=temperature)(F.normalize(raw), targets, 0.5)
    same_value_and_gradient(ours, theirs, raw)


@pytest.mark.parametrize("miner", ["all", "semihard"])
@settings(deadline=None, max_examples=100)
@given(drawn=st.tuples(st.integers(0, 2**32 - 1), st.integers(2, 48), st.integers(1, 12)), margin=MARGINS)
def test_the_dense_losses_and_their_gradients_equal_pytorch_metric_learnings(miner, drawn, margin):
    raw, targets = batch(*drawn)
    chosen = TripletMarginMiner(margin, type_of_triplets=miner)(F.normalize(raw), targets)
    theirs = TripletMarginLoss(margin)(F.normalize(raw), targets, chosen)
    same_value_and_gradient(make_loss("triplet", miner, margin)(F.normalize(raw), targets, 0.5), theirs, raw)


@pytest.mark.parametrize(
    ("miner", "first", "after"), [("hard", "all", HARD_AFTER), ("semihard-then-hard", "semihard", HARDER_AFTER)]
)
def test_hard_ones_come_after_a_share_of_the_training_on_easier_ones(miner, first, after):
    raw, targets = batch(0, 24, 4)
    vectors = F.normalize(raw)
    loss, easier = make_loss("triplet", miner), make_loss("triplet", first)(vectors, targets, 0.0)
    theirs = TripletMarginLoss(0.2)(vectors, targets, BatchHardMiner()(vectors, targets))
    for progress in (0.0, after - 1e-6):
        torch.testing.assert_close(loss(vectors, targets, progress), easier)
    for progress in (after, 1.0):
        torch.testing.assert_close(loss(vectors, targets, progress), theirs)
    assert theirs > easier + 0.01


def test_distance_weighted_draws_only_valid_triplets_and_gives_a_positive_finite_loss(monkeypatch):
    drawn = []

    class Spy(TripletMarginLoss):
        def forward(self, embeddings, labels, indices_tuple):
            drawn.append([i.tolist() for i in indices_tuple])
            return super().forward(embeddings, labels, indices_tuple)

    monkeypatch.setattr(losses, "TripletMarginLoss", Spy)
    raw, targets = batch(0, 30, 3)
    torch.manual_seed(0)
    loss = make_loss("triplet", "distance-weighted")(F.normalize(raw), targets, 0.5)
    (gradient,) = torch.autograd.grad(loss, raw)
    assert 0 < loss.item() < 2
    assert torch.isfinite(gradient).all() and gradient.any()
    assert len(drawn[0][0]) >= 30
    for a, p, n in zip(*drawn[0], strict=True):
        assert a != p and targets[a] == targets[p] and targets[a] != targets[n]


def test_distance_weighted_is_seeded():
    raw, targets = batch(0, 30, 3)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(make_loss("triplet", "distance-weighted")(F.normalize(raw), targets, 0.5).item())
    assert found[0] == found[1] != found[2]


# --- edges

PAIRED = [*((loss, miner) for loss in TRIPLET_LOSSES for miner in MINERS), ("nt-xent", "all"), ("supcon", "all")]


@pytest.mark.parametrize(("loss", "miner"), PAIRED)
@pytest.mark.parametrize("targets", [[0, 0, 0, 0], [0, 1, 2, 3]], ids=["one class", "all different"])
def test_a_batch_without_triplets_costs_nothing_and_moves_nothing(loss, miner, targets):
    raw, _ = batch(0, 4, 1)
    value = make_loss(loss, miner)(F.normalize(raw), torch.tensor(targets), 1.0)
    (gradient,) = torch.autograd.grad(value, raw)
    assert value.item() == 0
    assert gradient.abs().max().item() == 0


@pytest.mark.parametrize(("loss", "miner"), PAIRED)
@pytest.mark.parametrize("targets", [[0, 0, 1, 1], [0, 1, 0, 1]], ids=["positives", "negatives"])
def test_coinciding_vectors_have_a_finite_gradient(loss, miner, targets):
    raw = torch.eye(4)[[0, 0, 1, 2]].requires_grad_()  # so that distances are 0 to the last bit
    torch.manual_seed(0)
    value = make_loss(loss, miner, 0.5, 0.25)(F.normalize(raw), torch.tensor(targets), 1.0)
    (gradient,) = torch.autograd.grad(value, raw)
    assert math.isfinite(value.item())
    assert torch.isfinite(gradient).all()


def test_fulfilled_triplets_cost_nothing_under_the_hinge_and_little_otherwise():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    targets = torch.tensor([0, 0, 1, 1])
    for miner in MINERS:
        assert make_loss("triplet", miner)(vectors, targets, 1.0).item() == 0
    assert 0 < make_loss("nt-xent")(vectors, targets, 1.0).item() < 1e-3
    assert 0.05 < make_loss("soft-margin")(vectors, targets, 1.0).item() < 0.2  # log(1 + exp(-2))


def test_pairwise_distances_are_euclidean():
    vectors = F.normalize(batch(0, 9, 1)[0].detach())
    expected = torch.cdist(vectors, vectors)
    off_diagonal = ~torch.eye(9, dtype=torch.bool)
    torch.testing.assert_close(pairwise_distances(vectors)[off_diagonal], expected[off_diagonal])
    assert pairwise_distances(vectors).diagonal().max() < 2e-3


@pytest.mark.parametrize(("name", "known"), [("loss", LOSSES), ("miner", MINERS)])
def test_an_unknown_name_is_refused_with_the_known_ones_listed(name, known):
    with pytest.raises(ArgumentError, match=f"{name}='easy'.*{', '.join(known)}"):
        make_loss(**{name: "easy"})


FORMER = {"soft-margin": "nt-xent", "supervised-contrastive": "supcon", "normalised-softmax": "normalized-softmax"}


@pytest.mark.parametrize("former", FORMER)
def test_a_former_miner_that_is_a_loss_is_answered_with_its_spelling(former):
    with pytest.raises(ArgumentError, match=f"miner='{former}'.*loss='{FORMER[former]}'"):
        make_loss(miner=former)


@pytest.mark.parametrize("loss", [name for name in LOSSES if name not in TRIPLET_LOSSES])
def test_a_miner_beside_a_loss_without_triplets_is_refused(loss):
    with pytest.raises(ArgumentError, match=f"miner='hard'.*loss='{loss}'"):
        make_loss(loss, "hard")


@pytest.mark.parametrize("value", [0, -0.1, math.nan])
@pytest.mark.parametrize("name", ["margin", "temperature"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_margin_or_temperature_that_is_not_positive_is_refused(loss, name, value):
    with pytest.raises(ArgumentError, match=f"{name}={value}"):
        make_loss(loss, **{name: value})


# --- statistics


def naive_statistics(vectors, targets, margin):
    found = list(triplets(vectors, targets))
    size = range(len(targets))
    pairs = [(vectors[a] - vectors[p]).norm() for a in size for p in size if a != p and targets[a] == targets[p]]
    return {
        "active": np.mean([(p + margin > n).item() for p, n in found]) if found else math.nan,
        "positive_distance": torch.stack(pairs).mean().item() if pairs else math.nan,
        "negative_distance": torch.stack([n for _, n in found]).mean().item() if found else math.nan,
    }


@settings(deadline=None, max_examples=100)
@given(drawn=BATCHES, margin=MARGINS)
def test_batch_statistics_equal_the_naive_loops_and_are_nan_where_there_is_nothing_to_measure(drawn, margin):
    raw, targets = batch(*drawn)
    vectors = F.normalize(raw.detach())
    expected = naive_statistics(vectors, targets.tolist(), margin)
    assert batch_statistics(vectors, targets, margin) == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_batch_statistics_of_a_single_class_have_no_negative_distance():
    vectors = F.normalize(batch(0, 6, 1)[0].detach())
    found = batch_statistics(vectors, torch.zeros(6, dtype=torch.long), 0.2)
    assert math.isnan(found["active"]) and math.isnan(found["negative_distance"])
    assert found["positive_distance"] > 0.1


def test_batch_statistics_use_the_first_images_only():
    raw, targets = batch(0, 30, 3)
    vectors = F.normalize(raw.detach())
    first = batch_statistics(vectors[:10], targets[:10], 0.2)
    assert batch_statistics(vectors, targets, 0.2, sample=10) == first
    assert batch_statistics(vectors, targets, 0.2) != first
