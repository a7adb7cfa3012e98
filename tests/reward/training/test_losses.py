"""Objectives against values worked out by hand."""

import inspect
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from reward.recipe.keys import OWN
from reward.training.losses import (
    LOSSES,
    bradley_terry,
    centering,
    classification,
    mse,
    rao_kupper,
    rating_mse,
    smooth,
)

CHOSEN = torch.tensor([2.1, 0.8, -0.3, 1.5])  # margins 1.2, 2.0, .2, 1.7
REJECTED = torch.tensor([0.9, -1.2, -0.5, -0.2])
P = torch.tensor([0.7, 0.3, 0.5, 1.0])
TARGETS = torch.tensor([0.5, 2.0, 0.0, 3.0])
RATINGS = {
    "rating_chosen": torch.tensor([4.0, 3, 2, 1]),
    "rating_rejected": torch.tensor([1.0, 0, 2, 0.5]),
}


@pytest.mark.parametrize(
    ("loss", "labels", "expected"),
    [
        (bradley_terry, {}, [0.2633, 0.1269, 0.5981, 0.1678]),
        # Margins less the targets: .7, 0, .2, -1.3; a target of 0 changes nothing.
        (bradley_terry, {"target_margin": TARGETS}, [0.4032, 0.6931, 0.5981, 1.5410]),
        # Each is the first line's plus (1 - p) margins: .36, 1.4, .1, 0.
        (bradley_terry, {"chosen_probability": P}, [0.6233, 1.5269, 0.6981, 0.1678]),
        (
            bradley_terry,
            {"chosen_probability": P, "target_margin": TARGETS},
            [0.8426, 3.0206, 0.6981, 1.5410],
        ),
        # ln(1 + e^(.5 - d)): win; the others .7 win + .3 loss, .3 win + .7 loss, tie, win.
        (rao_kupper, {}, [0.4032, 0.2014, 0.8544, 0.2633]),
        (rao_kupper, {"chosen_probability": P}, [0.8426, 1.8656, 1.4162, 0.2633]),
        (
            rao_kupper,
            {"chosen_probability": P, "tie_margin": 1.0},
            [1.1102, 2.2280, 0.7798, 0.4032],
        ),
        (
            rao_kupper,
            {"chosen_probability": torch.full((4,), 0.5)},
            [1.7296, 2.2390, 1.4162, 2.0270],
        ),
        (mse, {}, [1.21 + 0.81, 0.04 + 1.44, 1.69 + 0.25, 0.25 + 0.04]),
        (mse, {"chosen_probability": P}, [1.96 + 0.36, 0.25 + 3.61, 0.64 + 1.0, 0.25 + 0.04]),
        (rating_mse, RATINGS, [3.61 + 0.01, 4.84 + 1.44, 5.29 + 6.25, 0.25 + 0.49]),
        (classification, {}, [0.1155 + 1.2411, 0.3711 + 0.2633, 0.8544 + 0.4741, 0.2014 + 0.5981]),
        (classification, {"chosen_probability": P}, [1.7167, 2.0344, 1.4284, 0.7996]),
        (centering, {}, [9.0, 0.16, 0.64, 1.69]),
    ],
)
def test_literal_values(loss, labels, expected):
    torch.testing.assert_close(
        loss(CHOSEN, REJECTED, **labels), torch.tensor(expected), atol=1e-4, rtol=0
    )


def test_the_mean_of_the_four_pairs():
    assert bradley_terry(CHOSEN, REJECTED).mean().item() == pytest.approx(0.2890, abs=5e-5)


def test_bradley_terry_of_equal_rewards_is_ln_2():
    zero = torch.zeros(1, dtype=torch.float64)
    for p in (None, torch.tensor([0.5]), torch.tensor([0.9])):
        assert bradley_terry(zero, zero, chosen_probability=p).item() == pytest.approx(
            math.log(2), abs=1e-8
        )


def test_bradley_terry_with_p_is_the_swapped_pair_with_1_minus_p():
    loss = bradley_terry(CHOSEN, REJECTED, TARGETS, P)
    swapped = bradley_terry(REJECTED, CHOSEN, TARGETS, 1 - P)
    torch.testing.assert_close(loss, swapped)
    assert (loss - bradley_terry(REJECTED, CHOSEN, TARGETS, P)).abs().max() > 0.1


