"""Objectives against values worked out by hand."""

import pytest
import torch

from rm.losses import LOSSES, bradley_terry, centering

CHOSEN = torch.tensor([2.1, 0.8, -0.3, 1.5])
REJECTED = torch.tensor([0.9, -1.2, -0.5, -0.2])


def test_bradley_terry_literal():
    loss = bradley_terry(CHOSEN, REJECTED)
    torch.testing.assert_close(loss, torch.tensor([0.2633, 0.1269, 0.5981, 0.1678]), atol=5e-5, rtol=0)
    assert loss.mean().item() == pytest.approx(0.2890, abs=5e-5)


def test_bradley_terry_with_target_margins():
    # Margins 1.2, 2.0, .2, 1.7 minus the targets: .7, 0, .2, -1.3; a target of 0 changes nothing.
    loss = bradley_terry(CHOSEN, REJECTED, torch.tensor([0.5, 2.0, 0.0, 3.0]))
    torch.testing.assert_close(loss, torch.tensor([0.4032, 0.6931, 0.5981, 1.5410]), atol=5e-5, rtol=0)


def test_bradley_terry_of_a_tie_is_ln_2():
    tie = torch.zeros(1, dtype=torch.float64)
    assert bradley_terry(tie, tie).item() == pytest.approx(0.6931471805599453, abs=1e-15)


@pytest.mark.parametrize(("margin", "loss", "slope"), [(1e4, 0.0, 0.0), (-1e4, 1e4, -1.0)])
def test_bradley_terry_is_finite_at_huge_margins(margin, loss, slope):
    chosen = torch.tensor([margin], requires_grad=True)
    value = bradley_terry(chosen, torch.zeros(1))
    value.sum().backward()
    assert (value.item(), chosen.grad.item()) == (loss, slope)


def test_gradients_in_float64():
    torch.manual_seed(0)
    chosen, rejected, target = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(bradley_terry, (chosen, rejected))
    assert torch.autograd.gradcheck(bradley_terry, (chosen, rejected, target))
    assert torch.autograd.gradcheck(centering, (chosen, rejected))


def test_centering_literal():
    torch.testing.assert_close(centering(CHOSEN, REJECTED), torch.tensor([9.0, 0.16, 0.64, 1.69]))


def test_every_loss_gives_one_value_a_pair():
    for name, loss in LOSSES.items():
        assert loss(CHOSEN, REJECTED, torch.zeros(4)).shape == (4,), name