def test_bradley_terry_is_least_where_the_model_says_p():
    """d = log(p / (1 - p)): the raters' odds, at which the slope is 0."""
    d = torch.log(torch.tensor([0.7 / 0.3, 0.3 / 0.7, 1.0])).requires_grad_()
    bradley_terry(
        d, torch.zeros(3), chosen_probability=torch.tensor([0.7, 0.3, 0.5])
    ).sum().backward()
    torch.testing.assert_close(d.grad, torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tie_margin", [0.1, 0.5, 2.0])
def test_rao_kuppers_three_probabilities_sum_to_1(tie_margin):
    p = torch.tensor([[1.0], [0.0], [0.5]]).expand(3, 4)  # win, loss, tie
    win, loss, tie = torch.exp(-rao_kupper(CHOSEN, REJECTED, p, tie_margin))
    torch.testing.assert_close(win + loss + tie, torch.ones(4))
    torch.testing.assert_close(win, torch.sigmoid(CHOSEN - REJECTED - tie_margin))
    assert min(map(torch.min, (win, loss, tie))) > 0


def test_rao_kuppers_tie_is_least_at_equal_rewards_and_p_beside_one_half_is_none():
    d = torch.tensor([-1.0, 0.0, 1.0])
    tie = rao_kupper(d, torch.zeros(3), torch.full((3,), 0.5))
    assert tie.argmin() == 1 and tie[0] == tie[2]
    assert tie[1].item() == pytest.approx(
        2 * math.log1p(math.exp(0.5)) - math.log(math.e - 1), abs=1e-6
    )
    beside = rao_kupper(d, torch.zeros(3), torch.full((3,), 0.499999))
    assert (beside - tie).abs().min() > 0.4


def test_label_smoothing_moves_each_label_towards_the_other_side():
    assert smooth(P, 0.1).tolist() == pytest.approx([0.66, 0.34, 0.5, 0.9])
    assert torch.equal(smooth(P, 0.0), P)
    sure, e = torch.ones(4), 0.1
    conservative = -(1 - e) * F.logsigmoid(CHOSEN - REJECTED) - e * F.logsigmoid(REJECTED - CHOSEN)
    torch.testing.assert_close(bradley_terry(CHOSEN, REJECTED, None, smooth(sure, e)), conservative)


def test_a_smoothed_tie_stays_exactly_a_tie():
    """rao_kupper asks for p == .5."""
    assert all(smooth(torch.tensor(0.5), step / 1000).item() == 0.5 for step in range(500))


def test_classification_of_two_logits_is_the_softmax_cross_entropy():
    torch.manual_seed(0)
    chosen, rejected = torch.randn(6, 2), torch.randn(6, 2)
    odds = (chosen[:, 1] - chosen[:, 0], rejected[:, 1] - rejected[:, 0])
    preferred, not_preferred = torch.ones(6, dtype=torch.long), torch.zeros(6, dtype=torch.long)
    expected = F.cross_entropy(chosen, preferred, reduction="none")
    expected += F.cross_entropy(rejected, not_preferred, reduction="none")
    torch.testing.assert_close(classification(*odds), expected)
    p = torch.rand(6)
    soft = F.cross_entropy(chosen, torch.stack([1 - p, p], 1), reduction="none")
    soft += F.cross_entropy(rejected, torch.stack([p, 1 - p], 1), reduction="none")
    torch.testing.assert_close(classification(*odds, p), soft)


# --- Of every objective --------------------------------------------------------------------------


def labels_of(name: str, pairs: int, p: float | None = None) -> dict[str, torch.Tensor]:
    """Random labels for an objective, (pairs,) each; `p` instead for the chosen probability."""
    generator = torch.Generator().manual_seed(3)
    labels = {}
    for label in LOSSES[name].labels:
        labels[label] = torch.rand(pairs, dtype=torch.float64, generator=generator)
    if p is not None and "chosen_probability" in labels:
        labels["chosen_probability"] = torch.full((pairs,), p, dtype=torch.float64)
    return labels


def test_losses_are_those_of_the_recipe_and_name_what_they_take():
    assert list(LOSSES) == OWN["loss_type"].choices
    for name, loss in LOSSES.items():
        parameters = list(inspect.signature(loss.function).parameters)
        rewards, others = parameters[:2], parameters[2:]
        assert rewards in (
            ["rewards_chosen", "rewards_rejected"],
            ["log_odds_chosen", "log_odds_rejected"],
        )
        assert set(loss.labels) == set(others) - {"tie_margin"}, name


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_gives_one_value_a_pair(name):
    assert LOSSES[name].function(CHOSEN, REJECTED, **labels_of(name, 4)).shape == (4,)


@pytest.mark.parametrize("p", [None, 0.5, 1.0])
@pytest.mark.parametrize("name", [*LOSSES, "centering"])
def test_gradients_in_float64(name, p):
    torch.manual_seed(0)
    chosen, rejected = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = centering
    if name != "centering":
        loss = partial(LOSSES[name].function, **labels_of(name, 6, p))
    assert torch.autograd.gradcheck(loss, (chosen, rejected))


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("margin", [1e4, -1e4])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_finite_at_huge_margins(name, margin, p):
    chosen = torch.tensor([margin], requires_grad=True)
    rejected = torch.zeros(1, requires_grad=True)
    labels = {key: value.float() for key, value in labels_of(name, 1, p).items()}
    value = LOSSES[name].function(chosen, rejected, **labels)
    value.sum().backward()
    assert all(torch.isfinite(tensor).all() for tensor in (value, chosen.grad, rejected.grad))


@pytest.mark.parametrize(
    ("loss", "margin", "value", "slope"),
    [
        (bradley_terry, 1e4, 0.0, 0.0),
        (bradley_terry, -1e4, 1e4, -1.0),
        (rao_kupper, 1e4, 0.0, 0.0),
        (rao_kupper, -1e4, 10000.5, -1.0),
        (classification, 1e4, math.log(2), 0.0),
        (classification, -1e4, 1e4 + math.log(2), -1.0),
        (mse, 1e4, 9999.0**2, 2 * 9999.0),
    ],
)
def test_what_is_lost_at_huge_margins(loss, margin, value, slope):
    chosen = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    pair_loss = loss(chosen, torch.zeros(1, dtype=torch.float64))
    pair_loss.sum().backward()
    assert pair_loss.item() == pytest.approx(value)
    assert chosen.grad.item() == pytest.approx(slope)
